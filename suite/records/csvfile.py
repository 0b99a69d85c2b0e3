"""Table files: strict reading, atomic writing, replacing rows by run, and the data package that describes them.

Rows are dicts of text here, so no cell is reformatted that is not replaced. Every table is sorted and has one
serialisation, so the same runs give the same bytes in whatever order they were added. A table without rows has no file.
`suite.records.schema` holds the columns; `suite.records.tables` puts runs together and is what other modules import.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import numbers
import os
import re
import zlib
from collections import defaultdict
from pathlib import Path

from suite.records.schema import SCHEMA_VERSION, TABLES, Column, Table

PACKAGE = "datapackage.json"
BY_RUN = "-by-run"  # ends the name of the resource of a table's compressed files
# Eighteen digits fit an int64; the number pattern keeps out what float() would also take ("1_0", " 1", "Infinity").
_PATTERNS = {
    "integer": re.compile(r"0|-?[1-9][0-9]{0,17}"),
    "number": re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|nan|-?inf"),
    "boolean": re.compile(r"true|false"),
}
_SCHEME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
SPREAD = re.compile(rf"({_SCHEME})-L([1-9][0-9]*)(?:\.([A-Za-z0-9_]+)\.csv\.gz|\.csv)")  # scheme, depth, run id of a part
LARGEST = 10_000_000  # bytes of a file (design, section 5); a spread table's file that would be larger is one compressed file a run
_RESTORE = "restore the file (git checkout, or delete it and run again)"


class TableError(ValueError):
    """A table that breaks its contract, in one line: file, line, what is wrong, what to do."""

    def __init__(self, path, what, remedy, line=None):
        super().__init__(path, what, remedy, line)  # all four, so that the error survives pickling between processes
        self.path, self.what, self.remedy, self.line = Path(path), what, remedy, line

    def __str__(self):
        return f"{self.path}{f':{self.line}' if self.line else ''}: {self.what}; {self.remedy}"


def format_value(value, type: str) -> str:
    """The cell text of a Python or NumPy value; None is empty (not measured), and text passes through to be checked."""
    if value is None:
        return ""
    if isinstance(value, str):
        if "\n" in value or "\r" in value:
            raise ValueError(f"{value[:40]!r} holds a newline")
        return value
    is_bool = value.__class__.__name__ in ("bool", "bool_")  # NumPy's is neither bool nor a Number
    if type == "boolean" and is_bool:
        return "true" if value else "false"
    if type == "integer" and isinstance(value, numbers.Integral) and not is_bool:
        return str(int(value))
    if type == "number" and isinstance(value, numbers.Real) and not is_bool:
        return f"{float(value):.6g}"
    raise ValueError(f"{value!r:.40} is not of type {type}")


def _fault(column: Column, text: str) -> str | None:
    """What is wrong with a cell, or None."""
    if not text:
        return "is empty but required" if column.required else None
    if column.enum and text not in column.enum:
        return f"is not one of {', '.join(column.enum)}"
    if column.type == "string":
        odd = next((c for c in text if not c.isprintable()), "")
        return f"holds U+{ord(odd):04X}, a newline, control character, odd blank or the like" if odd else None
    return None if _PATTERNS[column.type].fullmatch(text) else f"is not of type {column.type}"


def cell_fault(table: Table, name: str, value) -> str | None:
    """What the writer would refuse about this value in this column, or None; a plan asks before anything is trained."""
    column = next(column for column in table.columns if column.name == name)
    try:
        return _fault(column, format_value(value, column.type))
    except (ValueError, OverflowError) as error:
        return str(error)


def _check(path, table: Table, rows: list[dict[str, str]], reading: bool) -> None:
    """Types, enums, required cells and unique keys. By column over distinct values: tables repeat themselves."""
    remedy = _RESTORE if reading else "fix the record; nothing was written"
    for column in table.columns:
        bad = {text: fault for text in {row[column.name] for row in rows} if (fault := _fault(column, text))}
        if bad:
            index, text = next((i, row[column.name]) for i, row in enumerate(rows) if row[column.name] in bad)
            raise TableError(path, f"{column.name} {text[:40]!r} {bad[text]}", remedy, index + 2 if reading else None)
    seen: dict[tuple, int] = {}
    for index, row in enumerate(rows):
        first = seen.setdefault(key := tuple(row[name] for name in table.key), index)
        if first != index:
            what = f"duplicate key {dict(zip(table.key, key))}" + (f", first on line {first + 2}" if reading else "")
            raise TableError(path, what, remedy, index + 2 if reading else None)


def as_text(path, table: Table, rows) -> list[dict[str, str]]:
    """Rows of Python values or text as checked rows of text; an absent column is empty, an unknown one an error."""
    names = {column.name for column in table.columns}
    out = []
    for row in rows:
        if unknown := set(row) - names:
            raise TableError(path, f"unknown columns {sorted(unknown)}", "fix the record, or add them to suite/records/schema.py")
        out.append({column.name: _cell(path, column, row.get(column.name)) for column in table.columns})
    _check(path, table, out, reading=False)
    return out


def _cell(path, column: Column, value) -> str:
    try:
        return format_value(value, column.type)
    except (ValueError, OverflowError) as error:
        raise TableError(path, f"{column.name}: {error}", "fix the record; nothing was written") from None


def sort_rows(table: Table, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Numbers by value, empty first and nan last; text by code point."""
    types = {column.name: column.type for column in table.columns}

    def rank(name, text):
        if types[name] not in ("integer", "number"):
            return text
        if text in ("", "nan"):
            return (0 if text == "" else 2, 0)
        return (1, int(text) if types[name] == "integer" else float(text))

    return sorted(rows, key=lambda row: [rank(name, row[name]) for name in table.order or table.key])


