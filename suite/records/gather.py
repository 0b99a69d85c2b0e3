"""Results folders put together into one: the shards of a sweep, or what several machines have trained.

The sources are only read, and all of them are checked before anything is written.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from suite.files import write_whole
from suite.records.byrun import CLOCK, SIDES, curve_digest
from suite.records.csvfile import parse, put_rows, render, to_rows
from suite.records.package import write_package
from suite.records.packed import remove, replace
from suite.records.schema import TABLES
from suite.records.store import REAL, RUNS, RowsByRun, Store, TableError, table_path


@dataclass(frozen=True)
class Found:
    """One run as a folder holds it: its row of runs.csv, and what the other tables hold of it, by table (`RowsByRun.written`).

    The real row of quality.csv is of no run and has no row of runs.csv.
    """

    folder: Path
    row: dict[str, str] | None
    written: dict[str, bytes]
    done: bool = False

    def differs(self, other: Found) -> str:
        """The first table but the clock's in which two runs differ, with the columns of runs.csv that do; "" where they are the same."""
        if columns := ", ".join(name for name in self.row if self.row[name] != other.row[name]):
            return f"runs.csv ({columns})"
        return next((name for name in SIDES if name != CLOCK and self.written.get(name) != other.written.get(name)), "")


Runs = dict[str, Found]  # by run id


def gather(sources: list[Path], results: Path, protocol: str | None = None) -> int:
    """Add the runs of `sources` (of one protocol, or of all) to `results`; returns how many of them were not there yet.

    A finished run stays before one that broke, or that has lost something in `results`; of two that broke, the later
    source's stays. Raises ValueError where there is nothing to gather, and TableError for tables of another version,
    a run of a source that has lost something, or two finished runs of one id whose tables differ.
    """
    gathered: dict[str, Runs] = defaultdict(dict)
    for source in sources:
        if source.resolve() == results.resolve():
            raise ValueError(f"--from {source}: is --results itself; name another folder there")
        folders = [path.parent for path in sorted(source.glob("*/runs.csv")) if protocol in (None, path.parent.name)]
        if not folders:
            raise ValueError(f"--from {source}: no results{f' of {protocol}' if protocol else ''} to gather; it holds no PROTOCOL/runs.csv")
        for folder in folders:
            _join(gathered[folder.name], _read(folder))
    with ExitStack() as stack:
        new = {}
        for name in gathered:
            stack.enter_context(Store(results / name).lock())
            new[name] = _join(_read(results / name, mendable=True), gathered[name])
        for name, runs in new.items():
            _write(results / name, runs)
    return sum(run_id != REAL for runs in new.values() for run_id in runs)


def _read(folder: Path, mendable: bool = False) -> Runs:
    """Every run of a protocol's folder that has a row in runs.csv, and the real row of quality.csv; none where there is no such table.

    mendable: a run that is not what its row was written for is no error, and is not done.
    """
    store = Store(folder)
    rows = store.runs()  # first: a sweep that is at work here writes it last
    held, found = RowsByRun(folder), {}
    for row in rows:
        written = store.whole(row, held)
        if written is None and not mendable:
            _refuse(folder, row, held.written(row))
        found[row["run_id"]] = Found(folder, row, written or {}, row["status"] == "done" and written is not None)
    if real := held.of_all("quality").get(REAL) if found else None:
        found[REAL] = Found(folder, None, {"quality": render(TABLES["quality"], real)})
    return found


def _refuse(folder: Path, row: dict[str, str], written: dict[str, bytes]) -> None:
    """TableError for a run that differs from its digest."""
    what, remedy = "a cell of it in some table, or its picture,", "restore it or run it again there"
    if row["curve_digest"] != curve_digest(written.get("curves", b"")):
        what, remedy = "its curve", "run it again there"
    raise TableError(folder / RUNS.path, f"run {row['run_id']}: {what} differs from its digest", remedy)


def _join(here: Runs, more: Runs) -> Runs:
    """Add `more` to `here`; returns what was new or took the place of a run that is not done."""
    taken = {}
    for run_id, run in more.items():
        old = here.get(run_id)
        if old and old.done:
            if run.done and (where := old.differs(run)):
                what = f"run {run_id} differs from that of {run.folder} in {where}"
                raise TableError(old.folder, what, "keep one: leave a folder out, or drop the run from one of them")
        elif old is None or (old.row, old.written) != (run.row, run.written):
            here[run_id] = taken[run_id] = run
    return taken


def _write(folder: Path, runs: Runs) -> None:
    """Put runs into the tables of a folder that is locked; pictures first, runs.csv last, as Store.add does."""
    for run_id, run in runs.items():
        for picture in (run.folder / "samples").glob(f"*-{run_id}.png"):
            write_whole(folder / "samples" / picture.name, picture.read_bytes())
    for table in (TABLES[name] for name in SIDES):
        files = [(table_path(folder, table, run.row), run.written.get(table.name)) for run in runs.values() if run.row or not table.by_run]
        if not table.by_run:
            path = folder / table.path
            put_rows(path, table, [row for _, data in files if data for row in to_rows(parse(path, table, data))], runs)
            continue
        for path, data in files:
            if data:
                replace(path, data)
            elif path.exists():
                remove(path)
    put_rows(folder / RUNS.path, RUNS, [run.row for run in runs.values() if run.row], runs)
    write_package(folder)
