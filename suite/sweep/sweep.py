"""A plan made true: worker processes take the runs that are not done, and each finished run goes into the tables."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NoReturn

from suite import environment
from suite.protocol import Run
from suite.records.completeness import done_ids, lacking
from suite.records.csvfile import PACKAGE, package_text
from suite.records.tables import Store, TableError, write_package
from suite.sweep.execute import identity, work_folder
from suite.sweep.progress import Progress

STALL = 1800  # seconds without a word from a worker before it counts as hung: a 1000-block step takes seconds, not minutes
FAREWELL = 10  # seconds that a worker gets to end by itself
BUSY_WAIT = 2.0  # seconds before looking again at a run that another sweep holds


class SweepError(RuntimeError):
    """The sweep itself cannot go on (disk full, unreadable tables); the message is one line for the user."""


class Worker:
    """One worker process and the pipe to it; starts on first use and again after a death."""

    def __init__(self, results: Path, features: str, plugins: Sequence[str], kernels: str = "auto") -> None:
        self.job = {"results": str(results), "features": features, "plugins": [str(Path(p).resolve()) for p in plugins], "kernels": kernels}
        self.process: subprocess.Popen | None = None
        self.log = results / ".work" / f"worker-{os.getpid()}-{id(self)}.log"
        self.cache = results / ".work" / "compile-cache"
        self.guard, self.ended = threading.Lock(), False

    def start(self) -> subprocess.Popen | None:
        """A fresh process; None if the worker has been stopped meanwhile."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        env = os.environ | threads | {"TORCHINDUCTOR_CACHE_DIR": str(self.cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(environment.ROOT), env.get("PYTHONPATH")]))
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

    def run(self, run: Run, progress: Progress) -> dict:
        """Train one run; returns its last event, made up here if the worker died or hung."""
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
            process.stdin.write(json.dumps(self.job | {"run": run.to_json()}) + "\n")
            process.stdin.flush()
            while event := self._event(process, kill):
                if event["event"] == "step":
                    progress.step(run, event["step"], event["loss"])
                elif event["event"] == "note":
                    progress.say(f"{run.label()}: {event['text']}")
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


class Claim:
    """An exclusive hold on one run across sweeps; the system drops it when its owner dies."""

    def __init__(self, results: Path, run_id: str) -> None:
        self.path = work_folder(results, run_id) / ".lock"
        self.file: IO[str] | None = None

    def take(self) -> bool:
        """Whether the hold is ours now; False if another process, or another Claim of this one, has it."""
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = open(self.path, "w")
            except FileNotFoundError:  # a former owner has just cleared the folder away
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_ino == os.stat(self.path).st_ino:
                    self.file = file
                    return True
            except BlockingIOError:
                file.close()
                return False
            except FileNotFoundError:
                pass
            file.close()  # a hold on a file that is no longer there holds nothing: try again

    def drop(self, clear: bool = False) -> None:
        """Let go; `clear` removes the run's working folder first."""
        if clear:
            shutil.rmtree(self.path.parent, ignore_errors=True)
        if self.file is not None:
            self.file.close()


