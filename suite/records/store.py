"""The results of one protocol: runs added from several processes, and which of them are done.

A run is committed by its row in runs.csv, written last. This is what other rooms import of the tables; files and
their format are in `suite.records.csvfile`, columns in `suite.records.schema`. Nothing here imports torch, and pandas
only inside `read`.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

from suite.records.byrun import SIDES, RowsByRun, curve_digest, rows_digest, trajectory
from suite.records.csvfile import as_text, put_rows, read_rows, render, write_rows
from suite.records.frame import read
from suite.records.layout import table_files, table_path
from suite.records.package import write_package
from suite.records.packed import content
from suite.records.schema import TABLES
from suite.records.tableerror import DamagedFile, TableError
from suite.records.values import format_table, format_value

__all__ = ["REAL", "TABLES", "RowsByRun", "Store", "TableError", "content", "format_table", "format_value", "picture_path", "put_rows",
           "read", "read_rows", "table_files", "table_path", "write_package", "write_rows"]

RUNS = TABLES["runs"]
REAL = "real"  # run_id of the real-against-real row of quality.csv, which belongs to no run


def picture_path(folder, scheme: str, depth: int | str, run_id: str) -> Path:
    """Where the sample grid of a run lies."""
    return Path(folder) / "samples" / f"{scheme}-L{depth}-{run_id}.png"


class Store:
    """The tables of one protocol, open for adding runs from several processes."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self._thread_lock, self._held = threading.RLock(), False

    @contextmanager
    def lock(self):
        """Exclusive hold on the folder across threads and processes; may be nested. A kill releases it."""
        import fcntl  # absent on Windows, where reading and drawing still work

        with self._thread_lock:
            if self._held:
                yield
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / ".lock", "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._held = True
                try:
                    yield
                finally:
                    self._held = False

    @contextmanager
    def still(self):
        """Keep writers out while the folder is looked at as a whole; one that nobody ever wrote to here has none."""
        import fcntl

        try:
            file = open(self.folder / ".lock")
        except FileNotFoundError:
            yield
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def runs(self) -> list[dict[str, str]]:
        """The rows of runs.csv as text; none where there is no table yet."""
        path = self.folder / RUNS.path
        return read_rows(path, RUNS) if path.exists() else []

    def done_ids(self) -> set[str]:
        """The runs that are done: ended as planned (collapses included), with every cell and picture that their row was written for.

        The one meaning of done, for whoever asks what is left to train.
        """
        held = RowsByRun(self.folder)
        return {row["run_id"] for row in self.runs() if row["status"] == "done" and self.whole(row, held) is not None}

    def whole(self, row: dict[str, str], held: RowsByRun) -> dict[str, bytes] | None:
        """What the other tables hold of a run, as `RowsByRun.written` has it; None where that is not all that its row was written for."""
        try:
            written = held.written(row)
        except DamagedFile:
            return None
        return written if row["rows_digest"] == self.digest(row, written) else None

    def failed_ids(self) -> set[str]:
        """Runs that were attempted and stopped by memory, time or an error: not repeated unless asked for."""
        return {row["run_id"] for row in self.runs() if row["status"] != "done"}

    def add(self, record: dict) -> None:
        """Add or replace one run: `run` is its row, `curve`, `evals`, `quality`, … lists of rows without run_id.

        All is checked before anything is written, and runs.csv is written last of the tables: a run whose add was
        killed is not done, and adding it again replaces what was left. The real row of quality.csv may come with any
        run.
        """
        run_id, row, sides = self.laid_out(record)
        with self.lock():
            for path, table, rows in sides:
                if table.by_run:
                    write_rows(path, table, rows)
                else:
                    put_rows(path, table, rows, drop_run_ids=[run_id])
            put_rows(self.folder / RUNS.path, RUNS, row)
            write_package(self.folder)

    def laid_out(self, record: dict) -> tuple[str, list[dict[str, str]], list[tuple]]:
        """(run_id, its row, (path, table, rows) of every other table) of a record, all as text; TableError where it does not fit."""
        run = dict(record["run"])
        run_id, runs_path = run["run_id"], self.folder / RUNS.path
        parts = {name: "curve" if name == "curves" else name for name in SIDES}
        if unknown := set(record) - {"run"} - set(parts.values()):
            raise TableError(self.folder, f"record holds unknown parts {sorted(unknown)}", "see Store.add")
        if run_id == REAL:
            raise TableError(runs_path, f"run_id {REAL!r} is reserved", "it names the real row of quality.csv")
        # Free text from exceptions: whatever it holds must not cost the run its row.
        reason = " ".join((run.get("reason") or "").split())
        run["reason"] = "".join(char for char in reason if char.isprintable())[:300]
        sides, written = [], {}
        for name, part in parts.items():
            table, path = TABLES[name], table_path(self.folder, TABLES[name], run)
            rows = as_text(path, table, [{"run_id": run_id} | row for row in record.get(part) or ()])
            legal = {run_id, REAL} if name == "quality" else {run_id}
            if foreign := {row["run_id"] for row in rows} - legal:
                raise TableError(path, f"record of {run_id!r} holds rows of {sorted(foreign)}", "leave run_id out of the rows")
            sides.append((path, table, rows))
            if own := [row for row in rows if row["run_id"] == run_id]:  # the real row of quality.csv is of no run
                written[name] = render(table, own)
        run["curve_digest"] = curve_digest(written.get("curves", b""))
        (row,) = as_text(runs_path, RUNS, [run])
        row["trajectory"] = trajectory(row)
        row["rows_digest"] = self.digest(row, written)
        return run_id, [row], sides

    def digest(self, row: dict[str, str], written: dict[str, bytes]) -> str:
        """`rows_digest` of a run from its row and what the other tables hold of it."""
        return rows_digest(row, written, picture_path(self.folder, row["scheme"], row["depth"], row["run_id"]))
