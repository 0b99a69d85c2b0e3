"""A worker process: takes groups of runs of one scheme's file from its pipe, and answers with one dictionary per event.

Events: {"event": "step", "step", "loss"}, {"event": "note", "text", "once"}, {"event": "done"}, {"event": "failed", "status",
"reason", "trace"}; status "disk" says that the disk is full, which is not the run's own fault. Records go through files
(suite.sweep.record). The worker ends when its pipe closes, and it takes no run after one that broke.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue

REPORT_EVERY = 0.5  # seconds between progress lines


def main(connection: Connection, file: str, results: str, features: str) -> None:
    """Serve until the pipe closes, which means that the parent is gone, also in the middle of a run.

    file: of the schemes that this process trains; no other is imported here.
    """
    jobs: Queue[list[str]] = Queue()

    def listen() -> None:
        try:
            while True:
                jobs.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()

    def say(**event) -> None:
        try:
            connection.send(event)
        except OSError:
            os._exit(0)

    from suite.model import aot
    from suite.training.checkpoint import CheckpointWarning

    show = warnings.showwarning

    def forward(message, category, *rest) -> None:
        """What a person should know goes to the parent, what libraries grumble about to the log."""
        if issubclass(category, CheckpointWarning):
            say(event="note", text=str(message))
        else:
            show(message, category, *rest)

    warnings.showwarning = forward
    aot.say = lambda text: say(event="note", text=text, once=True)
    try:
        _serve(jobs, say, file, Path(results), features)
    except BaseException as error:  # any failure is the run's own, a scheme's sys.exit() too: it becomes a row, and the sweep goes on
        from suite.sweep.record import failure

        say(event="failed", **failure(error), trace=traceback.format_exc())


def _serve(jobs: Queue[list[str]], say, file: str, results: Path, features: str) -> None:
    import torch

    from suite.protocol import Run
    from suite.sweep.execute import execute, execute_group, load_alone
    from suite.sweep.record import save_record

    last_graph = None
    while True:
        runs, said = [Run.from_json(text) for text in jobs.get()], [0.0]

        def report(step: int, loss: float, said=said) -> None:
            if time.monotonic() - said[0] >= REPORT_EVERY:
                said[0] = time.monotonic()
                say(event="step", step=step, loss=loss)

        run = runs[0]
        graph = (run.scheme, run.arm, run.params, repr(run.protocol.settings()))
        if last_graph is None:
            load_alone(run, file)
        elif graph != last_graph:  # a compiled block serves every depth of one scheme; more schemes would pile up guards
            torch._dynamo.reset()
        last_graph = graph
        if len(runs) > 1:
            execute_group(runs, results, features, report)
        else:
            save_record(execute(run, results, features, report), results)
        say(event="done")
