"""The results of one protocol: runs added from several processes, typed reading, checking and comparing.

A run is committed by its row in runs.csv, written last. Files and their format are in `suite.records.csvfile`, columns in
`suite.records.schema`. Nothing here imports torch, and pandas only inside `read`.
"""

from __future__ import annotations

import numbers
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from suite.protocol import short_hash
from suite.records.csvfile import (
    PACKAGE,
    SPREAD,
    TableError,
    as_text,
    check_package,
    content,
    format_value,
    package_text,
    put_rows,
    read_rows,
    render,
    rows_of,
    sort_rows,
    table_files,
    table_path,
    write_package,
    write_rows,
)
from suite.records.digest import rows_digest
from suite.records.schema import OF_NO_RUN, SCHEMA_VERSION, TABLES, Table
from suite.verdict.outcomes import fate

__all__ = ["SCHEMA_VERSION", "TABLES", "Store", "TableError", "check_folder", "compare", "content", "curve_digest", "format_table",
           "format_value", "put_rows", "picture_path", "read", "read_rows", "rows_of", "table_files", "table_path", "write_package",
           "write_rows"]

RUNS, CURVES = TABLES["runs"], TABLES["curves"]
REAL = "real"  # run_id of the real-against-real row of quality.csv, which belongs to no run


def read(folder, name: str, scheme: str | None = None, depth: int | None = None):
    """A table as a typed pandas DataFrame; for curves and audit all files, or those of one scheme or depth.

    Required integers and booleans are plain, optional ones nullable; numbers are float64, where both nan and an empty cell
    are NaN (`read_rows` tells them apart); empty text stays "", so that grouping keeps it. No file, no rows, except that a
    folder without runs.csv is an error.
    """
    import pandas as pd  # slow to import, and `--help` must be fast

    folder, table = Path(folder), TABLES[name]
    files = table_files(folder, table)
    if name == "runs" and not files:
        raise TableError(folder / table.path, "no such table", "run something first, or check the --results folder")
    rows = rows_of(folder, table, *((scheme, depth) if table.spread else ()))
    frame = {}
    for column in table.columns:
        cells = [row[column.name] for row in rows]
        if column.type == "number":
            frame[column.name] = pd.Series([float(text or "nan") for text in cells], dtype="float64")
        elif column.type == "integer":
            dtype = "int64" if column.required else "Int64"
            frame[column.name] = pd.Series([int(text) if text else None for text in cells], dtype=dtype)
        elif column.type == "boolean":
            dtype = "bool" if column.required else "boolean"
            frame[column.name] = pd.Series([text == "true" if text else None for text in cells], dtype=dtype)
        else:
            frame[column.name] = pd.Series(cells, dtype="str")
    return pd.DataFrame(frame)


# ---- runs

def picture_path(folder, scheme: str, depth: int | str, run_id: str) -> Path:
    """Where the sample grid of a run lies."""
    return Path(folder) / "samples" / f"{scheme}-L{depth}-{run_id}.png"


def curve_digest(steps, loss, grad_norm) -> str:
    """Digest of a curve: of its lines "step,loss,grad_norm" as committed, so the table alone can verify it.

    (Six digits do not give the float32 values back, so a digest of those could never be checked.)
    """
    lines = (f"{format_value(s, 'integer')},{format_value(x, 'number')},{format_value(g, 'number')}\n"
             for s, x, g in zip(steps, loss, grad_norm, strict=True))
    return short_hash("d", "".join(lines).encode(), 16)


