"""Tables as programs print them: cells between spaces or |, under a line of names, with whatever else was printed around them.

fastai's, pandas' and notebooks' tables, Markdown, and their like.
"""

from __future__ import annotations

import re

from suite.detect.names import is_clock, is_loss
from suite.detect.sheet import Sheet, quoted

LEAST = 2  # rows that make a table
_WIDE = re.compile(r"\s{2,}|\t")
_PHASE = re.compile(r"\b(train(?:ing)?|valid(?:ation)?|eval(?:uation)?|test)\s+(loss)\b", re.IGNORECASE)  # two words of one name
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*(?:e[-+]?\d+)?|nan|inf)%?", re.IGNORECASE)
_NONE = ("", "-", "--", "None", "No log")  # of a cell in which nothing was measured, as notebooks write it
_RULE = re.compile(r"[\s|:+=-]*-[\s|:+=-]*")  # below the names in Markdown, around them elsewhere


def read_table(text: str, where: str) -> Sheet | None:
    """The longest printed table with a loss of training as a sheet; None where there is none.

    A row may have more cells than there are names: a duration behind them, or its own number before them, as pandas has.
    """
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip() and not _RULE.fullmatch(line)]
    best: Sheet | None = None
    for i, (number, line) in enumerate(lines):
        for names in _headers(line):
            rows = _rows(lines[i + 1:], names)
            if len(rows) >= LEAST and len(rows) > (len(best.rows) if best else 0):
                notes = [f"read as a printed table: {len(rows)} rows under line {number}: {quoted(line)}"]
                best = Sheet(where, names, [cells for _, cells in rows], [at for at, _ in rows], whole=text.endswith("\n"), notes=notes)
    return best


def _headers(line: str) -> list[list[str]]:
    """The names that a line may give, in the ways in which it can be parted; none where no loss is among them, or a number is."""
    if "loss" not in line.lower():
        return []
    ways = [line.strip().strip("|").split("|")] if "|" in line else [_WIDE.split(line.strip()), _PHASE.sub(r"\1_\2", line).split()]
    ways = [[name.strip() for name in names] for names in ways]
    return [names for names in ways if len(names) > 1 and any(is_loss(name) for name in names) and len({*names}) == len(names)
            and not any(_NUMBER.fullmatch(name) for name in names)]  # fmt: skip


def _rows(lines: list[tuple[int, str]], names: list[str]) -> list[tuple[int, list[str]]]:
    """The rows below a line of names, as far as they go: chatter between them is passed over, another line of names ends them."""
    parted = []
    for number, line in lines:
        if _headers(line):
            break
        parted.append((number, [cell.strip() for cell in (line.strip().strip("|").split("|") if "|" in line else line.split())]))
    longer = [cells for _, cells in parted if len(cells) == len(names) + 1 and all(_is_value(cell) for cell in cells)]
    counted = len(longer) >= LEAST and all(cells[0] == str(i) for i, cells in enumerate(longer))
    out = []
    for number, cells in parted:
        cells = cells[counted:][: len(names)]
        judged = [cell for name, cell in zip(names, cells, strict=False) if is_loss(name) or is_clock(name)]
        if len(cells) == len(names) and all(map(_is_value, judged)):
            out.append((number, ["" if cell in _NONE else cell.rstrip("%") for cell in cells]))
    return out


def _is_value(cell: str) -> bool:
    return cell in _NONE or _NUMBER.fullmatch(cell) is not None
