"""What a cell of a log says: numbers in the spellings of many languages and libraries, or nothing.

Whether 1.000 is a thousand or one is told from all cells of a file together; where they leave it open it is asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

NAN = re.compile(r"[-+]?(nan|1\.#(qnan|snan|ind)\w*)(\s*\(.*\))?", re.IGNORECASE)
INF = re.compile(r"([-+]?)(inf|infinity|∞|1\.#inf\w*)", re.IGNORECASE)
EMPTY = ("", "none", "null", "n/a", "na", "-")
_TENSOR = re.compile(r"(?:tensor|np\.float\d*|array)\(\s*([^,()\s]+).*\)")  # what Python prints of a number that is none of its own
_GROUPS = {mark: re.compile(rf"[-+]?[1-9]\d{{0,2}}({re.escape(mark)}\d{{3}})+") for mark in ",."}


class LogError(ValueError):
    """A log that cannot be judged; the message is one line for the user: file, line, remedy."""


@dataclass(frozen=True)
class Marks:
    """The mark of decimals and the mark between thousands ("": none is written)."""

    decimal: str = "."
    thousands: str = ""

    def number(self, cell: str, column: str, where: str) -> float | None:
        """A cell as a float, None where it is empty; nan and inf in all their spellings. Raises LogError."""
        text = cell.strip()
        try:  # nearly all
            if self.decimal == "." and not self.thousands and "_" not in text:
                return float(text)
        except ValueError:
            pass
        if text.lower() in EMPTY:
            return None
        if found := _TENSOR.fullmatch(text):
            text = found[1]
        if NAN.fullmatch(text):
            return float("nan")
        if found := INF.fullmatch(text):
            return float(f"{found[1]}inf")
        try:
            if "_" in text:  # Python reads 1_0 as ten; no CSV writer means that
                raise ValueError
            whole, mark, part = text.partition(self.decimal)
            if self.thousands and self.thousands in whole:
                if not _GROUPS[self.thousands].fullmatch(whole):
                    raise ValueError
                whole = whole.replace(self.thousands, "")
            return float(f"{whole}.{part}" if mark else whole)
        except ValueError:
            raise LogError(f"{where}, column {column}: {text[:40]!r} is not a number; write a number, nan or inf") from None


def marks(steps: Iterable[str], values: Iterable[str], where: str, delimiter: str) -> Marks:
    """How numbers are written, from the cells of the clock and of the other columns. Raises LogError where both are possible.

    Where a comma divides the cells, one inside a cell is quoted, and stands between thousands unless a cell shows that
    it cannot.
    """
    clock, others = {cell.strip() for cell in steps}, {cell.strip() for cell in values}
    cells = [cell for cell in clock | others if "," in cell or "." in cell]
    with_comma, with_point = [cell for cell in cells if "," in cell], [cell for cell in cells if "." in cell]
    if not with_comma:
        counting = [cell for cell in clock if "." in cell]
        if delimiter == "," or not counting or not all(_GROUPS["."].fullmatch(cell) for cell in counting):
            return Marks()
        if any("." in cell and not _GROUPS["."].fullmatch(cell) for cell in others):  # 2.31: the point marks decimals
            return Marks()
        return _asked(where, counting[0], f"{counting[0].replace('.', '')} or {float(counting[0]):g}") if any(
            "." in cell for cell in others) or len(counting) == len(clock) else Marks(",", ".")  # fmt: skip
    if any(cell.rfind(",") < cell.rfind(".") for cell in with_comma if "." in cell):
        return Marks(".", ",")  # 1,234.5
    if any("." in cell for cell in with_comma):
        return Marks(",", ".")  # 1.234,5
    if not all(_GROUPS[","].fullmatch(cell) for cell in with_comma):  # 2,31 or 0,812
        return Marks(",", "." if with_point and all(_GROUPS["."].fullmatch(cell) for cell in with_point) else "")
    if any("," in cell for cell in clock) and all("," not in cell for cell in others):
        return Marks(".", ",")
    if any(not _GROUPS["."].fullmatch(cell) for cell in with_point):
        return Marks(".", ",")
    if delimiter == ",":
        return _asked(where, with_comma[0], f"{with_comma[0].replace(',', '')} or {with_comma[0].replace(',', '.')}")
    return Marks(",", "." if with_point else "")


def _asked(where: str, cell: str, either: str) -> Marks:
    raise LogError(f"{where}: {cell!r} may be {either}; write numbers without a mark between thousands, and decimals with a point")


def is_whole(value: float | None) -> bool:
    """Whether a value can be a step: a whole number from 0 up that 64 bits hold."""
    return value is not None and math.isfinite(value) and 0 <= value < 2**63 and value == int(value)
