"""What a cell may hold: Python values to text, text checked against its column, and rows of values as a person reads them."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable

from suite.records.schema import Column, Table

# Eighteen digits fit an int64; the number pattern keeps out what float() would also take ("1_0", " 1", "Infinity").
_PATTERNS = {
    "integer": re.compile(r"0|-?[1-9][0-9]{0,17}"),
    "number": re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|nan|-?inf"),
    "boolean": re.compile(r"true|false"),
}


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


def cell_check(column: Column) -> Callable[[str], str]:
    """A function that says what is wrong with a cell of the column, "" where nothing is."""
    empty, of_type = "is empty but required" if column.required else "", f"is not of type {column.type}"
    if column.enum:
        of_enum = f"is not one of {', '.join(column.enum)}"
        return lambda text: empty if not text else "" if text in column.enum else of_enum
    if column.type == "string":
        return lambda text: empty if not text else "" if text.isprintable() else _odd(text)
    matches = _PATTERNS[column.type].fullmatch
    return lambda text: empty if not text else "" if matches(text) else of_type


def _odd(text: str) -> str:
    odd = next(char for char in text if not char.isprintable())
    return f"holds U+{ord(odd):04X}, a newline, control character, odd blank or the like"


def cell_fault(table: Table, name: str, value) -> str | None:
    """What the writer would refuse about this value in this column, or None; a plan asks before anything is trained."""
    column = next(column for column in table.columns if column.name == name)
    try:
        return cell_check(column)(format_value(value, column.type)) or None
    except (ValueError, OverflowError) as error:
        return str(error)


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
