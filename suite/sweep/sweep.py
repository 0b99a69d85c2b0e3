"""A plan made true: worker processes take the runs that are not done, and each finished run goes into the tables."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import NoReturn

from suite import environment
from suite.isolation import forks
from suite.isolation.catalogue import Catalogue, read
from suite.protocol import Run
from suite.records.package import is_current, write_package
from suite.records.store import Store, TableError
from suite.sweep.backlog import Backlog, Standing
from suite.sweep.broken import identity
from suite.sweep.claim import Claim
from suite.sweep.progress import Progress, words
from suite.sweep.work_folder import read_record, record_path, save_trace
from suite.sweep.worker_process import Kind, WorkerProcess


class SweepError(RuntimeError):
    """The sweep itself cannot go on (disk full, unreadable tables); the message is one line for the user."""


class Sweep:
    """One call of `run`: the backlog, the workers on it, and what came of the runs they took."""

    def __init__(
        self, runs: list[Run], results: Path, *, workers: int | None, features: str, retry: bool, replicas: int | None = None,
        catalogue: Catalogue | None = None,
    ) -> None:  # fmt: skip
        """workers: processes; None: one per card, or per usable core where there is no card, never more than cores.

        replicas: how many runs are trained as one model at most, as `in_groups` has it. catalogue: that the runs were
        planned with.
        """
        self.catalogue = catalogue or read()
        self.results = results
        self.before = Standing(runs, results, retry)
        self.stores = self.before.stores
        self.backlog = Backlog(self.before.todo, results, replicas, self.kind_of)
        cores = environment.usable_cores()
        self.workers = max(1, min(workers or forks.cards() or cores, workers or cores, len(self.backlog.todo)))
        self.features = features
        self.broken: list[tuple[Run, str]] = []
        self.done: set[str] = set()  # with those that another sweep has done meanwhile
        self.finished = 0
        self.fatal: list[BaseException] = []
        self.stop = threading.Event()
        self.guard = threading.Lock()
        self.progress: Progress

    def kind_of(self, run: Run) -> Kind:
        """What a worker must be started for to train a run."""
        return self.catalogue.get(run.scheme, run.arm).file, run.protocol.dtype

    def work(self, worker: WorkerProcess) -> None:
        """The life of one worker: a thread that feeds it runs until none is left."""
        try:
            while taken := self.backlog.take(self.stop, self.progress.say, worker.kind):
                group, claims = taken
                try:
                    if left := [run for run in group if not self.done_elsewhere(run)]:
                        self.one(left, worker)
                finally:
                    for run, claim in zip(group, claims, strict=True):
                        claim.drop(clear=run.run_id in self.done)
        except BaseException as error:
            self.fatal.append(error)
            self.stop.set()

    def ended(self, run: Run, row: dict) -> int:
        """Count a run of which the tables now have a row; returns how many have ended."""
        with self.guard:
            self.finished += 1
            if row["status"] == "done":
                self.done.add(run.run_id)
            else:
                self.broken.append((run, f"{row['status']}: {row['reason']}"))
            return self.finished

    def done_elsewhere(self, run: Run) -> bool:
        """Whether another sweep has brought a run to its end since this one made its plan."""
        store = self.stores[run.protocol.name]
        row = next((row for row in store.runs() if row["run_id"] == run.run_id), None)
        if row is None or run.run_id in self.before.failed and row["status"] != "done":
            return False
        if row["status"] == "done" and run.run_id not in store.done_ids():
            return False
        self.progress.say(f"[{self.ended(run, row)}/{self.backlog.total}] {run.label()}: another sweep has done it")
        return True

    def one(self, group: list[Run], worker: WorkerProcess) -> None:
        """Train a group and put its rows, or its failures, into the tables; nothing if the sweep was stopped."""
        store = self.stores[group[0].protocol.name]
        records = {run.run_id: self.left_over(run) for run in group}
        if not all(records.values()):
            self.progress.begin(group)
            event = worker.run(group, self.progress)
            if self.stop.is_set():
                return
            if event.get("status") == "disk":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.results))
            for run in group:  # also what a worker left that was killed after it had written it
                records[run.run_id] = read_record(self.results, run.run_id) or self.failed(run, group, event)
        with store.lock():
            for record in records.values():
                store.add(record)
        for run in group:
            row = records[run.run_id]["run"]
            if row["status"] != "done":  # what a retry must not find
                record_path(self.results, run.run_id).unlink(missing_ok=True)
            self.progress.end(run, row, self.ended(run, row), self.backlog.total)

    def left_over(self, run: Run) -> dict | None:
        """The record that an earlier call left of a run, unless it does not fit the tables of this version."""
        record = read_record(self.results, run.run_id)
        if record is not None and (fault := _misfit(self.stores[run.protocol.name], record)):
            self.progress.say(f"{run.label()}: what an earlier call left does not fit ({fault}); it is trained again")
            record_path(self.results, run.run_id).unlink()
            return None
        return record

    def failed(self, run: Run, group: list[Run], event: dict) -> dict:
        """The record of a run that left none, from the worker's last event."""
        status, reason = event.get("status", "error"), event.get("reason", "worker left no record")
        if status == "oom" and len(group) > 1:
            reason += f"; {len(group)} runs were trained as one: call with a smaller --replicas"
        if event.get("trace"):
            save_trace(event["trace"], self.results, run.run_id)
        return {"run": identity(run, group) | {"status": status, "reason": reason}}

    def run(self) -> None:
        """Work through the plan; raises KeyboardInterrupt or SweepError after stopping every worker."""
        try:
            self.tidy()
        except (OSError, TableError) as error:
            self.fail(error)
        self.catalogue.rest()  # before the training, for which its memory is
        count = self.workers if self.backlog.todo else 0
        workers = [WorkerProcess(self.results, self.features, self.kind_of, number) for number in range(count)]
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
        if self.fatal:
            self.fail(self.fatal[0])

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
            if store.runs() and not is_current(store.folder):
                with store.lock():
                    write_package(store.folder)
        work = self.results / ".work"
        for log in work.glob("worker-*-*.log"):
            pid = log.name.split("-")[1]
            if pid.isdigit() and not _alive(int(pid)):
                log.unlink(missing_ok=True)
        for run in self.before.runs:
            if run.run_id in self.before.done and (work / run.run_id).exists():
                if (claim := Claim(self.results, run.run_id)).take():
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
        words(record["run"])  # as they will be said
    except TableError as error:
        return error.what
    except Exception as error:  # somebody has edited it
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""
