"""A plan made true: worker processes take the runs that are not done, and each finished run goes into the tables."""

from __future__ import annotations

import errno
import json
import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from suite.protocol import Run
from suite.records.completeness import done_ids
from suite.records.csvfile import PACKAGE, package_text
from suite.records.tables import Store, TableError, write_package
from suite.sweep.backlog import Backlog
from suite.sweep.claim import Claim
from suite.sweep.execute import identity, work_folder
from suite.sweep.progress import Progress
from suite.sweep.worker_process import WorkerProcess


class SweepError(RuntimeError):
    """The sweep itself cannot go on (disk full, unreadable tables); the message is one line for the user."""


class Sweep:
    """One call of `run`: the backlog, the workers on it, and what came of the runs they took."""

    def __init__(
        self, runs: list[Run], results: Path, *, workers: int, features: str, plugins: Sequence[str], retry: bool, kernels: str = "auto"
    ) -> None:
        self.results = results
        self.stores = {run.protocol.name: Store(results / run.protocol.name) for run in runs}
        self.backlog = Backlog(runs, results, self.stores, retry)
        self.workers = max(1, min(workers, self.backlog.total))
        self.settings = {"features": features, "plugins": plugins, "kernels": kernels}  # of every worker
        self.broken: list[tuple[Run, str]] = []
        self.finished = 0
        self.fatal: queue.Queue[BaseException] = queue.Queue()
        self.stop = threading.Event()
        self.guard = threading.Lock()
        self.progress: Progress

    def work(self, worker: WorkerProcess) -> None:
        """The life of one worker: a thread that feeds it runs until none is left."""
        try:
            while (taken := self.backlog.take(self.stop, self.progress.say)) is not None:
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

    def ended(self, run: Run, row: dict) -> int:
        """Count a run of which the tables now have a row; returns how many have ended."""
        with self.guard:
            self.finished += 1
            if row["status"] != "done":
                self.broken.append((run, f"{row['status']}: {row['reason']}"))
            return self.finished

    def done_elsewhere(self, run: Run) -> str:
        """The status of a run that another sweep has finished since this one made its plan, else ""."""
        store = self.stores[run.protocol.name]
        row = next((row for row in store.runs() if row["run_id"] == run.run_id), None)
        if row is None:
            return ""
        if row["status"] != "done" and run.run_id in self.backlog.failed_before:
            return ""
        if row["status"] == "done" and run.run_id not in done_ids(store):
            return ""
        count = self.ended(run, row)
        self.progress.say(f"[{count}/{self.backlog.total}] {run.label()}: another sweep has done it")
        return row["status"]

    def one(self, run: Run, worker: WorkerProcess) -> str:
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
        self.progress.end(run, row, self.ended(run, row), self.backlog.total)
        return row["status"]

    def run(self) -> None:
        """Work through the plan; raises KeyboardInterrupt or SweepError after stopping every worker."""
        try:
            self.tidy()
        except (OSError, TableError) as error:
            self.fail(error)
        workers = [WorkerProcess(self.results, **self.settings) for _ in range(self.workers if self.backlog.todo else 0)]
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
            if self.backlog.todo:
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
        for run_id in self.backlog.done_before:
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