def render(table: Table, rows: list[dict[str, str]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [column.name for column in table.columns]
    writer.writerow(names)
    writer.writerows([row[name] for name in names] for row in sort_rows(table, rows))
    return buffer.getvalue().encode()


def _folder(path: Path, table: Table) -> Path:
    return path.parents[table.path.count("/")]


def table_path(folder, table: Table, scheme: str | None = None, depth: int | str | None = None) -> Path:
    """Where a table lies; scheme and depth matter only to tables spread over several files."""
    if table.spread and not SPREAD.fullmatch(f"{scheme}-L{depth}.csv"):
        raise TableError(folder, f"scheme {scheme!r} and depth {depth!r} cannot name a file",
                         "use letters, digits and _ . + - in scheme names, and a positive depth")
    return Path(folder) / table.path.format(scheme=scheme, depth=depth)


def table_files(folder, table: Table, scheme: str | None = None, depth: int | str | None = None) -> list[Path]:
    """The existing files of a table (those of a scheme or depth), by scheme, depth and run where it is spread."""
    if not table.spread:
        path = Path(folder) / table.path
        return [path] if path.exists() else []
    found = [(match, path) for path in (Path(folder) / table.path).parent.glob("*.csv*")
             if (match := SPREAD.fullmatch(path.name)) and scheme in (None, match[1]) and str(depth) in ("None", match[2])]
    return [path for match, path in sorted(found, key=lambda item: (item[0][1], int(item[0][2]), item[0][3] or ""))]


def rows_of(folder, table: Table, scheme: str | None = None, depth: int | str | None = None) -> list[dict[str, str]]:
    """The rows of a table (those of a scheme or depth) as text; none where there is no file."""
    return [row for rows in _by_file(table_files(folder, table, scheme, depth), table).values() for row in rows]


def _by_file(files: list[Path], table: Table) -> dict[Path, list[dict[str, str]]]:
    """The rows of each file. A write that was killed as it split a file or joined its parts leaves rows twice: a run's own file counts."""
    rows = {path: read_rows(path, table) for path in files}
    own = {_part_of(path) for path in files} - {None}
    return {path: [row for row in lines if row["run_id"] not in own or _part_of(path) == row["run_id"]] if own else lines
            for path, lines in rows.items()}


def _part_of(path: Path) -> str | None:
    """The run that a file of a spread table is a part for; None for one of many runs."""
    match = SPREAD.fullmatch(path.name)
    return match[3] if match else None


# ---- the data package

def package_text(folder) -> str:
    """`datapackage.json` (Data Package 2.0) for the tables that exist: the public column dictionary, byte for byte repeatable."""
    resources = []
    found = [(table, path.relative_to(folder).as_posix()) for table in TABLES.values() for path in table_files(folder, table)]
    for table, part in [(table, part) for table in TABLES.values() for part in ("", BY_RUN)]:  # a resource is compressed as a whole
        files = [path for other, path in found if other is table and path.endswith(".gz") == bool(part)]
        if not files:
            continue
        fields = []
        for column in table.columns:
            constraints = {"required": True} if column.required else {}
            if column.enum:
                constraints["enum"] = list(column.enum)
            field = {"name": column.name, "type": column.type, "unit": column.unit, "description": column.meaning}
            fields.append(field | ({"constraints": constraints} if constraints else {}))
        # A primary key may not be empty; the step of quality.csv's real row is.
        required = {column.name for column in table.columns if column.required}
        key = {"primaryKey": list(table.key)} if required >= set(table.key) else {"uniqueKeys": [list(table.key)]}
        resources.append({
            "name": table.name + part, "description": table.meaning, "path": files if table.spread else files[0],
            "format": "csv", "mediatype": "text/csv", "encoding": "utf-8", **({"compression": "gz"} if part else {}),
            "schema": {"fields": fields, **key, "missingValues": [""]},
        })
    package = {
        "$schema": "https://datapackage.org/profiles/2.0/datapackage.json", "name": "screambench-results",
        "description": "Empty cells were not measured; nan and inf are values. Numbers have six significant digits.",
        "schema_version": SCHEMA_VERSION, "resources": resources,
    }
    return json.dumps(package, indent=1, ensure_ascii=False) + "\n"


def check_package(folder: Path, table: Table | None = None) -> None:
    """Refuse a folder of another schema version, or one whose package lists other columns. No package yet is fine."""
    path = folder / PACKAGE
    try:
        package = json.loads(path.read_bytes())
        version = package["schema_version"]
        listed = {r["name"].removesuffix(BY_RUN): [(f["name"], f["type"]) for f in r["schema"]["fields"]] for r in package["resources"]}
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TableError(path, f"not a data package ({error.__class__.__name__})", "delete it and run `collect`") from None
    if version != SCHEMA_VERSION:
        raise TableError(path, f"tables have schema version {version!r}, this code reads {SCHEMA_VERSION!r}",
                         "check out the commit that wrote them, or move the folder aside and run again")
    if table and table.name in listed and listed[table.name] != [(c.name, c.type) for c in table.columns]:
        raise TableError(path, f"columns of {table.name} differ from suite/records/schema.py at the same version",
                         "bump SCHEMA_VERSION, or delete the package if only it is stale")


def write_package(folder) -> None:
    """Write `datapackage.json`; a folder of another schema version is refused, never relabelled."""
    folder = Path(folder)
    check_package(folder)
    _replace(folder / PACKAGE, package_text(folder).encode())


# ---- files

def _replace(path: Path, data: bytes) -> None:
    """Put bytes in place so that a reader, or a kill at any moment, sees the old file or the new one."""
    if path.exists() and _holds(path, data):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name: what a kill leaves behind is overwritten by the next write (writers hold Store.lock).
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync(path.parent)


def content(path) -> bytes:
    """The bytes of a table file, a compressed one unpacked."""
    path = Path(path)
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TableError(path, f"not a whole gzip file ({error})", _RESTORE) from None


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file holds these bytes; what cannot be unpacked is written anew. (Another zlib packs the same bytes otherwise.)"""
    try:
        return content(path) == data
    except TableError:
        return False


def _sync(folder: Path) -> None:
    """The rename itself survives a power cut only once its folder is synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_rows(path, table: Table) -> list[dict[str, str]]:
    """The rows of one file as text, or a TableError for anything but a whole, well-formed table of this schema version."""
    path = Path(path)
    check_package(_folder(path, table), table)
    data = content(path)
    if not data:
        raise TableError(path, "file is empty", _RESTORE)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise TableError(path, "not UTF-8", _RESTORE, data.count(b"\n", 0, error.start) + 1) from None
    if text.startswith("\ufeff"):
        raise TableError(path, "starts with a byte order mark", "save it as UTF-8 without one, as plain text", 1)
    if "\r" in text:
        raise TableError(path, "holds carriage returns", "convert it to \\n line ends", text[:text.index("\r")].count("\n") + 1)
    if not text.endswith("\n"):
        raise TableError(path, "last line is cut off (no newline at the end)", _RESTORE, text.count("\n") + 1)
    names = [column.name for column in table.columns]
    rows = []
    reader = csv.reader(text[:-1].split("\n"), strict=True)
    try:
        for line, cells in enumerate(reader, 1):
            if reader.line_num != line:
                raise TableError(path, "a quote is left open", _RESTORE, line)
            if line == 1:
                _check_header(path, names, cells)
            elif len(cells) != len(names):
                raise TableError(path, f"{len(cells)} cells where the header has {len(names)}", _RESTORE, line)
            else:
                rows.append(dict(zip(names, cells)))
    except csv.Error as error:
        raise TableError(path, f"not CSV ({error})", _RESTORE, reader.line_num) from None
    _check(path, table, rows, reading=True)
    return rows


def _check_header(path, names: list[str], cells: list[str]) -> None:
    if cells == names:
        return
    missing = [name for name in names if name not in cells]
    extra = [name[:40] for name in cells if name not in names]
    parts = [f"missing {missing}"] * bool(missing) + [f"extra {extra}"] * bool(extra)
    raise TableError(path, "header: " + ("; ".join(parts) or f"columns repeated or in another order than {names}"),
                     "see suite/records/schema.py for the columns", 1)


def write_rows(path, table: Table, rows) -> None:
    """Check, sort and atomically write a whole table; identical bytes are left alone, no rows means no file."""
    _write(Path(path), table, as_text(path, table, rows))


def put_rows(path, table: Table, rows, drop_run_ids=()) -> None:
    """Replace all rows of the runs in `rows` and `drop_run_ids`; every other row keeps its text. path: as `table_path` gives it.

    A spread table's file that would pass LARGEST is written as one compressed file for each run instead, whatever came first.
    """
    path, new = Path(path), as_text(path, table, rows)
    replaced = {row["run_id"] for row in new} | set(drop_run_ids)
    match = SPREAD.fullmatch(path.name) if table.spread else None
    files = table_files(_folder(path, table), table, *(match.groups()[:2] if match else ()))
    all_rows = [row for rows in _by_file(files, table).values() for row in rows if row["run_id"] not in replaced] + new
    if match is None or len(render(table, all_rows)) <= LARGEST:
        parts = {path: all_rows}
    else:
        own = defaultdict(list)
        for row in all_rows:
            own[row["run_id"]].append(row)
        parts = {path.with_name(f"{path.stem}.{run_id}.csv.gz"): own[run_id] for run_id in sorted(own)}
    for part, lines in parts.items():
        _write(part, table, lines)
    for old in files:
        if old not in parts:
            _write(old, table, [])


def _write(path: Path, table: Table, rows: list[dict[str, str]]) -> None:
    check_package(_folder(path, table), table)
    if rows:
        _replace(path, render(table, rows))
    elif path.exists():
        path.unlink()
        _sync(path.parent)
