"""The parent's side of a worker: its process, the pipe to it, and what is said of one that died or hung.

The other side, and the events that come through the pipe, are in `suite.sweep.worker`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from suite.isolation import forks
from suite.protocol import Run
from suite.sweep import worker
from suite.sweep.groups import label
from suite.sweep.progress import Progress

STALL = 1800  # seconds without a word from a worker before it counts as hung: a 1000-block step takes seconds, not minutes
FAREWELL = 10  # seconds that a worker gets to end by itself
Kind = tuple[str, str]  # what a process is for: a scheme's file, and a dtype, as Accelerate keeps one for as long as a process lives


class WorkerProcess:
    """One worker process and the pipe to it; starts on first use, and again for another kind of runs, after a death or a broken run."""

    def __init__(self, results: Path, features: str, kind_of: Callable[[Run], Kind], number: int = 0) -> None:
        """number: of the worker, which chooses its card where there are several."""
        self.job, self.kind_of = (str(results), features), kind_of
        self.kind: Kind | None = None
        self.process: BaseProcess | None = None
        self.pipe: Connection | None = None
        self.log = results / ".work" / f"worker-{os.getpid()}-{id(self)}.log"
        self.number = number
        self.guard, self.ended = threading.Lock(), False

    def start(self, kind: Kind) -> bool:
        """A fresh process; False if the worker has been stopped meanwhile."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        own = {}
        if cards := forks.cards():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(cards)))
            own["CUDA_VISIBLE_DEVICES"] = visible.split(",")[self.number % cards]
        with self.guard:
            if self.ended:
                return False
            self._end()
            self.process, self.pipe = forks.fork(worker.main, kind[0], *self.job, log=self.log, **own)
            self.kind = kind
        return True

    def run(self, group: Sequence[Run], progress: Progress) -> dict:
        """Train runs as one model, or one; returns the last event, made up here if the worker died or hung."""
        kind = self.kind_of(group[0])
        if not (self.kind == kind and self.process.is_alive()) and not self.start(kind):
            return {"event": "stopped"}
        process, pipe, hung = self.process, self.pipe, False
        try:
            pipe.send([run.to_json() for run in group])
            while pipe.poll(STALL) or pipe.poll():  # once more: it may have spoken while this process was stopped (Ctrl-Z)
                event = pipe.recv()
                if event["event"] == "step":
                    progress.step(group, event["step"], event["loss"])
                elif event.get("once"):
                    progress.say_once(event["text"])
                elif event["event"] == "note":
                    progress.say(f"{label(group)}: {event['text']}")
                else:
                    self.kind = self.kind if event["event"] == "done" else None
                    return event
            hung = True
            process.kill()
        except EOFError:
            pass
        except OSError:  # a pipe that `stop` closed, or words cut short by the worker's death
            process.kill()
        self.kind = None
        process.join()
        code, words = process.exitcode, self._last_words()
        if hung:
            return {"event": "failed", "status": "timeout", "reason": f"no progress for {STALL} s", "trace": words}
        if code == -signal.SIGKILL:
            reason = "worker was killed (signal 9), as the system does when memory runs out"
            return {"event": "failed", "status": "oom", "reason": reason, "trace": words}
        last = f": {words.splitlines()[-1]}" if code > 0 and words else ""
        return {"event": "failed", "status": "error", "reason": f"worker died ({forks.ending(code)}){last}", "trace": words}

    def _last_words(self) -> str:
        """The end of what the process wrote on standard error."""
        try:
            return self.log.read_bytes()[-4000:].decode(errors="replace").strip()
        except OSError:
            return ""

    def _end(self, force: bool = False) -> None:
        """End the process: at once, or by closing its pipe."""
        if self.process is None:
            return
        if force:
            self.process.kill()
        else:
            self.pipe.close()
        self.process.join(FAREWELL)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()

    def stop(self, force: bool = False) -> None:
        """End the process for good."""
        with self.guard:
            self.ended = True
        self._end(force)
        self.log.unlink(missing_ok=True)