class Sweep:
    """The state of one `run`: what is left, and what came of it."""

    def __init__(
        self, runs: list[Run], results: Path, *, workers: int, features: str, plugins: Sequence[str], retry: bool, kernels: str = "auto"
    ) -> None:
        self.results, self.features, self.plugins, self.kernels = results, features, plugins, kernels
        self.stores = {run.protocol.name: Store(results / run.protocol.name) for run in runs}
        lacks = {run_id: words for store in self.stores.values() for run_id, words in lacking(store).items()}
        done: set[str] = set().union(*(s.done_ids() for s in self.stores.values())) - set(lacks)
        failed: set[str] = set().union(*(s.failed_ids() for s in self.stores.values()))
        skip = done if retry else done | failed
        self.skipped = sum(run.run_id in skip for run in runs)
        self.todo = deque(run for run in runs if run.run_id not in skip)
        self.todo = deque(sorted(self.todo, key=lambda r: -r.depth))  # the longest first, so that the end is not one run
        self.partial = [(run, lacks[run.run_id]) for run in self.todo if run.run_id in lacks]
        self.total = len(self.todo)
        self.workers = max(1, min(workers, self.total))
        self.failed_before = failed
        self.old_failures = 0 if retry else sum(r.run_id in failed for r in runs)
        self.done_before = [run.run_id for run in runs if run.run_id in done]
        self.broken: list[tuple[Run, str]] = []
        self.finished = 0
        self.fatal: queue.Queue[BaseException] = queue.Queue()
        self.stop = threading.Event()
        self.guard = threading.Lock()
        self.waiting: set[str] = set()
        self.progress: Progress

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
                finished = False
                try:
                    status = self.done_elsewhere(run) or self.one(run, worker)
                    finished = status == "done"
                finally:
                    claim.drop(clear=finished)
        except BaseException as error:
            self.fatal.put(error)
            self.stop.set()

    def done_elsewhere(self, run: Run) -> str:
        """The status of a run that another sweep has finished since this one made its plan, else ""."""
        store = self.stores[run.protocol.name]
        row = next((row for row in store.runs() if row["run_id"] == run.run_id), None)
        if row is None:
            return ""
        broken = row["status"] != "done" and run.run_id not in self.failed_before
        if not broken and run.run_id not in done_ids(store):
            return ""
        with self.guard:
            self.finished += 1
            if broken:
                self.broken.append((run, f"{row['status']}: {row['reason']}"))
            self.progress.say(f"[{self.finished}/{self.total}] {run.label()}: another sweep has done it")
        return row["status"]

    def one(self, run: Run, worker: Worker) -> str:
        """Train one run and put its rows, or its failure, into the tables; its status, "" if the sweep was stopped."""
        store, folder = self.stores[run.protocol.name], work_folder(self.results, run.run_id)
        record = _read_record(folder / "record.json", run.run_id)
        if record is not None and (fault := _misfit(store, record)):
            self.progress.say(f"{run.label()}: what an earlier call left does not fit ({fault}); it is trained again")
            (folder / "record.json").unlink()
            record = None
        if record is None:
            self.progress.begin(run)
            event = worker.run(run, self.progress)
            if self.stop.is_set():
                return ""
            if event.get("status") == "disk":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.results))
            record = _read_record(folder / "record.json", run.run_id)  # also that of a worker killed after it wrote it
            if record is None:
                reason = event.get("reason", "worker left no record")
                record = {"run": identity(run) | {"status": event.get("status", "error"), "reason": reason}}
                if event.get("trace"):
                    (folder / "error.txt").write_text(event["trace"], encoding="utf-8")
        with store.lock():
            store.add(record)
        row = record["run"]
        with self.guard:
            self.finished += 1
            if row["status"] != "done":
                self.broken.append((run, f"{row['status']}: {row['reason']}"))
        self.progress.end(run, row, self.finished, self.total)
        return row["status"]

    def run(self) -> None:
        """Work through the plan; raises KeyboardInterrupt or SweepError after stopping every worker."""
        try:
            self.tidy()
        except (OSError, TableError) as error:
            self.fail(error)
        workers = [Worker(self.results, self.features, self.plugins, self.kernels) for _ in range(self.workers)] if self.todo else []
        threads = [threading.Thread(target=self.work, args=(w,), daemon=True) for w in workers]
        with Progress(self.workers) as self.progress:
            try:
                for thread in threads:
                    thread.start()
                while any(thread.is_alive() for thread in threads) and not self.stop.is_set():
                    for thread in threads:
                        thread.join(0.1)
            except KeyboardInterrupt:
                self.stop.set()
                raise
            finally:
                for worker in workers:
                    worker.stop(force=self.stop.is_set())
                for thread in threads:
                    if thread.is_alive():
                        thread.join(1)  # it may be putting a finished run into the tables
        if not self.fatal.empty():
            self.fail(self.fatal.get())

    def fail(self, error: BaseException) -> NoReturn:
        """Raise a SweepError of one line for what is the user's to mend, a bug as it is."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = f"the disk under {self.results} is full; make room and call again: everything finished is kept"
            raise SweepError(full) from error
        if isinstance(error, OSError | TableError):
            raise SweepError(str(error)) from error
        raise error

    def tidy(self) -> None:
        """Mend what a killed sweep left: a stale data package, logs of dead parents' workers, folders of runs that are done."""
        for store in self.stores.values():
            if self.todo:
                with store.lock():
                    pass  # a folder that cannot be written is refused now rather than after the first training
            package = store.folder / PACKAGE
            if store.runs() and not (package.exists() and package.read_text(encoding="utf-8") == package_text(store.folder)):
                with store.lock():
                    write_package(store.folder)
        work = self.results / ".work"
        for log in work.glob("worker-*-*.log"):
            pid = log.name.split("-")[1]
            if pid.isdigit() and not _alive(int(pid)):
                log.unlink(missing_ok=True)
        for run_id in self.done_before:
            if (work / run_id).exists() and (claim := Claim(self.results, run_id)).take():
                claim.drop(clear=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _misfit(store: Store, record: dict) -> str:
    """Why a record that another version of the suite wrote cannot go into the tables of this one, or ""."""
    try:
        store.laid_out(record)
    except TableError as error:
        return error.what
    return ""


def _read_record(path: Path, run_id: str) -> dict | None:
    """A finished run's record left by a worker, or None."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if record["run"]["run_id"] == run_id else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
