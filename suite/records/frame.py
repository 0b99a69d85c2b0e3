"""A table as a typed pandas DataFrame. Nothing here imports pandas before it is asked for: it is slow to import."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from suite.records.csvfile import Columns, parse, read_columns
from suite.records.layout import table_files
from suite.records.package import check_package
from suite.records.packed import unpacked
from suite.records.schema import TABLES, Table
from suite.records.tableerror import TableError

WHOLE = {"integer": (int, "int64", "Int64"), "boolean": ("true".__eq__, "bool", "boolean")}  # of a cell's text; plain; with gaps
KEPT = 4096  # files of one run whose frames are kept: all of the committed ones


def read(folder, name: str, scheme: str | None = None, depth: int | None = None):
    """A table as a typed pandas DataFrame; for curves and audit that of all runs, or of those of one scheme or depth.

    Required integers and booleans are plain, optional ones nullable; numbers are float64, where both nan and an empty
    cell are NaN (`read_rows` tells them apart); empty text stays "", so that grouping keeps it. No file, no rows,
    except that a folder without runs.csv is an error.
    """
    import pandas as pd

    folder, table = Path(folder), TABLES[name]
    files = table_files(folder, table, scheme, depth)
    if name == "runs" and not files:
        raise TableError(folder / table.path, "no such table", "run something first, or check the --results folder")
    if not files:
        return _empty(table).copy()
    if not table.by_run:
        return typed(table, read_columns(files[0], table))
    check_package(folder, table)
    return pd.concat([_of_run(path, table, path.read_bytes()) for path in files], ignore_index=True)


def of_run(path: Path, table: Table):
    """The frame of one run's own file, not to be written to; without rows where there is no such file."""
    if not path.exists():
        return _empty(table)
    return _of_run(path, table, path.read_bytes())


@lru_cache(maxsize=KEPT)
def _of_run(path: Path, table: Table, data: bytes):
    """Remembered by what the file holds: tables, verdicts, figures and the pages' blocks ask for the same runs."""
    return typed(table, parse(path, table, unpacked(path, data)))


@lru_cache
def _empty(table: Table):
    return typed(table, {column.name: () for column in table.columns})


def typed(table: Table, columns: Columns):
    """Checked columns of text as a DataFrame."""
    import numpy as np
    import pandas as pd

    frame = {}
    for column in table.columns:
        cells = columns[column.name]
        if column.type == "number":
            frame[column.name] = np.array([float(text or "nan") for text in cells], float)
        elif column.type == "string":
            frame[column.name] = pd.array(cells, dtype="str")
        else:
            value, plain, nullable = WHOLE[column.type]
            values = [value(text) if text else None for text in cells]
            frame[column.name] = np.array(values, plain) if column.required else pd.array(values, dtype=nullable)
    return pd.DataFrame(frame)
