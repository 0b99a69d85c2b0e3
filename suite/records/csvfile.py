"""Table files: strict reading, atomic writing, and replacing the rows of a run in the tables that all runs share.

Cells are text here, so none is reformatted that is not replaced. Every table is sorted and has one serialisation, so
the same runs give the same bytes in whatever order they were added. A table without rows has no file. A table of one
file a run has nothing to merge: a file is written whole. `suite.records.schema` holds the columns;
`suite.records.store` puts runs together and is what other modules import.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from suite.records.layout import file_of, top
from suite.records.package import check_package
from suite.records.packed import content, remove, replace
from suite.records.schema import Column, Table
from suite.records.tableerror import RESTORE, TableError
from suite.records.values import cell_check, format_value

Rows = list[dict[str, str]]
Columns = dict[str, Sequence[str]]  # a table turned: the cells of each column, from the first row to the last


# ---- reading

def read_columns(path, table: Table) -> Columns:
    """The columns of one file as text, or a TableError for anything but a whole, well-formed table of this schema version.

    A run's own file must be as the suite writes it to the byte: it is written once, and nobody has a reason to edit it.
    """
    path = Path(path)
    check_package(top(path, table), table)
    return parse(path, table, content(path))


def parse(path: Path, table: Table, data: bytes) -> Columns:
    """`read_columns` of what a file holds."""
    columns = _parsed(path, table, _text(path, data))
    _check(path, table, columns, reading=True)
    if table.by_run:
        of = file_of(path)
        if of is None or set(columns["run_id"]) - {of[2]}:
            raise TableError(path, f"holds rows of run {', '.join(sorted(set(columns['run_id'])))}", RESTORE)
        if data != render_columns(table, columns):
            raise TableError(path, "not sorted, or quoted otherwise than the suite does", RESTORE)
    return columns


def _text(path: Path, data: bytes) -> str:
    if not data:
        raise TableError(path, "file is empty", RESTORE)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise TableError(path, "not UTF-8", RESTORE, data.count(b"\n", 0, error.start) + 1) from None
    if text.startswith("\ufeff"):
        raise TableError(path, "starts with a byte order mark", "save it as UTF-8 without one, as plain text", 1)
    if "\r" in text:
        raise TableError(path, "holds carriage returns", "convert it to \\n line ends", text[:text.index("\r")].count("\n") + 1)
    if not text.endswith("\n"):
        raise TableError(path, "last line is cut off (no newline at the end)", RESTORE, text.count("\n") + 1)
    return text


def _parsed(path: Path, table: Table, text: str) -> Columns:
    names, lines = [column.name for column in table.columns], text[:-1].split("\n")
    reader = csv.reader(lines, strict=True)
    rows: list[list[str]] = []
    try:
        rows.extend(reader)
    except csv.Error as error:
        raise TableError(path, f"not CSV ({error})", RESTORE, reader.line_num) from None
    if len(rows) != len(lines):
        reader = csv.reader(lines, strict=True)
        line = next(n for n, _ in enumerate(reader, 1) if reader.line_num != n)
        raise TableError(path, "a quote is left open", RESTORE, line)
    _check_header(path, names, rows[0])
    if {len(names)} != set(map(len, rows)):
        line, cells = next((n, len(row)) for n, row in enumerate(rows, 1) if len(row) != len(names))
        raise TableError(path, f"{cells} cells where the header has {len(names)}", RESTORE, line)
    return dict(zip(names, zip(*rows[1:]) if len(rows) > 1 else ((),) * len(names)))


def _check_header(path, names: list[str], cells: list[str]) -> None:
    if cells == names:
        return
    missing = [name for name in names if name not in cells]
    extra = [name[:40] for name in cells if name not in names]
    parts = [f"missing {missing}"] * bool(missing) + [f"extra {extra}"] * bool(extra)
    raise TableError(path, "header: " + ("; ".join(parts) or f"columns repeated or in another order than {names}"),
                     "see suite/records/schema.py for the columns", 1)


def _check(path, table: Table, columns: Columns, reading: bool) -> None:
    """Types, enums, required cells and unique keys. Over the distinct values of a column: tables repeat themselves."""
    remedy = RESTORE if reading else "fix the record; nothing was written"
    for column in table.columns:
        fault = cell_check(column)
        bad = {text: words for text in set(columns[column.name]) if (words := fault(text))}
        if bad:
            index, text = next((i, text) for i, text in enumerate(columns[column.name]) if text in bad)
            raise TableError(path, f"{column.name} {text[:40]!r} {bad[text]}", remedy, index + 2 if reading else None)
    keys = list(zip(*(columns[name] for name in table.key)))
    if len(set(keys)) < len(keys):
        seen: dict[tuple, int] = {}
        index, first = next((i, at) for i, key in enumerate(keys) if (at := seen.setdefault(key, i)) != i)
        what = f"duplicate key {dict(zip(table.key, keys[index]))}" + (f", first on line {first + 2}" if reading else "")
        raise TableError(path, what, remedy, index + 2 if reading else None)


def read_rows(path, table: Table) -> Rows:
    """`read_columns` row by row."""
    return to_rows(read_columns(path, table))


def to_rows(columns: Columns) -> Rows:
    return [dict(zip(columns, cells)) for cells in zip(*columns.values())]


def to_columns(table: Table, rows: Rows) -> Columns:
    return {column.name: [row[column.name] for row in rows] for column in table.columns}


# ---- writing

def as_text(path, table: Table, rows) -> Rows:
    """Rows of Python values or text as checked rows of text; an absent column is empty, an unknown one an error."""
    names = {column.name for column in table.columns}
    out = []
    for row in rows:
        if unknown := set(row) - names:
            raise TableError(path, f"unknown columns {sorted(unknown)}", "fix the record, or add them to suite/records/schema.py")
        out.append({column.name: _cell(path, column, row.get(column.name)) for column in table.columns})
    _check(path, table, to_columns(table, out), reading=False)
    return out


def _cell(path, column: Column, value) -> str:
    try:
        return format_value(value, column.type)
    except (ValueError, OverflowError) as error:
        raise TableError(path, f"{column.name}: {error}", "fix the record; nothing was written") from None


def render(table: Table, rows: Rows) -> bytes:
    """The one serialisation of a table's rows."""
    return render_columns(table, to_columns(table, rows))


