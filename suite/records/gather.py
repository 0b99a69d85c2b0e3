"""Results folders put together into one: the shards of a sweep, or what several machines have trained.

The sources are only read, and all of them are checked before anything is written.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from suite.records.csvfile import Rows, put_rows
from suite.records.digest import written_curve_digest
from suite.records.package import write_package
from suite.records.parts import SIDES
from suite.records.schema import TABLES
from suite.records.tables import REAL, RUNS, Parts, Store, TableError, table_path
from suite.records.wholefile import remove, replace

CLOCK = "throughput"  # the one table that differs between repeats of a run
SHARED = tuple(name for name in SIDES if not TABLES[name].by_run)
OWN = tuple(name for name in SIDES if TABLES[name].by_run)


@dataclass(frozen=True)
class Found:
    """One run as a folder holds it: its row of runs.csv (None for what is of no run), its rows of the shared tables, its own files."""

    folder: Path
    row: dict[str, str] | None
    rows: dict[str, Rows]
    files: dict[str, bytes]  # by table, unpacked

    @property
    def done(self) -> bool:
        return self.row is not None and self.row["status"] == "done"

    def differs(self, other: Found) -> str:
        """The first table but the clock's in which two runs differ, with the columns of runs.csv that do; "" where they are the same."""
        if columns := ", ".join(name for name in self.row or () if self.row[name] != other.row[name]):
            return f"runs.csv ({columns})"
        of_table = {name: (self.rows, other.rows) for name in SHARED if name != CLOCK} | {name: (self.files, other.files) for name in OWN}
        return next((name for name, (mine, theirs) in of_table.items() if mine.get(name) != theirs.get(name)), "")


Runs = dict[str, Found]  # by run id


def gather(sources: list[Path], results: Path, protocol: str | None = None) -> int:
    """Add the runs of `sources` (of one protocol, or of all) to `results`; returns how many of them were not there yet.

    A finished run stays before one that broke; of two that broke, the later source's stays. Raises ValueError where there is nothing to
    gather, and TableError for tables of another version or two finished runs of one id whose tables differ.
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
            here = _read(results / name)
            new[name] = _join(here, gathered[name])
        for name, runs in new.items():
            _write(results / name, runs)
    return sum(run_id != REAL for runs in new.values() for run_id in runs)


def _read(folder: Path) -> Runs:
    """Every run of a protocol's folder that has a row in runs.csv, and the real row of quality.csv; none where there is no such table."""
    rows = Store(folder).runs()  # first: a sweep that is at work here writes it last
    parts, store, found = Parts(folder), Store(folder), {}
    for row in rows:
        where, run_id = folder / RUNS.path, row["run_id"]
        written = parts.written(row)
        if row["curve_digest"] != written_curve_digest(written.get("curves", b"")):
            raise TableError(where, f"run {run_id}: its curve differs from its digest", "run it again there")
        if row["rows_digest"] != store.digest(row, written):
            what = f"run {run_id}: a cell of it in some table, or its picture, differs from its digest"
            raise TableError(where, what, "restore it or run it again there")
        shared = {name: parts.rows(name, row) for name in SHARED}
        found[run_id] = Found(folder, row, shared, {name: written[name] for name in OWN if name in written})
    if real := parts.of_all("quality").get(REAL) if found else None:
        found[REAL] = Found(folder, None, {"quality": real}, {})
    return found


def _join(here: Runs, more: Runs) -> Runs:
    """Add `more` to `here`; returns what was new or took the place of a run that broke."""
    taken = {}
    for run_id, run in more.items():
        old = here.get(run_id)
        if old and old.done:
            if run.done and (where := old.differs(run)):
                what = f"run {run_id} differs from that of {run.folder} in {where}"
                raise TableError(old.folder, what, "keep one: leave a folder out, or drop the run from one of them")
        elif old is None or (old.row, old.rows, old.files) != (run.row, run.rows, run.files):
            here[run_id] = taken[run_id] = run
    return taken


def _write(folder: Path, runs: Runs) -> None:
    """Put runs into the tables of a folder that is locked; pictures first, runs.csv last, as Store.add does."""
    for run_id, run in runs.items():
        for picture in (run.folder / "samples").glob(f"*-{run_id}.png"):
            place = folder / "samples" / picture.name
            place.parent.mkdir(exist_ok=True)
            part = place.with_name(f"{place.name}.{os.getpid()}.part")  # a name that the suite clears away if a kill leaves it
            shutil.copyfile(picture, part)
            os.replace(part, place)
        for name in OWN if run.row else ():
            path = table_path(folder, TABLES[name], run.row)
            if name in run.files:
                replace(path, run.files[name])
            elif path.exists():
                remove(path)
    for name in SHARED:
        put_rows(folder / TABLES[name].path, TABLES[name], [row for run in runs.values() for row in run.rows.get(name, [])], runs)
    put_rows(folder / RUNS.path, RUNS, [run.row for run in runs.values() if run.row], runs)
    write_package(folder)
