"""Does a folder of results keep the contract of the tables?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from suite.records.byrun import RowsByRun, curve_digest
from suite.records.csvfile import read_rows, render
from suite.records.frame import of_run
from suite.records.layout import file_of, table_files
from suite.records.package import PACKAGE, check_package, is_current
from suite.records.packed import content
from suite.records.schema import OF_NO_RUN, TABLES, Table
from suite.records.store import REAL, RUNS, Store
from suite.records.tableerror import TableError


def check_folder(folder, parts: RowsByRun | None = None) -> list[str]:
    """Every way in which a folder breaks the contract of the tables, one line each; empty when it is sound.

    parts: the folder's tables, where they are read for something else too.
    """
    folder, parts = Path(folder), parts or RowsByRun(folder)
    problems = []
    known = {path: table for table in TABLES.values() for path in table_files(folder, table)}
    problems += [f"{path}: no table of suite/records/schema.py; rename or remove it"
                 for path in sorted({*folder.rglob("*.csv"), *folder.rglob("*.csv.gz")} - known.keys())]  # fmt: skip
    try:
        check_package(folder)
        if not is_current(folder):
            problems.append(f"{folder / PACKAGE}: missing or not up to date; run `collect`")
    except TableError as error:
        return problems + [str(error)]  # of another version: every table would only repeat it
    try:
        runs = {row["run_id"]: row for row in Store(folder).runs()}
    except TableError:
        runs = None  # said below
    sound = True
    for path, table in known.items():
        try:
            problems += _check_file(path, table, runs)
        except TableError as error:
            problems.append(str(error))
            sound &= table.by_run
    runs_path = folder / RUNS.path
    if runs_path not in known:
        return [*problems, f"{runs_path}: missing; run something first"]
    for row in (runs or {}).values() if sound else ():
        problems += [f"{runs_path}: run {row['run_id']}: {words}" for words in _check_run(row, folder, parts)]
    return problems


def _check_file(path: Path, table: Table, runs: Mapping[str, dict[str, str]] | None) -> list[str]:
    """What is wrong with a file that can be read: its order, rows of runs that runs.csv does not know, scores that cannot be."""
    if table.by_run:
        of_run(path, table)
        scheme, depth, run_id = file_of(path)
        if runs is None:
            return []
        if run_id not in runs:
            return [f"{path}: rows of run {run_id}, which is not in runs.csv; run it again or drop them"]
        right = runs[run_id]["scheme"], runs[run_id]["depth"]
        return [] if right == (scheme, depth) else [
            f"{path}: run {run_id} belongs to another file ({right[0]}, depth {right[1]}); run it again"]  # fmt: skip
    rows, problems = read_rows(path, table), []
    if content(path) != render(table, rows):
        problems.append(f"{path}: not sorted, or quoted otherwise than the suite does; write it through suite.records.store")
    if table.name in OF_NO_RUN or runs is None:
        return problems
    ids = {row["run_id"] for row in rows} - ({REAL} if table.name == "quality" else set())
    problems += [f"{path}: rows of run {i}, which is not in runs.csv; run it again or drop them" for i in sorted(ids - runs.keys())]
    return problems + [f"{path}: run {row['run_id']} has a fid although its status is {row['fid_status']}; leave it empty"
                       for row in rows if row.get("fid") and row["fid_status"] != "ok"]  # fmt: skip


def _check_run(row: dict[str, str], folder: Path, parts: RowsByRun) -> list[str]:
    """What is wrong with a run as a whole, in words."""
    try:
        written = parts.written(row)
    except TableError:
        return []  # its file is named already
    found, curve = [], written.get("curves", b"")
    if row["curve_digest"] != curve_digest(curve):
        found.append(f"curve {'differs from its digest' if curve else 'is missing'}; run it again")
    if row["rows_digest"] != Store(folder).digest(row, written):
        found.append("a cell of it in some table, or its picture, differs from its digest; run it again")
    if (row["status"] == "done") != bool(row["outcome"]):
        found.append(f"status {row['status']} with outcome {row['outcome']!r}; only done runs have an outcome")
    return found
