"""From the files that trainers and dashboards write to columns of text: delimited text, JSON, JSON lines, printed output; packed or piped.

What the columns mean is for `suite.detect.log_columns`. Every mistake a user can make raises `LogError`, one line:
file, line, remedy.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from suite.detect.event_file import is_events, read_events
from suite.detect.names import EPOCH, NORM, RUN, STEP, is_loss, key
from suite.detect.numbers import LogError
from suite.detect.printed_table import read_table
from suite.detect.sheet import Sheet, quoted, unpacked
from suite.detect.stdout_log import not_understood, read_printed

BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
LARGE = 5_000_000  # bytes from which plain numbers are read at once
DELIMITERS = (",", ";", "\t")
VALUED = re.compile(r"[:=]\s*['\"]?[-+]?(\d|nan|inf|\.)|\s[-+]?[\d.]+(e[-+]?\d+)?$|[{}]", re.IGNORECASE)  # a name with its value: no header
LOOKS_LIKE_JSON = re.compile(r"""\s*[{\[]\s*(["{\[]|$)""")
NANS = ["nan", "NaN", "-nan"]  # as programs print it; an empty cell may be something else
TEXT = "run"  # the one column of `plain_numbers` that holds names


def read_sheets(path: str | Path, column: str | None = None, step: str | None = None) -> list[Sheet]:
    """The sheets of a file ("-": standard input) or of a folder of TensorBoard events: one, or one a run.

    column, step: how the user calls the loss and the clock, where that was said. Raises LogError.
    """
    if str(path) != "-" and (is_events(Path(path)) or Path(path).is_dir()):
        return read_events(Path(path))
    where, text = str(path), _decoded(_bytes(path), path)
    if text.lstrip()[:1] in ("{", "["):
        try:
            return [_from_json(text, where)]
        except LogError:  # Python's dicts, "[rank0]: step 1", ...; where the first line is JSON or begins it, JSON that is broken
            if _is_json(_first(text)) or _begins_json(_first(text)):
                raise
            if sheet := read_printed(text, where, column) or read_table(text, where):
                return [sheet]
            if LOOKS_LIKE_JSON.match(text):
                raise
            raise not_understood(text, where) from None
    if not _is_table(text, column, step):
        if sheet := read_printed(text, where, column) or read_table(text, where):
            return [sheet]
        if _cells_of(text) < 2 or _has_values(_first(text)):
            raise not_understood(text, where)
    return [_delimited(text, where)]


def plain_numbers(path: str | Path, wanted: Callable[[list[str]], dict[str, int] | None]) -> dict[str, np.ndarray] | None:
    """Columns of a large CSV that holds nothing but numbers in them, and nan in full, read at once; None for any other, to be read by row.

    wanted: from the header's names to the columns to be had, by name; None declines. The column called TEXT is one of
    names, and comes as a pandas Categorical.
    """
    if str(path) == "-" or not Path(path).is_file() or Path(path).stat().st_size < LARGE:
        return None
    import pandas as pd

    data = Path(path).read_bytes()
    head, _, rest = data.partition(b"\n")
    if not head.isascii() or b'"' in data or b";" in head or b"\t" in head or not data.endswith(b"\n"):
        return None
    names = [name.strip() for name in head.decode().split(",")]
    columns = wanted(names)
    if columns is None or rest.count(b",") != (len(names) - 1) * rest.count(b"\n"):
        return None
    kinds = {at: "category" if name == TEXT else float for name, at in columns.items()}
    try:
        frame = pd.read_csv(io.BytesIO(rest), header=None, usecols=sorted(kinds), dtype=kinds, keep_default_na=False,
                            na_values={at: NANS for at, kind in kinds.items() if kind is float})  # fmt: skip
    except (ValueError, pd.errors.ParserError):  # an empty cell, or anything else that is no plain number
        return None
    return {name: frame[at].array if name == TEXT else frame[at].to_numpy() for name, at in columns.items()}


def _bytes(path: str | Path) -> bytes:
    if str(path) == "-" and sys.stdin is None:
        raise LogError("-: standard input is closed; pipe a log into it, or give the path of one")
    read = sys.stdin.buffer.read if str(path) == "-" else Path(path).read_bytes
    return unpacked(read, path, "give the path of a log with a step and a loss")


def _decoded(data: bytes, path: str | Path) -> str:
    encoding = next((name for mark, name in BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if b"\0" in data[:1000] or encoding == "utf-16":
            raise LogError(f"{path}: not a text file; give a CSV, JSON or JSON lines in UTF-8 with a step and a loss") from None
        line = data.count(b"\n", 0, error.start) + 1
        raise LogError(f"{path}: not a text file in UTF-8: line {line} holds the byte {data[error.start]:#04x}; mend that line, or save "
                       "the file as UTF-8") from None  # fmt: skip
    if not text.strip():
        raise LogError(f"{path}: empty; write a header step,loss and one row a point")
    return text


# ---- delimited text

def _first(text: str) -> str:
    """The first line that holds something."""
    return next(line for line in text.split("\n") if line.strip())


def _cells_of(text: str) -> int:
    """How many cells the first line has, if it is one of a table."""
    return _first(text).count(_delimiter(text)) + 1


def _is_table(text: str, column: str | None, step: str | None) -> bool:
    """Whether the first line is a header: of several cells, one of them a name that is known, and none with a value beside its name."""
    cells = [cell.strip().strip('"') for cell in _first(text).split(_delimiter(text))]
    if len(cells) < 2 or _has_values(_first(text)):
        return False
    known = {*STEP, *EPOCH, *NORM, *RUN, *(key(name) for name in (column, step) if name)}
    return any(key(cell) in known or is_loss(cell.rpartition(" - ")[2]) for cell in cells)


def _has_values(line: str) -> bool:
    """Whether a line has values beside names, which no header has."""
    return any(VALUED.search(cell.strip().strip('"')) for cell in line.split(_delimiter(line)))


def _delimited(text: str, where: str) -> Sheet:
    """CSV with commas, semicolons or tabs. Lines end at line feeds alone: U+2028 and the like may stand in a note."""
    delimiter = _delimiter(text)
    lines = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
    rows, at, names, before = [], [], None, 0
    try:
        for cells in lines:
            if any(cell.strip() for cell in cells):
                names = names or cells
                if any("\n" in cell and _swallows(cell, delimiter, len(names)) for cell in cells):
                    raise LogError(f"{where}, line {before + 1}: a quote that is opened here swallows the rows to line {lines.line_num}; "
                                   "close it on its line")  # fmt: skip
                rows.append(cells)
                at.append(lines.line_num)
            before = lines.line_num
    except csv.Error as error:
        what = f"not CSV ({error}); write one row of plain numbers a line"
        if "unexpected end" in str(error):
            what = "a quote that is opened here is never closed, and swallows what follows; close it"
        raise LogError(f"{where}, line {before + 1}: {what}") from None
    names = [name.strip() for name in rows[0]]
    if len(rows) == 1:
        raise LogError(f"{where}: a header and no rows; write one row a point")
    for cells, line in zip(rows[1:], at[1:], strict=True):
        if len(cells) != len(names):
            remedy = "it looks cut off: delete it" if line == at[-1] and len(cells) < len(names) else "mend it"
            raise LogError(f"{where}, line {line}: {len(cells)} cells where the header has {len(names)}; {remedy} and run again")
    return Sheet(where, names, rows[1:], at[1:], delimiter, whole=text.endswith(("\n", "\r")))


def _swallows(cell: str, delimiter: str, cells: int) -> bool:
    """Whether a quoted cell of several lines holds what looks like rows: a note may have lines, but not with a row's cells."""
    return any(line.count(delimiter) == cells - 1 for line in cell.split("\n")[1:-1])


def _delimiter(text: str) -> str:
    """The one that the first line has most of; a comma where it has none."""
    return max(DELIMITERS, key=_first(text).count)


# ---- JSON

def _begins_json(line: str) -> bool:
    """Whether a first line opens brackets that later lines must close: what is cut off then is not to be read as if it were whole."""
    return bool(LOOKS_LIKE_JSON.match(line)) and sum(map(line.count, "{[")) > sum(map(line.count, "}]"))


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), (dict, list))
    except (ValueError, RecursionError):
        return False


def _from_json(text: str, where: str) -> Sheet:
    """A trainer's state (`log_history`), a list of points, lists of numbers by name, or one object a line."""
    notes: list[str] = []
    try:
        found = json.loads(text)
    except RecursionError:
        raise _no_points(where, "it is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, and numbers of thousands of digits
        points, lines = _json_lines(text, where, getattr(error, "msg", str(error)), notes)
    else:
        points, lines = _points(found), []
        if points is None:
            raise _no_points(where, f"it is {_shape(found)}")
        lines = list(range(1, len(points) + 1))
    if not points or not all(isinstance(point, dict) for point in points):
        raise _no_points(where, f"it is a list of {_shape(points[0])}" if points else "it holds none")
    first, points = points[0], [_flat(point) for point in points]
    names = list(dict.fromkeys(name for point in points for name in point))
    if not names:
        raise _no_points(where, f"none has a number; the first is {_shape(first)}")
    return Sheet(where, names, [[point.get(name) for name in names] for point in points], lines, notes=notes)


def _no_points(where: str, what: str) -> LogError:
    return LogError(f"{where}: no points with a step and a loss: {what}; give a trainer_state.json, a list of objects, or one a line")


def _shape(found) -> str:
    """What a JSON value is, in words."""
    if isinstance(found, dict):
        return f"an object with {', '.join(map(str, list(found)[:8]))}"[:120] if found else "an empty object"
    return "an empty list" if found == [] else f"a list of {type(found[0]).__name__}" if isinstance(found, list) else type(found).__name__


def _points(found) -> list | None:
    """The points of a whole JSON file; None where it has none."""
    if isinstance(found, list):
        return found
    if not isinstance(found, dict):
        return None
    if "log_history" in found:
        return found["log_history"] if isinstance(found["log_history"], list) else None
    columns = {name: cells for name, cells in found.items() if isinstance(cells, list)}
    if columns and all(not isinstance(cell, (dict, list)) for cells in columns.values() for cell in cells):
        sizes = {len(cells) for cells in columns.values()}  # Keras' history, pandas' to_dict("list")
        if len(sizes) == 1:
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    inner = [value for value in found.values() if isinstance(value, list) and value and all(isinstance(point, dict) for point in value)]
    if len(inner) == 1:
        return inner[0]
    return None if inner or columns else [found]


def _json_lines(text: str, where: str, why: str, notes: list[str]) -> tuple[list, list[int]]:
    """One object a line; text between them is left out and said, an object that is broken is refused."""
    points, lines, strays = [], [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            points.append(json.loads(line))
            lines.append(number)
        except RecursionError:
            raise _no_points(where, f"line {number} is nested too deeply") from None
        except ValueError as error:
            if line.lstrip()[0] in "{[" or not points:
                why = getattr(error, "msg", str(error))
                raise LogError(f"{where}, line {number}: not JSON ({why}): {quoted(line)}; write one object a line, or one list") from None
            strays.append((number, line))
    if strays:
        notes.append(f"{len(strays)} lines between the objects are no JSON and are left out, the first on line {strays[0][0]}: "
                     f"{quoted(strays[0][1])}")  # fmt: skip
    return points, lines


def _flat(point: dict) -> dict[str, str]:
    """An object as text by name, what it holds joined by slashes; "" where it has null."""
    out, left = {}, [(point, "")]
    while left:
        inner, above = left.pop()
        for name, value in inner.items():
            if isinstance(value, dict):
                left.append((value, f"{above}{name}/"))
            elif value is None or isinstance(value, (int, float, str)) and not isinstance(value, bool):
                out[above + name] = "" if value is None else repr(value) if isinstance(value, float) else str(value)
    return out
