"""What the columns of somebody else's log mean: which is the loss, which rows are training's, and what a value in disguise says.

The files themselves are read by `suite.detect.log_file`. What cannot be told raises `LogError`; what was taken for
something else than it looks like is told in `Log.notes`, and nothing that may be a crash is ever left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from suite.detect.clocks import Placed, place
from suite.detect.log_file import plain_numbers, read_sheets
from suite.detect.names import BATCH, EPOCH, EVALUATION, LOSS, NORM, PHASE, RUN, STEP, is_loss, key
from suite.detect.numbers import EMPTY, LogError, is_whole, marks
from suite.detect.sheet import Sheet
from suite.verdict.signature import COLUMNS

__all__ = ["Log", "LogError", "read_logs"]

OPTIONAL = ("grad_norm", *COLUMNS)
ZEROS, BEFORE = 3, 10  # rows of exact zeros at the end that are no loss; rows before them whose level says so
ABOVE_DIGIT = 20  # times the last printed digit: below it a loss may be printed as 0
FIRST_ROWS, APART = 1000, 2 / 3  # rows by which clocks are compared; of what the best of them tells apart, a surer name needs so much
NO_NORM = 1.0  # of rows in which the gradient norm was not measured: it is neither broken there nor gone


@dataclass(frozen=True)
class Log:
    """One curve. `steps` int64, strictly increasing, >= 0; `loss` and `grad_norm` float64, nan and inf kept as written.

    `grad_norm` is None where the log has no such column, and NO_NORM in rows where its cell is empty (not measured).
    `metrics` holds the optional columns that the log has, grad_norm among them, with nan where a cell is empty.
    `ends_with_newline` is False where the last line may have been cut inside a number. `run`: its name in a file of
    several. `placed`: what the steps are, where they are none of the optimiser's, or put together.
    """

    steps: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray | None
    metrics: dict[str, np.ndarray]
    ends_with_newline: bool
    run: str = ""
    notes: list[str] = field(default_factory=list)
    placed: Placed | None = None


@dataclass(slots=True)
class _Row:
    line: int
    loss: float | None
    named: bool  # it has a loss, be it an empty one
    counter: float | None
    epoch: float | None
    metrics: dict[str, float | None]
    others: frozenset[int]  # further columns that have something


@dataclass(frozen=True)
class _Columns:
    """Which columns are read: by index, None where there is none. losses: by run, "" where there is one.

    counted: steps must be whole.
    """

    step: int | None
    epoch: int | None
    runs: int | None
    phase: int | None
    losses: dict[str, int]
    counted: bool


def read_logs(path: str | Path, column: str | None = None, step: str | None = None) -> list[Log]:
    """The curves of a file: one, or one a run.

    column: the name of the loss; step: of what counts the steps; both where they cannot be told. Raises LogError.
    """
    if (logs := _large(path, column, step)) is not None:
        return logs
    return [log for sheet in read_sheets(path, column, step) for log in _logs(sheet, column, step)]


def _large(path: str | Path, column: str | None, step: str | None) -> list[Log] | None:
    """The curves of a large file in which no value needs to be interpreted; None for any other."""
    header: list = []

    def wanted(names: list[str]) -> dict[str, int] | None:
        sheet = Sheet(str(path), names, [], [], ",")
        found = _columns(sheet, names, column, step)
        header.extend((found, names))
        if "" not in found.losses or found.step is None or found.phase is not None:
            return None
        named = {} if found.runs is None else {"run": found.runs}
        epochs = {} if found.epoch is None else {"epoch": found.epoch}
        return {"step": found.step, **_taken(sheet, names, found.losses[""], ""), **named, **epochs}

    found = plain_numbers(path, wanted)
    if found is None:
        return None
    runs = found.pop("run", None)
    if not ((found["step"] >= 0).all() and (found["step"] == np.floor(found["step"])).all() and found["step"].max() < 2**53):
        return None
    order = np.arange(len(found["step"])) if runs is None else np.argsort(runs.codes, kind="stable")
    ends = [] if runs is None else np.flatnonzero(np.diff(runs.codes[order])) + 1
    parts = np.split(order, ends)
    logs = []
    for part in sorted(parts, key=lambda part: part[0]):
        columns = {name: values[part] for name, values in found.items()}
        steps, epoch, loss = columns.pop("step"), columns.pop("epoch", None), columns.pop("loss")
        if loss[-1] == 0:
            return None
        placed = place(steps, epoch, loss, part + 2)
        metrics = {name: values[placed.kept] for name, values in columns.items()}
        run = str(runs[part[0]]) if runs is not None and len(parts) > 1 else ""
        notes = [*_unnamed(*header, header[0].losses[""], placed, column), *placed.notes]
        logs.append(Log(placed.steps, loss[placed.kept], metrics.get("grad_norm"), metrics, True, run, notes, placed))
    return logs


def _logs(sheet: Sheet, column: str | None, step: str | None) -> list[Log]:
    names, notes = [name.strip() for name in sheet.names], list(sheet.notes)
    found = _columns(sheet, names, column, step)
    clocks = [at for at in (found.step, found.epoch) if at is not None]
    out = []
    for run, loss in found.losses.items():
        taken = _taken(sheet, names, loss, run)
        number = marks(_cells(sheet, clocks), _cells(sheet, taken.values()), sheet.where, sheet.delimiter).number
        by_run: dict[str, list[_Row]] = defaultdict(list)
        reader = _Reader(sheet, found, taken, number)
        for cells, line in zip(sheet.rows, sheet.lines, strict=True):
            if (row := reader.row(cells, line)) is not None:
                by_run[(cells[found.runs] or "").strip() if found.runs is not None else run].append(row)
        for name, rows in by_run.items():
            log = _log(sheet, rows, taken, name or sheet.run)
            said = [*notes, *_unnamed(found, names, loss, log.placed, column), *reader.notes(), *log.notes]
            out.append(replace(log, notes=said))
    if not out:
        raise LogError(f"{sheet.where}: no row has a loss; write one row a point, nan where it is nan")
    named = len(out) > 1
    return [log if named else replace(log, run=sheet.run) for log in out]


def _unnamed(columns: _Columns, names: list[str], loss: int, placed: Placed, column: str | None) -> list[str]:
    """The columns that the user did not name and that are called neither step nor loss."""
    out = []
    if columns.counted and columns.step is not None and placed.unit == "step" and key(names[columns.step]) != "step":
        out.append(f"steps: column {names[columns.step]!r}")
    if column is None and key(names[loss]) != "loss":
        out.append(f"loss: column {names[loss]!r}")
    return out


def _cells(sheet: Sheet, columns: Collection[int]) -> Iterator[str]:
    """All cells of these columns whose spelling must be found out; none of what programs write."""
    return (cells[at] for cells in sheet.rows for at in columns) if sheet.delimiter else iter(())


def _columns(sheet: Sheet, names: list[str], column: str | None, step: str | None) -> _Columns:
    """Which columns are read. Raises LogError where that cannot be told."""
    epoch = _one(sheet, names, EPOCH)
    if step is not None:
        counter = _named(sheet, names, step, "--step")
    else:
        counter = _counter(sheet, names)
        if counter is None and epoch is None and sheet.delimiter:
            raise LogError(f"{sheet.where}, line 1: column 'step' is not in the header ({', '.join(names)[:200]}); name the columns "
                           "step,loss, or say what counts the steps with --step NAME")  # fmt: skip
    runs, losses = _losses(sheet, names, column)
    phase = next((i for i, name in enumerate(names) if key(name) in PHASE), None)
    return _Columns(counter, None if epoch == counter else epoch, runs, phase, losses, step is None)


def _named(sheet: Sheet, names: list[str], name: str, flag: str) -> int:
    """The column of a name that the user gave."""
    low = [key(one) for one in names]
    if names.count(name) == 1:
        return names.index(name)
    if low.count(key(name)) != 1:
        raise LogError(f"{sheet.where}: {flag} {name}: no such column; it has {', '.join(names)[:200]}")
    return low.index(key(name))


def _counter(sheet: Sheet, names: list[str]) -> int | None:
    """The column that counts steps: the surest name of those that tell rows apart, as a step that has several iterations does not."""
    there = [at for name in (*STEP, *BATCH) if (at := _one(sheet, names, (name,))) is not None]
    told = [len({cells[at] for cells in sheet.rows[:FIRST_ROWS]} - {None, ""}) for at in there]  # rows apart
    return next((at for at, n in zip(there, told, strict=True) if n >= APART * max(told)), None)


def _taken(sheet: Sheet, names: list[str], loss: int, run: str) -> dict[str, int]:
    """The columns to be read, by the names that the verdict knows."""
    taken = {"loss": loss} | {name: at for name in COLUMNS if (at := _one(sheet, names, (name,))) is not None}
    norm = _norm(sheet, names, run)
    return taken if norm is None else taken | {"grad_norm": norm}


def _losses(sheet: Sheet, names: list[str], column: str | None) -> tuple[int | None, dict[str, int]]:
    """(the column that names the run, or None; the loss's column by run, "" where it is the only one)."""
    runs = _one(sheet, names, RUN)
    if column is not None:
        return runs, {"": _named(sheet, names, column, "--column")}
    like = [i for i, name in enumerate(names) if is_loss(name)]
    if (at := _one(sheet, names, LOSS)) is not None:
        return runs, {"": _alive(sheet, names, at, like)}
    for wanted in LOSS:  # Weights & Biases: one column a run, "run - train/loss"
        found = {name.rpartition(" - ")[0]: i for i, name in enumerate(names) if key(name.rpartition(" - ")[2]) == wanted}
        if found and "" not in found:
            return None, found
    if len(like) == 1:
        return runs, {"": like[0]}
    what = f"several columns may be the loss ({', '.join(names[i] for i in like)[:120]})"
    if not like:
        what = f"column 'loss' is not in the header, and no other of a loss ({', '.join(names)[:300]})"
    raise LogError(f"{sheet.where}, line 1: {what}; name the columns step,loss, or say which is the loss with --column NAME")


def _alive(sheet: Sheet, names: list[str], at: int, like: list[int]) -> int:
    """The column of the loss: another one where it never holds a number, and exactly one other does from the start on."""
    if not sheet.rows or _has_numbers(sheet, at):
        return at
    others = [i for i in like if i != at]
    living = [i for i in others if _has_numbers(sheet, i)]
    if len(living) == 1 and len(others) == 1:
        return living[0]
    if living and len(living) == len(others):
        raise LogError(f"{sheet.where}, line 1: column {names[at]!r} is nan from its first row on, and several others may be the loss "
                       f"({', '.join(names[i] for i in living)[:120]}); say which with --column NAME")  # fmt: skip
    return at


def _has_numbers(sheet: Sheet, at: int) -> bool:
    """Whether a column holds a finite number anywhere."""

    def finite(cell: str | None) -> bool:
        try:
            return bool(np.isfinite(float((cell or "nan").replace(",", "."))))
        except ValueError:  # whatever it is, it is to be read, and told, where it stands
            return True

    return any(finite(cells[at]) for cells in sheet.rows)


def _one(sheet: Sheet, names: list[str], wanted: tuple[str, ...]) -> int | None:
    """The column that bears the first of these names that is there; None where there is none."""
    low = [key(name) for name in names]
    for name in wanted:
        if (n := low.count(name)) == 1:
            return low.index(name)
        if n > 1:
            raise LogError(f"{sheet.where}, line 1: column {name!r} is twice in the header ({', '.join(names)[:80]}); keep one {name}")
    return None


def _norm(sheet: Sheet, names: list[str], run: str) -> int | None:
    if run:
        low = [key(name) for name in names]
        return next((low.index(key(f"{run} - {name}")) for name in NORM if key(f"{run} - {name}") in low), None)
    return _one(sheet, names, NORM)


class _Reader:
    """From a sheet's cells to rows of numbers; what is no row of training is counted, and told in `notes`."""

    def __init__(self, sheet: Sheet, columns: _Columns, taken: dict[str, int], number: Callable) -> None:
        self.sheet, self.columns, self.taken, self.number = sheet, columns, taken, number
        self.beside = {columns.step, columns.epoch, *taken.values()}
        self.clockless: list[int] = []
        self.phases: list[int] = []
        self.seen: dict[frozenset[int], frozenset[int]] = {}  # few sets for many rows

    def row(self, cells: list[str | None], line: int) -> _Row | None:
        """One row; None where it is none of training. Raises LogError where a cell is no number."""
        where, columns = f"{self.sheet.where}, line {line}", self.columns
        if columns.phase is not None and EVALUATION.search((cells[columns.phase] or "").lower()):
            self.phases.append(line)
            return None
        found = {name: self._value(cells[at], name, where) for name, at in self.taken.items()}
        loss, named = found.pop("loss"), cells[self.taken["loss"]] is not None
        epoch = None if columns.epoch is None else self._value(cells[columns.epoch], "epoch", where)
        counter = None
        if columns.step is not None:
            counter = self._value(cells[columns.step], "step", where)
            if counter is None and (loss is None or cells[columns.step] is None):
                if loss is not None:
                    self.clockless.append(line)
                return None
            if columns.counted and not is_whole(counter) or counter is None or not np.isfinite(counter):
                raise LogError(f"{where}: step {cells[columns.step]!r} is not a whole number from 0 up; write step numbers, or say what "
                               "counts the steps with --step NAME")  # fmt: skip
        others = frozenset(i for i, cell in enumerate(cells) if cell and i not in self.beside and cell.strip().lower() not in EMPTY)
        return _Row(line, loss, named, counter, epoch, found, self.seen.setdefault(others, others))

    def _value(self, cell: str | None, column: str, where: str) -> float | None:
        return None if cell is None else self.number(cell, column, where)

    def notes(self) -> list[str]:
        """What was left out."""
        return [f"{len(lines)} rows {what}, and are left out, the first on line {lines[0]}" for lines, what in (
            (self.clockless, "have a loss and no step"), (self.phases, "are of an evaluation")) if lines]  # fmt: skip


def _log(sheet: Sheet, rows: list[_Row], taken: dict[str, int], run: str) -> Log:
    """The curve of one run's rows, in the file's order."""
    notes: list[str] = []
    rows = _training(rows, notes)
    if not rows:
        raise LogError(f"{sheet.where}: no row has a loss{f' of run {run}' if run else ''}; write one row a point, nan where it is nan")
    loss = _floats([row.loss for row in rows])
    counter, epoch = _floats([row.counter for row in rows]), _floats([row.epoch for row in rows])
    placed = place(None if np.isnan(counter).all() else counter, None if np.isnan(epoch).all() else epoch, loss, [row.line for row in rows])
    notes += placed.notes
    rows, steps, loss = [rows[i] for i in placed.kept.tolist()], placed.steps, loss[placed.kept]
    metrics = {name: _floats([row.metrics[name] for row in rows]) for name in taken if name != "loss"}
    norm = None
    if "grad_norm" in taken:
        norm = np.array([NO_NORM if row.metrics["grad_norm"] is None else row.metrics["grad_norm"] for row in rows])
        if sheet.delimiter:
            _lost_norm(rows, steps, norm, notes)
    _zeros(steps, loss, [cells[taken["loss"]] or "" for cells in sheet.rows[:200]], notes)
    return Log(steps, loss, norm, metrics, sheet.whole, run, notes, placed)


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _training(rows: list[_Row], notes: list[str]) -> list[_Row]:
    """The rows of training: those with a loss, and those at the end that have all of theirs but it (an empty loss is nan there).

    A row that has no such name at all (in JSON), or less than every row with a loss has, says nothing of the loss.
    """
    places = [i for i, row in enumerate(rows) if row.loss is not None]
    if not places:
        return []
    last, usual = places[-1], max((b - a for a, b in pairwise(places)), default=1)  # rows from one logged loss to the next
    at = {(row.epoch, row.counter) for row in rows if row.loss is not None and row.counter is not None}
    full = [rows[i].others for i in places]
    columns, always = frozenset().union(*set(full)), frozenset.intersection(*set(full))
    out, gone, behind, between = [], [], [], 0
    for i, row in enumerate(rows):
        if row.loss is not None:
            out.append(row)
        elif (row.epoch, row.counter) in at or row.others - columns or i <= last:
            between += 1
        elif row.named and row.others >= always and len(rows) - last > usual:
            out.append(row)
            gone.append(row)
        else:
            behind.append(row)
    if gone:
        first = f"line {gone[0].line}" if gone[0].counter is None else f"step {gone[0].counter:g}"
        notes.append(f"the loss is empty from {first} to the end: taken as nan, which some tools write so")
    if between:
        notes.append(f"{between} rows have no loss, and losses come after them: taken as evaluations or as not logged")
    if behind:
        notes.append(f"the losses end before the log does: {len(behind)} rows behind them, from line {behind[0].line} on, have none: taken "
                     "as a summary, or as not logged; what became of the loss there is not in this log")  # fmt: skip
    return out


def _lost_norm(rows: list[_Row], steps: np.ndarray, norm: np.ndarray, notes: list[str]) -> None:
    """A gradient norm that was written at every row and then never again is nan from there."""
    missing = np.array([row.metrics["grad_norm"] is None for row in rows])
    first = int(np.argmax(missing)) if missing.any() else len(rows)
    if BEFORE <= first <= len(rows) - ZEROS and missing[first:].all():
        norm[first:] = np.nan
        notes.append(f"grad_norm is empty from step {steps[first]} to the end, and at no row before: taken as nan")


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
