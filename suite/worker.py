"""A worker process: takes runs one a line on standard input, answers one JSON line per event on standard output.

Events: {"event": "step", "step", "loss"}, {"event": "done"}, {"event": "failed", "status", "reason", "trace"}. The record
itself goes through a file, so that it outlives the worker and its parent. The worker ends when its input closes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from queue import Queue

REPORT_EVERY = 0.5  # seconds between progress lines


def main() -> None:
    """Serve until standard input closes; a closed input means that the parent is gone, also in the middle of a run."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not enter the protocol
    jobs: Queue[dict | None] = Queue()

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()

    def say(**event) -> None:
        try:
            answers.write(json.dumps(event) + "\n")
        except BrokenPipeError:
            os._exit(0)

    from suite import registry
    from suite.execute import execute, save_record, work_folder
    from suite.protocol import Run

    last_graph = None
    while True:
        job = jobs.get()
        run, results, said = Run.from_json(job["run"]), Path(job["results"]), [0.0]

        def report(step: int, loss: float, said=said) -> None:
            if time.monotonic() - said[0] >= REPORT_EVERY:
                said[0] = time.monotonic()
                say(event="step", step=step, loss=loss)

        try:
            import torch

            graph = (run.scheme, run.arm, run.params, repr(run.protocol.settings()))
            if graph != last_graph:  # a compiled block serves every depth of one scheme; more schemes would pile up guards
                torch._dynamo.reset()
                last_graph = graph
            for plugin in job["plugins"]:
                registry.load_plugin(plugin)
            record = execute(run, results, job["features"], report)
            save_record(record, work_folder(results, run.run_id) / "record.json")
            say(event="done")
        except Exception as error:  # any failure is the run's own: it becomes a row, and the sweep goes on
            memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            say(event="failed", status="oom" if memory else "error", reason=reason, trace=traceback.format_exc())


if __name__ == "__main__":
    main()