def _digests(rows) -> dict[str, str]:
    """The digest of every curve in a file."""
    curves = defaultdict(list)
    for row in rows:
        curves[row["run_id"]].append((row["step"], row["loss"], row["grad_norm"]))
    return {run_id: curve_digest(*zip(*cells)) for run_id, cells in curves.items()}


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
        """Runs that ended as planned (collapses included) and whose committed curve is the one their row was written for."""
        done = [row for row in self.runs() if row["status"] == "done"]
        digests = {}
        for scheme, depth in {(row["scheme"], row["depth"]) for row in done}:
            digests |= _digests(rows_of(self.folder, CURVES, scheme, depth))
        return {row["run_id"] for row in done if digests.get(row["run_id"]) == row["curve_digest"]}

    def failed_ids(self) -> set[str]:
        """Runs that were attempted and stopped by memory, time or an error: not repeated unless asked for."""
        return {row["run_id"] for row in self.runs() if row["status"] != "done"}

    def add(self, record: dict) -> None:
        """Add or replace one run: `run` is its row, `curve`, `evals`, `quality`, … lists of rows without run_id.

        All is checked before anything is written, and runs.csv is written last of the tables: a run whose add was killed is
        not done, and adding it again replaces what was left. The real row of quality.csv may come with any run.
        """
        run_id, row, sides = self.laid_out(record)
        with self.lock():
            for path, table, rows in sides:
                put_rows(path, table, rows, drop_run_ids=[run_id])
            put_rows(self.folder / RUNS.path, RUNS, row)
            write_package(self.folder)

    def laid_out(self, record: dict) -> tuple[str, list[dict[str, str]], list[tuple]]:
        """(run_id, its row, (path, table, rows) of every other table) of a record, all as text; TableError where it does not fit."""
        parts = {name: "curve" if name == "curves" else name for name in TABLES if name not in ("runs", *OF_NO_RUN)}
        run = dict(record["run"])
        run_id, runs_path = run["run_id"], self.folder / RUNS.path
        if unknown := set(record) - {"run"} - set(parts.values()):
            raise TableError(self.folder, f"record holds unknown parts {sorted(unknown)}", "see Store.add")
        if run_id == REAL:
            raise TableError(runs_path, f"run_id {REAL!r} is reserved", "it names the real row of quality.csv")
        # Free text from exceptions: whatever it holds must not cost the run its row.
        reason = " ".join((run.get("reason") or "").split())
        run["reason"] = "".join(char for char in reason if char.isprintable())[:300]
        sides = []
        for name, part in parts.items():
            path = table_path(self.folder, TABLES[name], run["scheme"], run["depth"])
            rows = as_text(path, TABLES[name], [{"run_id": run_id} | row for row in record.get(part) or ()])
            legal = {run_id, REAL} if name == "quality" else {run_id}
            if foreign := {row["run_id"] for row in rows} - legal:
                raise TableError(path, f"record of {run_id!r} holds rows of {sorted(foreign)}", "leave run_id out of the rows")
            sides.append((path, TABLES[name], rows))
            if name == "curves":
                run["curve_digest"] = _digests(sort_rows(CURVES, rows)).get(run_id)
        (row,) = as_text(runs_path, RUNS, [run])
        row["rows_digest"] = self.digest(row, {table.name: rows for _, table, rows in sides})
        return run_id, [row], sides

    def digest(self, row: dict[str, str], sides: dict[str, list[dict[str, str]]]) -> str:
        """`rows_digest` of a run from its row and its rows of the other tables; the real row of quality.csv is of no run."""
        own = {name: [line for line in rows if line["run_id"] == row["run_id"]] for name, rows in sides.items()}
        return rows_digest(row, own, picture_path(self.folder, row["scheme"], row["depth"], row["run_id"]))


# ---- the whole folder

def check_folder(folder) -> list[str]:
    """Every way in which a folder breaks the contract of the tables, one line each; empty when it is sound."""
    folder = Path(folder)
    package, problems, rows = folder / PACKAGE, [], {}
    known = {path: table for table in TABLES.values() for path in table_files(folder, table)}
    problems += [f"{path}: no table of suite/records/schema.py; rename or remove it"
                 for path in sorted({*folder.rglob("*.csv"), *folder.rglob("*.csv.gz")} - known.keys())]
    try:
        check_package(folder)
        if not package.exists() or package.read_text(encoding="utf-8") != package_text(folder):
            problems.append(f"{package}: missing or not up to date; run `collect`")
    except TableError as error:
        return problems + [str(error)]  # of another version: every table would only repeat it
    for path, table in known.items():
        try:
            rows[path] = table, read_rows(path, table)
            if content(path) != render(table, rows[path][1]):
                problems.append(f"{path}: not sorted, or quoted otherwise than the suite does; write it through suite.records.tables")
        except TableError as error:
            problems.append(str(error))
    runs_path = folder / RUNS.path
    if runs_path not in rows:
        return problems + ([] if runs_path.exists() else [f"{runs_path}: missing; run something first"])
    runs = {row["run_id"]: row for row in rows[runs_path][1]}
    for path, (table, side) in rows.items():
        problems += _check_side(path, table, side, runs)
    by_run = defaultdict(lambda: defaultdict(list))
    for table, side in rows.values():
        for row in side if table.name not in OF_NO_RUN else ():
            by_run[row["run_id"]][table.name].append(row)
    for run_id, row in runs.items():
        where = f"{runs_path}: run {run_id}"
        own = by_run[run_id]
        if row["curve_digest"] != _digests(own[CURVES.name]).get(run_id, ""):
            problems.append(f"{where}: curve {'differs from its digest' if own[CURVES.name] else 'is missing'}; run it again")
        if row["rows_digest"] != Store(folder).digest(row, own):
            problems.append(f"{where}: a cell of it in some table, or its picture, differs from its digest; run it again")
        if (row["status"] == "done") != bool(row["outcome"]):
            problems.append(f"{where}: status {row['status']} with outcome {row['outcome']!r}; only done runs have an outcome")
    return problems


