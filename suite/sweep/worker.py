"""A worker process: takes groups of runs of one scheme's file from its pipe, and answers with one dictionary per event.

Events: {"event": "step", "step", "loss"}, {"event": "note", "text", "once"}, {"event": "done"}, {"event": "failed",
"status", "reason", "trace"}; status "disk" says that the disk is full, which is not the run's own fault. Records go
through files (suite.sweep.work_folder). The worker ends when its pipe closes, which means that its parent is gone, and it
takes no run after one that broke.
"""

from __future__ import annotations

import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue

from suite.isolation import forks

REPORT_EVERY = 0.5  # seconds between progress lines


def main(connection: Connection, file: str, results: str, features: str) -> None:
    """Serve until the pipe closes. file: of the schemes that this process trains; no other is imported here."""
    jobs = forks.heard(connection)

    def say(**event) -> None:
        forks.tell(connection, event)

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
        from suite.sweep.broken import failure

        say(event="failed", **failure(error), trace=traceback.format_exc())


def _serve(jobs: Queue[list[str]], say, file: str, results: Path, features: str) -> None:
    import torch

    from suite.protocol import Run
    from suite.sweep.execute import execute_all, load_alone

    last_graph, told = None, 0.0

    def report(step: int, loss: float) -> None:
        nonlocal told
        if time.monotonic() - told >= REPORT_EVERY:
            told = time.monotonic()
            say(event="step", step=step, loss=loss)

    while True:
        runs = [Run.from_json(text) for text in jobs.get()]
        run, told = runs[0], 0.0
        graph = (run.scheme, run.arm, run.params, repr(run.protocol.settings()))
        if last_graph is None:
            load_alone(run, file)
        elif graph != last_graph:  # a compiled block serves every depth of one scheme; more schemes would pile up guards
            torch._dynamo.reset()
        last_graph = graph
        execute_all(runs, results, features, report)
        say(event="done")
