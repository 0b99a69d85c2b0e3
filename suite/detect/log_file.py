"""From the files that trainers and dashboards write to columns of text: delimited text, JSON, JSON lines, event files; packed or piped.

What the columns mean is for `suite.detect.log_columns`. Every mistake a user can make raises `LogError`, one line:
file, line, remedy.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GZIP = b"\x1f\x8b"
BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
LARGE = 5_000_000  # bytes from which plain numbers are read at once
DELIMITERS = (",", ";", "\t")
EVENTS = "tfevents"  # in the names of TensorBoard's files


class LogError(ValueError):
    """A log that cannot be judged; the message is one line for the user: file, line, remedy."""


@dataclass(frozen=True)
class Sheet:
    """The rows of a file: cells as text, "" where there is none. lines: where each row stands, to be named in messages.

    commas: whether numbers have decimal commas. whole: False where the last line may have been cut off.
    """

    where: str
    names: list[str]
    rows: list[list[str]]
    lines: list[int]
    commas: bool = False
    whole: bool = True
    run: str = ""  # of event files: the folder below the one that was named


def read_sheets(path: str | Path) -> list[Sheet]:
    """The sheets of a file ("-": standard input) or of a folder of TensorBoard events: one, or one a run."""
    if EVENTS in Path(path).name or Path(path).is_dir():
        return _events(Path(path))
    text = _decoded(_bytes(path), path)
    if text.lstrip()[:1] in ("{", "["):
        return [_from_json(text, str(path))]
    return [_delimited(text, str(path))]


def plain_numbers(path: str | Path, wanted: Callable[[list[str]], dict[str, int] | None]) -> dict[str, np.ndarray] | None:
    """Columns of a large CSV that holds nothing but finite numbers in them, read at once; None for any other, to be read row by row.

    wanted: from the header's names to the columns to be had, by name; None declines.
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
    try:
        frame = pd.read_csv(io.BytesIO(rest), header=None, usecols=sorted(columns.values()), dtype=float, na_filter=False)
    except (ValueError, pd.errors.ParserError):  # an empty cell, nan, or anything else that is no plain number
        return None
    found = {name: frame[at].to_numpy() for name, at in columns.items()}
    return found if all(np.isfinite(values).all() for values in found.values()) else None


def _bytes(path: str | Path) -> bytes:
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
        return gzip.decompress(data) if data.startswith(GZIP) else data
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or f"not a whole gzip file: {error}"
        raise LogError(f"{path}: cannot be read ({why}); give the path of a log with a step and a loss") from None


def _decoded(data: bytes, path: str | Path) -> str:
    encoding = next((name for mark, name in BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise LogError(f"{path}: not a text file; give a CSV, JSON or JSON lines in UTF-8 with a step and a loss") from None
    if not text.strip():
        raise LogError(f"{path}: empty; write a header step,loss and one row a point")
    return text


def _delimited(text: str, where: str) -> Sheet:
    """CSV with commas, semicolons or tabs. Lines end at line feeds alone: U+2028 and the like may stand in a note."""
    lines = csv.reader(io.StringIO(text, newline=None), delimiter=_delimiter(text))
    rows, at = [], []
    try:
        for cells in lines:
            if any(cell.strip() for cell in cells):
                rows.append(cells)
                at.append(lines.line_num)
    except csv.Error as error:
        raise LogError(f"{where}, line {lines.line_num}: not CSV ({error}); write one row of plain numbers a line") from None
    names = [name.strip() for name in rows[0]]
    if len(rows) == 1:
        raise LogError(f"{where}: a header and no rows; write one row a point")
    for cells, line in zip(rows[1:], at[1:], strict=True):
        if len(cells) != len(names):
            remedy = "it looks cut off: delete it" if line == at[-1] and len(cells) < len(names) else "mend it"
            raise LogError(f"{where}, line {line}: {len(cells)} cells where the header has {len(names)}; {remedy} and run again")
    return Sheet(where, names, rows[1:], at[1:], commas=lines.dialect.delimiter == ";", whole=text.endswith(("\n", "\r")))


def _delimiter(text: str) -> str:
    """The one that the first line has most of; a comma where it has none."""
    first = next(line for line in text.split("\n") if line.strip())
    return max(DELIMITERS, key=first.count)


def _from_json(text: str, where: str) -> Sheet:
    """A trainer's state (`log_history`), a list of points, or one object a line."""
    try:
        found = json.loads(text)
        points = found.get("log_history") if isinstance(found, dict) else found
        lines = list(range(1, len(points) + 1)) if isinstance(points, list) else []
        if isinstance(found, dict) and points is None:
            points, lines = [found], [1]
    except json.JSONDecodeError as error:
        points, lines = [], []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    points.append(json.loads(line))
                    lines.append(number)
                except json.JSONDecodeError:
                    raise LogError(f"{where}, line {number}: not JSON ({error.msg}); write one object a line, or one list") from None
    if not isinstance(points, list) or not points or not all(isinstance(point, dict) for point in points):
        raise LogError(f"{where}: no points with a step and a loss; give a trainer_state.json, a list of objects, or one a line")
    points = [_flat(point) for point in points]
    names = list(dict.fromkeys(name for point in points for name in point))
    return Sheet(where, names, [[point.get(name, "") for name in names] for point in points], lines)


def _flat(point: dict, above: str = "") -> dict[str, str]:
    """An object as text by name, what it holds joined by slashes; None is empty."""
    out = {}
    for name, value in point.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{above}{name}/")
        elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
            out[above + name] = str(value)
    return out


def _events(path: Path) -> list[Sheet]:
    """The scalars of TensorBoard's event files, one sheet a folder."""
    folders = sorted({file.parent for file in path.rglob(f"*{EVENTS}*")}) if path.is_dir() else [path]
    if not folders:
        raise LogError(f"{path}: cannot be read (a folder without event files); give the path of a log with a step and a loss")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise LogError(f"{path}: event files need tensorboard, which is not installed; pip install tensorboard, or export a CSV") from None
    sheets = []
    for folder in folders:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        tags = events.Tags()["scalars"]
        points: dict[int, dict[str, str]] = {}
        for tag in tags:
            for event in events.Scalars(tag):
                points.setdefault(event.step, {})[tag] = repr(event.value)
        if points:
            steps = sorted(points)
            rows = [[str(step), *(points[step].get(tag, "") for tag in tags)] for step in steps]
            run = str(folder.relative_to(path)) if folder != path else ""
            sheets.append(Sheet(str(path), ["step", *tags], rows, list(range(1, len(rows) + 1)), run="" if run == "." else run))
    if not sheets:
        raise LogError(f"{path}: no scalars in any event file; give a CSV or JSON with a step and a loss")
    return sheets
