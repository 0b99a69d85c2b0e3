"""A plan made true: worker processes take the runs that are not done, and each finished run goes into the tables."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from suite import environment
from suite.execute import identity, work_folder
from suite.progress import Progress
from suite.protocol import Run
from suite.tables import Store, TableError

STALL = 1800  # seconds without a word from a worker before it counts as hung: a 1000-block step takes seconds, not minutes
BUSY_WAIT = 2.0  # seconds before looking again at a run that another sweep holds


class SweepError(RuntimeError):
    """The sweep itself cannot go on (disk full, unreadable tables); the message is one line for the user."""


class Worker:
    """One worker process and the pipe to it; starts on first use and again after a death."""

    def __init__(self, results: Path, features: str, plugins: Sequence[str]) -> None:
        self.job = {"results": str(results), "features": features, "plugins": [str(Path(p).resolve()) for p in plugins]}
        self.process: subprocess.Popen | None = None
        self.log = results / ".work" / f"worker-{os.getpid()}-{id(self)}.log"
        self.cache = results / ".work" / "compile-cache"

    def start(self) -> subprocess.Popen:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        env = os.environ | threads | {"TORCHINDUCTOR_CACHE_DIR": str(self.cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(environment.ROOT), env.get("PYTHONPATH")]))
        env["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "suite.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, encoding="utf-8", env=env, start_new_session=True,  # Ctrl-C reaches the parent alone
            )  # fmt: skip
        return self.process

    def run(self, run: Run, progress: Progress) -> dict:
        """Train one run; returns its last event, made up here if the worker died or hung."""
        process = self.process if self.process and self.process.poll() is None else self.start()
        timer = threading.Timer(STALL, process.kill)
        hung = threading.Event()

        def kill() -> None:
            hung.set()
            process.kill()

        try:
            process.stdin.write(json.dumps(self.job | {"run": run.to_json()}) + "\n")
            process.stdin.flush()
            while True:
                timer = threading.Timer(STALL, kill)
                timer.daemon = True
                timer.start()
                line = process.stdout.readline()
                timer.cancel()
                if not line:
                    break
                event = json.loads(line)
                if event["event"] != "step":
                    return event
                progress.step(run, event["step"], event["loss"])
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        code = process.wait()
        if hung.is_set():
            return {"event": "failed", "status": "timeout", "reason": f"no progress for {STALL} s"}
        if code == -signal.SIGKILL:
            return {"event": "failed", "status": "oom", "reason": "worker was killed (signal 9), as the system does when memory runs out"}
        name = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return {"event": "failed", "status": "error", "reason": f"worker died ({name})"}

    def stop(self, force: bool = False) -> None:
        """End the process: at once, or by closing its input."""
        if self.process is None:
            return
        if force:
            self.process.kill()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()
        self.log.unlink(missing_ok=True)


class Claim:
    """An exclusive hold on one run across sweeps; the system drops it when its owner dies."""

    def __init__(self, results: Path, run_id: str) -> None:
        path = work_folder(results, run_id) / ".lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "w")

    def take(self) -> bool:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False

    def drop(self) -> None:
        self.file.close()


class Sweep:
    """The state of one `run`: what is left, and what came of it."""

    def __init__(self, runs: list[Run], results: Path, *, workers: int, features: str, plugins: Sequence[str], retry: bool):
        self.results, self.features, self.plugins = results, features, plugins
        self.stores = {run.protocol.name: Store(results / run.protocol.name) for run in runs}
        done: set[str] = set().union(*(s.done_ids() for s in self.stores.values()))
        failed: set[str] = set().union(*(s.failed_ids() for s in self.stores.values()))
        skip = done if retry else done | failed
        self.skipped = sum(run.run_id in skip for run in runs)
        self.todo = deque(run for run in runs if run.run_id not in skip)
        self.todo = deque(sorted(self.todo, key=lambda r: -r.depth))  # the longest first, so that the end is not one run
        self.total = len(self.todo)
        self.workers = max(1, min(workers, self.total))
        self.old_failures = 0 if retry else sum(r.run_id in failed for r in runs)
        self.broken: list[tuple[Run, str]] = []
        self.finished = 0
        self.fatal: queue.Queue[BaseException] = queue.Queue()
        self.stop = threading.Event()
        self.guard = threading.Lock()
        self.waiting: set[str] = set()

    def next_run(self) -> tuple[Run, Claim] | None:
        """A run that nobody else holds, with a hold on it; waits while every one left is held by another sweep."""
        while not self.stop.is_set():
            with self.guard:
                left = list(self.todo)
                if not left:
                    return None
                for run in left:
                    claim = Claim(self.results, run.run_id)
                    if claim.take():
                        self.todo.remove(run)
                        return run, claim
                    claim.drop()
                    if run.run_id not in self.waiting:
                        self.waiting.add(run.run_id)
                        self.progress.say(f"{run.label()}: another sweep holds it; taking others, then waiting")
            self.stop.wait(BUSY_WAIT)
        return None

    def work(self, worker: Worker) -> None:
        """The life of one worker: a thread that feeds it runs until none is left."""
        try:
            while (taken := self.next_run()) is not None:
                run, claim = taken
                try:
                    self.one(run, worker)
                finally:
                    claim.drop()
        except BaseException as error:
            self.fatal.put(error)
            self.stop.set()

    def one(self, run: Run, worker: Worker) -> None:
        """Train one run unless another sweep has meanwhile; put its rows, or its failure, into the tables."""
        store, folder = self.stores[run.protocol.name], work_folder(self.results, run.run_id)
        if run.run_id in self.waiting and run.run_id in store.done_ids():
            self.finished += 1
            return
        ready = folder / "record.json"
        record = _read_record(ready, run.run_id)
        if record is None:
            self.progress.begin(run)
            event = worker.run(run, self.progress)
            if self.stop.is_set():
                return
            record = _read_record(ready, run.run_id) if event["event"] == "done" else None
            if record is None:
                reason = event.get("reason", "worker left no record")
                record = {"run": identity(run) | {"status": event.get("status", "error"), "reason": reason}}
                if event.get("trace"):
                    (folder / "error.txt").write_text(event["trace"])
        with store.lock():
            store.add(record)
        row = record["run"]
        with self.guard:
            self.finished += 1
            if row["status"] != "done":
                self.broken.append((run, f"{row['status']}: {row['reason']}"))
        self.progress.end(run, row, self.finished, self.total)
        if row["status"] == "done":
            shutil.rmtree(folder, ignore_errors=True)

    def run(self) -> None:
        """Work through the plan; raises KeyboardInterrupt or SweepError after stopping every worker."""
        if not self.todo:
            return
        workers = [Worker(self.results, self.features, self.plugins) for _ in range(self.workers)]
        with Progress(self.workers) as self.progress:
            threads = [threading.Thread(target=self.work, args=(w,), daemon=True) for w in workers]
            for thread in threads:
                thread.start()
            try:
                while any(thread.is_alive() for thread in threads):
                    for thread in threads:
                        thread.join(0.1)
            except KeyboardInterrupt:
                self.stop.set()
                raise
            finally:
                for worker in workers:
                    worker.stop(force=self.stop.is_set())
        if not self.fatal.empty():
            error = self.fatal.get()
            if isinstance(error, OSError | TableError):
                raise SweepError(str(error)) from error
            raise error


def _read_record(path: Path, run_id: str) -> dict | None:
    """A finished run's record left by a worker, or None."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if record["run"]["run_id"] == run_id else None
