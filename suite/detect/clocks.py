"""How far training had come at each row: steps, pairs of an epoch and a counter that restarts with it, epochs, or rows alone.

A counter that goes back is one of two things. It restarts with each epoch: then the epochs are put end to end. Or a run
was resumed from a checkpoint: then what it trained again takes the place of what it left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

DISORDER = 0.02  # of the rows: more steps back than these are no resumes but rows in disorder
FEW = 3  # steps back that any log may have
NEAR, HEAD = 5, 20  # rows before a place where a counter goes back, and behind it, whose losses tell a new epoch from a new run
DISTINCT = 0.9  # of the rows that an epoch must tell apart to be their clock


@dataclass(frozen=True)
class Placed:
    """The rows that count, in order, and where each is. steps (N,) int64 rise strictly; kept (N,): which rows they are.

    unit: what a step is: a "step" of the optimiser, an "epoch" or a "row". epochs, counters (N,): what the log itself
    says of each row, where that is something else; None otherwise.
    """

    kept: np.ndarray
    steps: np.ndarray
    unit: str = "step"
    epochs: np.ndarray | None = None
    counters: np.ndarray | None = None
    called: str = "at epoch"  # before one of `epochs`, in a message
    notes: list[str] = field(default_factory=list)


def place(counter: Sequence[float] | None, epoch: Sequence[float] | None, loss: np.ndarray, lines: Sequence[int]) -> Placed:
    """Where N rows stand. counter: what counts steps; epoch: what counts epochs, nan where it does not say; None where there is none.

    Of rows at one step the last counts, but a loss that is no number goes before one that is.
    """
    t = None if counter is None else np.asarray(counter, float)
    e = None if epoch is None else np.asarray(epoch, float)
    notes: list[str] = []
    if e is not None and not np.isfinite(e).all():
        e = None
    if t is not None and len(t) > FEW and (t == t[0]).all():
        if e is None or (e == e[0]).all():
            notes.append(f"what counts steps stays at {t[0]:g}: steps are the numbers of the rows")
        t = None
    if t is None or (t != np.floor(t)).any():
        return _by_epoch(e if t is None else t, loss, lines, notes, called="epoch" if t is None else "clock")
    if e is None or not (e == np.floor(e)).all():
        major = _restarts(t, loss)
    else:
        back = np.flatnonzero(np.diff(t) < 0) + 1
        ahead = e[back] > e[back - 1]
        major = e - e.min() if ahead.any() and ahead.mean() >= 0.5 else np.zeros(len(t))
    several = len(np.unique(major)) > 1
    length = t.max() + (_spacing(t) if t.min() <= 0 else 0) if several else 0.0
    kept = _in_order(major * length + t, loss, lines, notes)
    if several:
        shown = major[kept] + 1 if e is None else e[kept]
        n, size = len(np.unique(major)), length
        notes.append(f"the counter restarts with each epoch: {n} epochs are put end to end, each {size:g} steps long")
        return Placed(kept, (major * length + t)[kept].astype(np.int64), "step", shown, t[kept], notes=notes)
    return Placed(kept, t[kept].astype(np.int64), notes=notes)


def _by_epoch(clock: np.ndarray | None, loss: np.ndarray, lines: Sequence[int], notes: list[str], called: str) -> Placed:
    """Rows where no step is: an epoch that tells them apart and is whole is their clock; otherwise they are counted."""
    if clock is None:
        notes = notes or ["nothing says how far training is: steps are the numbers of the rows"]
        return Placed(np.arange(len(loss)), np.arange(1, len(loss) + 1), "row", notes=notes)
    if (clock == np.floor(clock)).all() and (clock >= 0).all() and len(np.unique(clock)) >= DISTINCT * len(clock):
        kept = _in_order(clock, loss, lines, notes)
        return Placed(kept, clock[kept].astype(np.int64), "epoch", notes=[*notes, "no step is logged: steps are epochs"])
    kept = _in_order(clock, loss, lines, notes, equal=True)
    notes.append(f"the only clock is {'an epoch that counts' if called == 'epoch' else 'one that counts'} no single rows: steps are their "
                 "numbers")  # fmt: skip
    shown = "at epoch" if called == "epoch" else "where the clock shows"
    return Placed(kept, np.arange(1, len(kept) + 1), "row", clock[kept], called=shown, notes=notes)


def _spacing(t: np.ndarray) -> float:
    """The usual distance between two rows."""
    rises = np.diff(t)
    return float(np.median(rises[rises > 0])) if (rises > 0).any() else 1.0


def _restarts(t: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """(N,) how often a counter has restarted before each row; all 0 where it goes back for another reason.

    It restarts where it goes back to where it began, and either ends at the same number each time, or the loss goes on
    from where it was and does not fall as it did in the beginning.
    """
    back = np.flatnonzero(np.diff(t) < 0) + 1
    if not len(back):
        return np.zeros(len(t))
    begins = t[back] <= max(t[0], _spacing(t))
    ends = np.unique(t[back - 1])
    goes_on = [_goes_on(loss[max(0, at - NEAR):at], loss[at:at + HEAD], loss[:min(HEAD, back[0])]) for at in back]
    if not begins.all() or not (len(back) > 1 and len(ends) == 1 or np.mean(goes_on) > 0.5):
        return np.zeros(len(t))
    out = np.zeros(len(t))
    out[back] = 1
    return np.cumsum(out)


def _goes_on(before: np.ndarray, after: np.ndarray, first: np.ndarray) -> bool:
    """Whether losses go on from those just before, rather than repeat the first ones; those that are no number go on."""
    n = min(len(after), len(first))
    after, first, before = after[:n], first[:n], before[np.isfinite(before)]
    both = np.isfinite(after) & np.isfinite(first)
    if not (len(before) and both.any()):
        return True
    return bool(np.abs(after[both] - np.median(before)).mean() < np.abs(after[both] - first[both]).mean())


def _in_order(t: np.ndarray, loss: np.ndarray, lines: Sequence[int], notes: list[str], equal: bool = False) -> np.ndarray:
    """The rows that count, by rising t. equal: rows of one t are several; otherwise one of them counts."""
    back = np.flatnonzero(np.diff(t) < 0) + 1
    if len(back) > max(FEW, DISORDER * len(t)):
        where = f"{len(back)} go back, the first on line {lines[back[0]]}"
        notes.append(f"the steps are in disorder ({where}): rows are taken by step, not by place")
        order = np.argsort(t, kind="stable")
    elif len(back):
        order = _resumed(t, loss, lines, back, notes)
    else:
        order = np.arange(len(t))
    return order if equal else _one_each(t, loss, lines, order, notes)


def _resumed(t: np.ndarray, loss: np.ndarray, lines: Sequence[int], back: np.ndarray, notes: list[str]) -> np.ndarray:
    """Rows without those that a resume trained again."""
    kept, n = np.empty(len(t), np.int64), int(back[0])
    kept[:n] = np.arange(n)
    at = np.empty(len(t))  # t of what is kept, which rises
    at[:n] = t[:n]
    for first, last in pairwise([*back.tolist(), len(t)]):
        since = int(np.searchsorted(at[:n], t[first]))
        if first == back[0]:
            more = f"; {len(back)} resumes in all" if len(back) > 1 else ""
            went = f"from {t[first - 1]:g} to {t[first]:g}"
            notes.append(f"line {lines[first]}: the steps go back {went}: taken as a resume of one run; what it "
                         f"left is not judged ({n - since} rows, the last loss {loss[kept[n - 1]]:.4g}{more})")  # fmt: skip
        n = since + last - first
        kept[since:n], at[since:n] = np.arange(first, last), t[first:last]
    return kept[:n]


def _one_each(t: np.ndarray, loss: np.ndarray, lines: Sequence[int], order: np.ndarray, notes: list[str]) -> np.ndarray:
    """Rows with one of each step: the last, or the last whose loss is no number."""
    at, value = t[order], loss[order]
    same = np.flatnonzero(np.diff(at) == 0)
    if not len(same):
        return order
    other = same[(value[same] != value[same + 1]) & ~(np.isnan(value[same]) & np.isnan(value[same + 1]))]
    ranked = np.lexsort((np.arange(len(at)), ~np.isfinite(value), at))
    last = np.append(np.diff(at[ranked]) != 0, True)
    if len(other):
        shown, first = other[-1], other[0]
        more = f"; {len(other)} such rows, the first on line {lines[order[first + 1]]}" if len(other) > 1 else ""
        broken = not np.isfinite(value[shown]) and np.isfinite(value[shown + 1])
        which = "what is no number" if broken else "the last"
        notes.append(f"line {lines[order[shown + 1]]}: step {at[shown]:g} has a second loss; {which} counts{more}")
    return order[ranked[last]]
