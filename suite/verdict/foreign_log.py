"""Read somebody else's loss curve: a CSV with columns `step,loss` and, if it likes, `grad_norm` and audit metrics.

Every mistake a user can make raises `LogError` with one line that names the file, the line and what to do.
"""
from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suite.verdict.signature import COLUMNS

OPTIONAL = ("grad_norm", *COLUMNS)


class LogError(ValueError):
    """A log that cannot be judged; the message is one line for the user: file, line, remedy."""


@dataclass(frozen=True)
class Log:
    """One curve. `steps` int64, strictly increasing, >= 0; `loss` and `grad_norm` float64, nan and inf kept as written.

    `grad_norm` is None where the log has no such column, and 0 in rows where its cell is empty (not measured). `metrics`
    holds the optional columns that the log has, grad_norm among them, with nan where a cell is empty.
    `ends_with_newline` is False where the last line may have been cut inside a number.
    """

    steps: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray | None
    metrics: dict[str, np.ndarray]
    ends_with_newline: bool


def read_log(path: str | Path) -> Log:
    """Read the CSV at `path`; raise LogError where it is missing, empty, or not such a log. Unknown columns are ignored."""
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise LogError(f"{path}: not a text file; give a CSV in UTF-8 with columns step,loss") from None
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror}); give the path of a CSV with columns step,loss") from None
    lines = csv.reader(text.splitlines())
    try:
        rows = [(lines.line_num, cells) for cells in lines if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise LogError(f"{path}, line {lines.line_num}: not CSV ({error}); write one row of plain numbers a line") from None
    if not rows:
        raise LogError(f"{path}: empty; write a header step,loss and one row a point")
    names = [name.strip() for name in rows[0][1]]
    for name in ("step", "loss", *OPTIONAL):
        if names.count(name) != 1 and (name not in OPTIONAL or name in names):
            problem = "twice" if name in names else "not"
            remedy = f"keep one {name}" if name in OPTIONAL else "name the columns step,loss"
            raise LogError(f"{path}, line {rows[0][0]}: column {name!r} is {problem} in the header "
                           f"({', '.join(names)[:80]}); {remedy}")
    if len(rows) == 1:
        raise LogError(f"{path}: a header and no rows; write one row a point")
    columns = {name: names.index(name) for name in ("step", "loss", *OPTIONAL) if name in names}
    steps, loss, metrics = [], [], {name: [] for name in OPTIONAL if name in columns}
    for line, cells in rows[1:]:
        where = f"{path}, line {line}"
        if len(cells) != len(names):
            remedy = "it looks cut off: delete it" if line == rows[-1][0] and len(cells) < len(names) else "mend it"
            raise LogError(f"{where}: {len(cells)} cells where the header has {len(names)}; {remedy} and run again")
        step = _number(cells[columns["step"]], "step", where)
        if not (0 <= step < 2**63 and step == int(step)):
            raise LogError(f"{where}: step {cells[columns['step']]!r} is not a whole number from 0 up; write step numbers")
        if steps and step <= steps[-1]:
            problem = "appears twice" if step == steps[-1] else f"comes after {steps[-1]}"
            raise LogError(f"{where}: step {int(step)} {problem}; sort the rows by step and keep one a step "
                           "(after a restart: the last)")
        steps.append(int(step))
        loss.append(_number(cells[columns["loss"]], "loss", where))
        for name, values in metrics.items():
            cell = cells[columns[name]]
            values.append(_number(cell, name, where) if cell.strip() else None)
    norm = metrics.get("grad_norm")
    return Log(
        np.array(steps, np.int64), np.array(loss), None if norm is None else np.array([0.0 if v is None else v for v in norm]),
        {name: np.array(values, float) for name, values in metrics.items()}, text.endswith(("\n", "\r")))


def _number(cell: str, column: str, where: str) -> float:
    """`cell` as a float, nan and inf included; an empty cell is an error, for a gap in the loss hides a crash."""
    try:
        if "_" in cell:  # Python reads 1_0 as ten; no CSV writer means that
            raise ValueError
        return float(cell)
    except ValueError:
        what = f"{cell.strip()[:40]!r} is not a number" if cell.strip() else "the cell is empty"
        raise LogError(f"{where}, column {column}: {what}; write a number, nan or inf, or leave the row out") from None
