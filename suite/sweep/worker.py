"""A worker process: takes groups of runs one a line on standard input, answers one JSON line per event on standard output.

Events: {"event": "step", "step", "loss"}, {"event": "note", "text"}, {"event": "done"}, {"event": "failed", "status",
"reason", "trace"}; status "disk" says that the disk is full, which is not the run's own fault. Records go through files
(suite.sweep.record). The worker ends when its input closes.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
import warnings
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

    from suite import environment, registry

    environment.forget(*environment.OF_TORCH)  # before torch is imported, which reads them
    from suite.protocol import Run
    from suite.sweep.execute import execute, execute_group
    from suite.sweep.record import failure, save_record
    from suite.training.checkpoint import CheckpointWarning

    show = warnings.showwarning

    def forward(message, category, *rest) -> None:
        """What a person should know goes to the parent, what libraries grumble about to the log."""
        if issubclass(category, CheckpointWarning):
            say(event="note", text=str(message))
        else:
            show(message, category, *rest)

    warnings.showwarning = forward
    last_graph = None
    while True:
        job = jobs.get()
        runs, results, said = [Run.from_json(text) for text in job["runs"]], Path(job["results"]), [0.0]

        def report(step: int, loss: float, said=said) -> None:
            if time.monotonic() - said[0] >= REPORT_EVERY:
                said[0] = time.monotonic()
                say(event="step", step=step, loss=loss)

        try:
            import torch

            run = runs[0]
            graph = (run.scheme, run.arm, run.params, repr(run.protocol.settings()))
            if graph != last_graph:  # a compiled block serves every depth of one scheme; more schemes would pile up guards
                torch._dynamo.reset()
                last_graph = graph
            for plugin in job["plugins"]:
                registry.load_plugin(plugin)
            if len(runs) > 1:
                execute_group(runs, results, job["features"], report)
            else:
                save_record(execute(run, results, job["features"], report), results)
            say(event="done")
        except BaseException as error:  # any failure is the run's own, a plugin's sys.exit() too: it becomes a row, and the sweep goes on
            say(event="failed", **failure(error), trace=traceback.format_exc())


if __name__ == "__main__":
    main()
