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

from suite.records.schema import TABLES
from suite.records.tables import REAL, Store, TableError, curve_digest, put_rows, rows_of, table_path, write_package

CLOCK = "throughput"  # the one table that differs between repeats of a run


@dataclass(frozen=True)
class Found:
    """One run as a folder holds it: the protocol's folder, and the run's rows of every table."""

    folder: Path
    rows: dict[str, list[dict[str, str]]]

    @property
    def row(self) -> dict[str, str]:
        """Its row of runs.csv, or the real row of quality.csv, which belongs to no run."""
        return (self.rows["runs"] or self.rows["quality"])[0]


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
    """Every run of a protocol's folder that has a row in runs.csv; none where there is no such table."""
    rows: dict[str, dict[str, list]] = defaultdict(lambda: {name: [] for name in TABLES})
    for name, table in TABLES.items():  # runs.csv first: a sweep that is at work here writes it last
        for row in rows_of(folder, table):
            rows[row["run_id"]][name].append(row)
    found = {run_id: Found(folder, tables) for run_id, tables in rows.items() if tables["runs"] or run_id == REAL}
    for run_id, run in found.items():
        cells = [(row["step"], row["loss"], row["grad_norm"]) for row in run.rows["curves"]]
        if run_id != REAL and run.row["curve_digest"] != (curve_digest(*zip(*cells)) if cells else ""):
            raise TableError(folder / "runs.csv", f"run {run_id}: its curve differs from its digest", "run it again there")
        if run_id != REAL and run.row["rows_digest"] != Store(folder).digest(run.row, run.rows):
            what = f"run {run_id}: a cell of it in some table, or its picture, differs from its digest"
            raise TableError(folder / "runs.csv", what, "restore it or run it again there")
    return found


def _join(here: Runs, more: Runs) -> Runs:
    """Add `more` to `here`; returns what was new or took the place of a run that broke."""
    taken = {}
    for run_id, run in more.items():
        old = here.get(run_id)
        if old and run_id != REAL and old.row["status"] == "done":
            if run.row["status"] == "done" and (where := _difference(old, run)):
                what = f"run {run_id} differs from that of {run.folder} in {where}"
                raise TableError(old.folder, what, "keep one: leave a folder out, or drop the run from one of them")
        elif old is None or old.rows != run.rows:
            here[run_id] = taken[run_id] = run
    return taken


def _difference(a: Found, b: Found) -> str:
    """The first table in which two finished runs differ, with the columns of runs.csv that do; "" where they are the same."""
    for name in TABLES:
        if name != CLOCK and a.rows[name] != b.rows[name]:
            columns = ", ".join(column for column in a.row if a.row[column] != b.row[column])
            return f"runs.csv ({columns})" if name == "runs" else name
    return ""


def _write(folder: Path, runs: Runs) -> None:
    """Put runs into the tables of a folder that is locked; pictures first, runs.csv last, as Store.add does."""
    for run_id, run in runs.items():
        for picture in (run.folder / "samples").glob(f"*-{run_id}.png"):
            place = folder / "samples" / picture.name
            place.parent.mkdir(exist_ok=True)
            part = place.with_name(f"{place.name}.{os.getpid()}.part")  # a name that the suite clears away if a kill leaves it
            shutil.copyfile(picture, part)
            os.replace(part, place)
    for name, table in reversed(TABLES.items()):
        files: dict[Path, list] = defaultdict(list)
        for run_id, run in runs.items():
            if run_id != REAL:
                files[table_path(folder, table, run.row["scheme"], run.row["depth"])] += run.rows[name]
            elif name == "quality":
                files[folder / table.path] += run.rows[name]
        for path, rows in files.items():
            put_rows(path, table, rows, drop_run_ids=runs)
    write_package(folder)
