"""What the columns of somebody else's log mean: which is the loss, which rows are training's, and what a value in disguise says.

The files themselves are read by `suite.detect.log_file`. What cannot be told raises `LogError`; what was taken for
something else than it looks like is told in `Log.notes`, and nothing that may be a crash is ever left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from suite.detect.log_file import LogError, Sheet, plain_numbers, read_sheets
from suite.verdict.signature import COLUMNS

__all__ = ["Log", "LogError", "read_logs"]

OPTIONAL = ("grad_norm", *COLUMNS)
# Names by which trainers and dashboards log, the surer ones first; compared without case
STEP = ("step", "global_step", "trainer/global_step", "train/global_step", "_step", "iteration", "iterations", "iter", "steps", "it")
LOSS = ("loss", "train_loss", "train/loss", "training_loss", "training/loss", "loss/train", "train/train_loss", "train_loss_step",
        "train/loss_step", "lm loss", "lm_loss", "value")  # fmt: skip
NORM = ("grad_norm", "train/grad_norm", "gradient_norm", "train/gradient_norm", "grad-norm", "grad norm", "gradnorm", "gnorm", "total_norm")
RUN = ("run_id", "run", "run_name", "run name")
OTHER_LOSS = re.compile(r"(^|[^a-z])(e?val|valid|validation|test)([^a-z]|$)|__(min|max)$")
NAN = re.compile(r"[-+]?(nan|1\.#(qnan|snan|ind)\w*)(\s*\(.*\))?", re.IGNORECASE)
INF = re.compile(r"([-+]?)(inf|infinity|∞|1\.#inf\w*)", re.IGNORECASE)
EMPTY = ("", "none", "null", "n/a", "na", "-")
ZEROS, BEFORE = 3, 10  # rows of exact zeros at the end that are no loss; rows before them whose level says so
ABOVE_DIGIT = 20  # times the last printed digit: below it a loss may be printed as 0
DISORDER = 0.02  # of the rows: more steps back than these are no resumes but rows in disorder
FEW = 3  # steps back that any log may have


@dataclass(frozen=True)
class Log:
    """One curve. `steps` int64, strictly increasing, >= 0; `loss` and `grad_norm` float64, nan and inf kept as written.

    `grad_norm` is None where the log has no such column, and 0 in rows where its cell is empty (not measured).
    `metrics` holds the optional columns that the log has, grad_norm among them, with nan where a cell is empty.
    `ends_with_newline` is False where the last line may have been cut inside a number. `run`: its name in a file of
    several.
    """

    steps: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray | None
    metrics: dict[str, np.ndarray]
    ends_with_newline: bool
    run: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass
class _Row:
    line: int
    step: int
    loss: float | None
    metrics: dict[str, float | None]
    others: frozenset[int]  # further columns that have something


def read_logs(path: str | Path, column: str | None = None) -> list[Log]:
    """The curves of a file: one, or one a run. column: the name of the loss where it cannot be told. Raises LogError."""
    if (log := _large(path, column)) is not None:
        return [log]
    return [log for sheet in read_sheets(path) for log in _logs(sheet, column)]


def _large(path: str | Path, column: str | None) -> Log | None:
    """The curve of a large file of one run in which no value needs to be interpreted; None for any other."""

    def wanted(names: list[str]) -> dict[str, int] | None:
        sheet = Sheet(str(path), names, [], [])
        if _one(sheet, names, RUN, "run", need=False) is not None:
            return None
        _, losses = _losses(sheet, names, column)
        return {"step": _one(sheet, names, STEP, "step"), **_taken(sheet, names, losses[""], "")} if "" in losses else None

    found = plain_numbers(path, wanted)
    if found is None:
        return None
    steps, loss = found.pop("step"), found.pop("loss")
    whole = steps[0] >= 0 and (steps == np.floor(steps)).all() and (np.diff(steps) > 0).all() and steps[-1] < 2**53
    if not whole or loss[-1] == 0:
        return None
    return Log(steps.astype(np.int64), loss, found.get("grad_norm"), found, True)


def _logs(sheet: Sheet, column: str | None) -> list[Log]:
    names = [name.strip() for name in sheet.names]
    step = _one(sheet, names, STEP, "step")
    runs, losses = _losses(sheet, names, column)
    out = []
    for run, loss in losses.items():
        taken = _taken(sheet, names, loss, run)
        by_run: dict[str, list[_Row]] = defaultdict(list)
        for cells, line in zip(sheet.rows, sheet.lines, strict=True):
            by_run[cells[runs].strip() if runs is not None else run].append(_row(sheet, cells, line, step, taken))
        out += [_log(sheet, rows, taken, name or sheet.run) for name, rows in by_run.items()]
    named = len(out) > 1
    return [log if named else Log(**{**vars(log), "run": sheet.run}) for log in out]


def _taken(sheet: Sheet, names: list[str], loss: int, run: str) -> dict[str, int]:
    """The columns to be read, by the names that the verdict knows."""
    taken = {"loss": loss} | {name: at for name in COLUMNS if (at := _one(sheet, names, (name,), name, need=False)) is not None}
    norm = _norm(sheet, names, run)
    return taken if norm is None else taken | {"grad_norm": norm}


def _losses(sheet: Sheet, names: list[str], column: str | None) -> tuple[int | None, dict[str, int]]:
    """(the column that names the run, or None; the loss's column by run, "" where it is the only one)."""
    runs = _one(sheet, names, RUN, "run", need=False)
    if column is not None:
        if names.count(column) != 1:
            raise LogError(f"{sheet.where}: --column {column}: no such column; it has {', '.join(names)[:200]}")
        return runs, {"": names.index(column)}
    if (at := _one(sheet, names, LOSS, "loss", need=False)) is not None:
        return runs, {"": at}
    for wanted in LOSS:  # Weights & Biases: one column a run, "run - train/loss"
        found = {name.rpartition(" - ")[0]: i for i, name in enumerate(names) if name.rpartition(" - ")[2].lower() == wanted}
        if found and "" not in found:
            return None, found
    like = [name for name in names if "loss" in name.lower() and not OTHER_LOSS.search(name.lower())]
    if len(like) == 1:
        return runs, {"": names.index(like[0])}
    what = f"several columns may be the loss ({', '.join(like)[:120]})"
    if not like:
        what = f"column 'loss' is not in the header ({', '.join(names)[:80]})"
    raise LogError(f"{sheet.where}, line 1: {what}; name the columns step,loss, or say which is the loss with --column NAME")


def _one(sheet: Sheet, names: list[str], wanted: tuple[str, ...], what: str, need: bool = True) -> int | None:
    """The column that bears the first of these names that is there."""
    low = [name.lower() for name in names]
    for name in wanted:
        if (n := low.count(name)) == 1:
            return low.index(name)
        if n > 1:
            raise LogError(f"{sheet.where}, line 1: column {name!r} is twice in the header ({', '.join(names)[:80]}); keep one {name}")
    if need:
        raise LogError(f"{sheet.where}, line 1: column {what!r} is not in the header ({', '.join(names)[:80]}); name the columns step,loss")
    return None


def _norm(sheet: Sheet, names: list[str], run: str) -> int | None:
    if run:
        low = [name.lower() for name in names]
        return next((low.index(f"{run} - {name}".lower()) for name in NORM if f"{run} - {name}".lower() in low), None)
    return _one(sheet, names, NORM, "grad_norm", need=False)


def _row(sheet: Sheet, cells: list[str], line: int, step: int, taken: dict[str, int]) -> _Row:
    where = f"{sheet.where}, line {line}"
    value = _number(cells[step], "step", where, sheet.commas)
    if value is None or not (0 <= value < 2**63 and value == int(value)):
        raise LogError(f"{where}: step {cells[step]!r} is not a whole number from 0 up; write step numbers")
    found = {name: _number(cells[at], name, where, sheet.commas) for name, at in taken.items()}
    others = frozenset(i for i, cell in enumerate(cells) if i not in (step, *taken.values()) and cell.strip().lower() not in EMPTY)
    return _Row(line, int(value), found.pop("loss"), found, others)


def _number(cell: str, column: str, where: str, commas: bool) -> float | None:
    """A cell as a float, None where it is empty; nan and inf in all their spellings."""
    text = cell.strip()
    if text.lower() in EMPTY:
        return None
    if NAN.fullmatch(text):
        return float("nan")
    if found := INF.fullmatch(text):
        return float(f"{found[1]}inf")
    try:
        if "_" in text:  # Python reads 1_0 as ten; no CSV writer means that
            raise ValueError
        return float(text.replace(",", ".", 1) if commas else text)
    except ValueError:
        raise LogError(f"{where}, column {column}: {text[:40]!r} is not a number; write a number, nan or inf") from None


def _log(sheet: Sheet, rows: list[_Row], taken: dict[str, int], run: str) -> Log:
    """The curve of one run's rows, in the file's order."""
    notes: list[str] = []
    rows = _in_order(_training(rows, notes), notes)
    if not rows:
        raise LogError(f"{sheet.where}: no row has a loss{f' of run {run}' if run else ''}; write one row a point, nan where it is nan")
    steps = np.array([row.step for row in rows], np.int64)
    loss = np.array([np.nan if row.loss is None else row.loss for row in rows])
    metrics = {name: np.array([np.nan if (v := row.metrics[name]) is None else v for row in rows]) for name in taken if name != "loss"}
    norm = None
    if "grad_norm" in taken:
        norm = np.array([0.0 if row.metrics["grad_norm"] is None else row.metrics["grad_norm"] for row in rows])
        _lost_norm(rows, norm, notes)
    _zeros(steps, loss, [cells[taken["loss"]] for cells in sheet.rows[:200]], notes)
    return Log(steps, loss, norm, metrics, sheet.whole, run, notes)


def _training(rows: list[_Row], notes: list[str]) -> list[_Row]:
    """The rows of training: those with a loss, and those at the end that lack theirs (a loss of None is nan there)."""
    with_loss = [row for row in rows if row.loss is not None]
    places = [i for i, row in enumerate(rows) if row.loss is not None]
    usual = max((b - a for a, b in pairwise(places)), default=1)  # rows from one logged loss to the next
    steps, columns = {row.step for row in with_loss}, frozenset().union(*(row.others for row in with_loss))
    last = max((i for i, row in enumerate(rows) if row.loss is not None), default=-1)
    out, gone, evaluations = [], [], 0
    for i, row in enumerate(rows):
        if row.loss is not None:
            out.append(row)
        elif row.step in steps or row.others - columns:
            evaluations += 1
        elif i > last >= 0 and len(rows) - last > usual:
            out.append(row)
            gone.append(row)
        else:
            evaluations += 1
    if gone:
        notes.append(f"the loss is empty from step {gone[0].step} to the end: taken as nan, which some tools write so")
    if evaluations:
        notes.append(f"{evaluations} rows have no loss, and losses come after them: taken as evaluations or as not logged")
    return out


def _in_order(rows: list[_Row], notes: list[str]) -> list[_Row]:
    """Rows by strictly rising step: what a resume trained again takes the place of what it left; the last of a step counts."""
    back = sum(b.step < a.step for a, b in zip(rows, rows[1:], strict=False))
    if back > max(FEW, DISORDER * len(rows)):
        notes.append(f"the steps are in disorder ({back} go back): rows are taken by step, not by place")
        return list({row.step: row for row in sorted(rows, key=lambda row: row.step)}.values())
    out: list[_Row] = []
    for row in rows:
        if out and row.step < out[-1].step:
            left = [old for old in out if old.step >= row.step]
            end = "nan" if left[-1].loss is None else f"{left[-1].loss:.4g}"
            notes.append(f"line {row.line}: the steps go back from {out[-1].step} to {row.step}: taken as a resume of one run; what it "
                         f"left is not judged ({len(left)} rows, the last loss {end})")  # fmt: skip
            del out[len(out) - len(left) :]
        elif out and row.step == out[-1].step:
            if row.loss != out[-1].loss:
                notes.append(f"line {row.line}: step {row.step} has a second loss; the last counts")
            out.pop()
        out.append(row)
    return out


def _lost_norm(rows: list[_Row], norm: np.ndarray, notes: list[str]) -> None:
    """A gradient norm that was written at every row and then never again is nan from there."""
    missing = np.array([row.metrics["grad_norm"] is None for row in rows])
    first = int(np.argmax(missing)) if missing.any() else len(rows)
    if BEFORE <= first <= len(rows) - ZEROS and missing[first:].all():
        norm[first:] = np.nan
        notes.append(f"grad_norm is empty from step {rows[first].step} to the end, and at no row before: taken as nan")


def _zeros(steps: np.ndarray, loss: np.ndarray, printed: list[str], notes: list[str]) -> None:
    """A loss of exactly 0 to the end, behind one well above its last printed digit, is nan: some trainers write it so."""
    filled = np.flatnonzero(loss != 0)
    first = int(filled[-1]) + 1 if len(filled) else 0
    if not first or len(loss) - first < ZEROS:
        return
    digit = 10.0 ** -max(len(cell.strip().replace(",", ".").partition(".")[2].partition("e")[0]) for cell in printed)
    if np.nanmedian(loss[max(0, first - BEFORE):first]) > ABOVE_DIGIT * digit:
        loss[first:] = np.nan
        notes.append(f"the loss is exactly 0 from step {steps[first]} to the end: taken as nan, which some trainers log so")
