"""The parent's side of a worker: its process, the pipe to it, and what is said of one that died or hung.

The other side, and the events that come through the pipe, are in `suite.sweep.worker`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from suite import environment
from suite.protocol import Run
from suite.sweep.groups import label
from suite.sweep.progress import Progress

STALL = 1800  # seconds without a word from a worker before it counts as hung: a 1000-block step takes seconds, not minutes
FAREWELL = 10  # seconds that a worker gets to end by itself


class WorkerProcess:
    """One worker process and the pipe to it; starts on first use and again after a death."""

    def __init__(self, results: Path, features: str, plugins: Sequence[str], number: int = 0) -> None:
        """number: of the worker, which chooses its card where there are several."""
        self.job = {"results": str(results), "features": features, "plugins": [str(Path(p).resolve()) for p in plugins]}
        self.process: subprocess.Popen | None = None
        self.log = results / ".work" / f"worker-{os.getpid()}-{id(self)}.log"
        self.number = number
        self.guard, self.ended = threading.Lock(), False

    def start(self) -> subprocess.Popen | None:
        """A fresh process; None if the worker has been stopped meanwhile."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        env = os.environ | threads | {"TORCHINDUCTOR_CACHE_DIR": str(environment.compile_cache()), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(environment.ROOT), env.get("PYTHONPATH")]))
        if cards := environment.cards():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(cards)))
            env["CUDA_VISIBLE_DEVICES"] = visible.split(",")[self.number % cards]
        env["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        with self.guard:
            if self.ended:
                return None
            self._close()
            with open(self.log, "wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "suite.sweep.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                    text=True, encoding="utf-8", env=env, start_new_session=True,  # Ctrl-C reaches the parent alone
                )  # fmt: skip
        return self.process

    def run(self, group: Sequence[Run], progress: Progress) -> dict:
        """Train runs as one model, or one; returns the last event, made up here if the worker died or hung."""
        process = self.process if self.process and self.process.poll() is None else self.start()
        if process is None:
            return {"event": "stopped"}
        hung = threading.Event()

        def kill() -> None:
            if select.select([process.stdout], [], [], 0)[0]:
                return  # it has spoken: not the worker but this process was stopped (Ctrl-Z) while the time ran out
            hung.set()
            process.kill()

        try:
            process.stdin.write(json.dumps(self.job | {"runs": [run.to_json() for run in group]}) + "\n")
            process.stdin.flush()
            while event := self._event(process, kill):
                if event["event"] == "step":
                    progress.step(group, event["step"], event["loss"])
                elif event["event"] == "note":
                    progress.say(f"{label(group)}: {event['text']}")
                else:
                    return event
        except BrokenPipeError:
            pass
        except ValueError:  # a pipe that `stop` closed, or a line cut short by the worker's death
            process.kill()
        code, words = process.wait(), self._last_words()
        if hung.is_set():
            return {"event": "failed", "status": "timeout", "reason": f"no progress for {STALL} s", "trace": words}
        if code == -signal.SIGKILL:
            reason = "worker was killed (signal 9), as the system does when memory runs out"
            return {"event": "failed", "status": "oom", "reason": reason, "trace": words}
        name = f"signal {_signal_name(-code)}" if code < 0 else f"exit status {code}"
        last = f": {words.splitlines()[-1]}" if code > 0 and words else ""
        return {"event": "failed", "status": "error", "reason": f"worker died ({name}){last}", "trace": words}

    def _event(self, process: subprocess.Popen, kill) -> dict | None:
        """The next event, None at the end of the pipe; a worker that says nothing for too long is killed."""
        timer = threading.Timer(STALL, kill)
        timer.daemon = True
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        return json.loads(line) if line else None

    def _last_words(self) -> str:
        """The end of what the process wrote on standard error."""
        try:
            return self.log.read_bytes()[-4000:].decode(errors="replace").strip()
        except OSError:
            return ""

    def _close(self) -> None:
        """Close the pipes to a process that has ended, or that ends when its input closes."""
        for pipe in (self.process.stdin, self.process.stdout) if self.process else ():
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def stop(self, force: bool = False) -> None:
        """End the process for good: at once, or by closing its input."""
        with self.guard:
            self.ended = True
        if self.process is None:
            return
        if force:
            self.process.kill()
        else:
            self._close()
        try:
            self.process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.unlink(missing_ok=True)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)
