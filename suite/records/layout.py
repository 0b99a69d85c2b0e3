"""Where the tables of a results folder lie: one file each, or one compressed file a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from suite.records.schema import Table
from suite.records.tableerror import TableError

_FOLDER = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.+-]*)-L([1-9][0-9]*)")  # scheme, depth
_FILE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.+-]*)\.csv\.gz")  # run id


def table_path(folder, table: Table, run: Mapping[str, object] | None = None) -> Path:
    """Where a table lies; run, a row of runs.csv, matters only to the tables of one file a run."""
    if not table.by_run:
        return Path(folder) / table.path
    if not (_FOLDER.fullmatch(f"{run['scheme']}-L{run['depth']}") and _FILE.fullmatch(f"{run['run_id']}.csv.gz")):
        raise TableError(folder, f"scheme {run['scheme']!r}, depth {run['depth']!r} and run {run['run_id']!r} cannot name a file",
                         "use letters, digits and _ . + - in scheme names, and a positive depth")
    return Path(folder) / table.path.format(**{name: run[name] for name in ("scheme", "depth", "run_id")})


def file_of(path) -> tuple[str, str, str] | None:
    """(scheme, depth, run id) of a run's own file, by its name; None for what is none."""
    of, own = _FOLDER.fullmatch(Path(path).parent.name), _FILE.fullmatch(Path(path).name)
    return (of[1], of[2], own[1]) if of and own else None


def table_files(folder, table: Table, scheme: str | None = None, depth: int | str | None = None) -> list[Path]:
    """The existing files of a table (those of a scheme or depth), by scheme, depth and run where each run has its own."""
    if not table.by_run:
        path = Path(folder) / table.path
        return [path] if path.exists() else []
    found = [(of, path) for path in Path(folder).glob(pattern(table)) if (of := file_of(path))
             and scheme in (None, of[0]) and str(depth) in ("None", of[1])]  # fmt: skip
    return [path for _, path in sorted(found, key=lambda item: (item[0][0], int(item[0][1]), item[0][2]))]


def pattern(table: Table) -> str:
    """A glob pattern of the table's files."""
    return re.sub(r"\{\w+\}", "*", table.path)


def top(path: Path, table: Table) -> Path:
    """The folder of results that a table's file is of."""
    return path.parents[table.path.count("/")]