def render_columns(table: Table, columns: Columns) -> bytes:
    """Sorted: numbers by value, empty first and nan last; text by code point."""
    types = {column.name: column.type for column in table.columns}
    ranks = [columns[name] if types[name] not in ("integer", "number") else _ranks(columns[name], types[name])
             for name in table.order or table.key]  # fmt: skip
    keys = list(zip(*ranks))
    cells = list(zip(*columns.values()))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(cells[i] for i in sorted(range(len(cells)), key=keys.__getitem__))
    return buffer.getvalue().encode()


def _ranks(cells: Sequence[str], kind: str) -> list[tuple]:
    number = int if kind == "integer" else float
    rank = {text: (1, number(text)) if text not in ("", "nan") else (2 if text else 0, 0) for text in set(cells)}
    return [rank[text] for text in cells]


def write_rows(path, table: Table, rows) -> None:
    """Check, sort and atomically write a whole table; identical bytes are left alone, no rows means no file."""
    _write(Path(path), table, as_text(path, table, rows))


def put_rows(path, table: Table, rows, drop_run_ids=()) -> None:
    """Replace, in a table that runs share, all rows of the runs in `rows` and `drop_run_ids`; every other row keeps its text."""
    path, new = Path(path), as_text(path, table, rows)
    replaced = {row["run_id"] for row in new} | set(drop_run_ids)
    old = read_rows(path, table) if path.exists() else []
    _write(path, table, [row for row in old if row["run_id"] not in replaced] + new)


def _write(path: Path, table: Table, rows: Rows) -> None:
    check_package(top(path, table), table)
    if rows:
        replace(path, render(table, rows))
    elif path.exists():
        remove(path)