def _check_side(path: Path, table: Table, side, runs) -> list[str]:
    """Rows of runs that runs.csv does not know, rows in another run's file, and scores of samples that cannot have one."""
    ids = {row["run_id"] for row in side} - ({REAL} if table.name == "quality" else set())
    problems = [f"{path}: rows of run {i}, which is not in runs.csv; run it again or drop them" for i in sorted(ids - runs.keys())]
    if table.spread:
        scheme, depth, part = SPREAD.fullmatch(path.name).groups()
        problems += [f"{path}: run {i} belongs to another file ({runs[i]['scheme']}, depth {runs[i]['depth']}); run it again"
                     for i in sorted(ids & runs.keys()) if (runs[i]["scheme"], runs[i]["depth"], part or i) != (scheme, depth, i)]
    return problems + [f"{path}: run {row['run_id']} has a fid although its status is {row['fid_status']}; leave it empty"
                       for row in side if row.get("fid") and row["fid_status"] != "ok"]


CELL = ("protocol_version", "data", "scheme", "arm", "params", "writers", "depth", "lr")


def compare(mine_folder, committed_folder) -> list[dict]:
    """Your cells beside the committed ones, one row per cell that you ran, over whatever seeds each side has.

    Per side: `runs`, `seeds`, `outcome` (with counts where seeds differ), `crash_step` and `final_loss` (medians; exact steps are
    chaotic at rounding level). `agree`: one side saw no fate (dead, unusable, live) that the other did not; None where a side is missing.
    """
    mine, committed = (_cells(Store(folder).runs()) for folder in (mine_folder, committed_folder))
    out = []
    for cell, rows in mine.items():
        other = committed.get(cell, [])
        seen, known = ({fate(row["outcome"]) or row["outcome"] or row["status"] for row in side} for side in (rows, other))
        row = dict(zip(CELL, cell)) | _summary("mine", rows) | _summary("committed", other)
        out.append(row | {"agree": (seen <= known or known <= seen) if other else None})
    return out


def _cells(rows) -> dict[tuple, list[dict[str, str]]]:
    cells = defaultdict(list)
    for row in rows:
        cells[tuple(row[name] for name in CELL)].append(row)
    return cells


def _summary(side: str, rows) -> dict:
    counts = Counter(row["outcome"] or row["status"] for row in rows)
    outcome = ", ".join(name if len(counts) == 1 else f"{name} {n}/{len(rows)}" for name, n in counts.most_common())
    middle = {name: median(values) if (values := [float(row[name]) for row in rows if row[name]]) else None
              for name in ("crash_step", "final_loss")}
    seeds = ",".join(sorted({row["seed"] for row in rows}, key=int))
    shown = {"runs": len(rows), "seeds": seeds, "outcome": outcome} | middle
    return {f"{side}_{name}": value for name, value in shown.items()}


def format_table(rows: list[dict], columns) -> str:
    """Plain text with aligned columns, numbers to the right; None is shown as "-"."""
    def text(value):
        kind = "boolean" if isinstance(value, bool) else "number" if isinstance(value, numbers.Real) else "string"
        return "-" if value is None else format_value(value, kind)

    body = [[text(row.get(name)) for name in columns] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(columns, *body)]
    right = [all(isinstance(row.get(name), (numbers.Real, type(None))) for row in rows) for name in columns]
    return "\n".join("  ".join(cell.rjust(width) if to_right else cell.ljust(width)
                               for cell, width, to_right in zip(cells, widths, right)).rstrip()
                     for cells in [list(columns), *body])
