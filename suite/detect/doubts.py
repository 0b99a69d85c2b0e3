"""What keeps a log without an event from being called alive: it never learnt, or something begins in its last rows.

Each function says in words what it saw, or "" where it saw nothing; `fall` only remarks. All of them know the log
alone, no constant loss.
"""

from __future__ import annotations

import numpy as np

from suite.detect.change import (
    CLIP,
    JUMP_RELATIVE,
    JUMP_SCATTERS,
    LEVEL,
    MIN_BEFORE,
    MIN_BEHIND,
    Change,
    find_change,
    last_digit,
    trend,
    wander,
)  # fmt: skip
from suite.verdict.smooth import robust_sd, short_median

FEWEST = 20  # rows of which it is said that they never learnt, and which are repeated: as many as any verdict needs (judge.MIN_POINTS)
CHANGED = 5  # last digits that rows differed by before those that are repeated: less is a curve that goes flat, rounded
HEAD = 0.1  # share of the rows that is the start, and the end, of a log
STANDARD_ERRORS = 2.0  # above the gain that is seen: a larger one is ruled out
MEDIAN_ERROR = 1.25  # standard error of a median over that of a mean, for normal noise
RISEN = 0.25  # of a rise: what may have been gained before it where a loss "only rose"
ABRUPT = 10  # points that the middle half of a sudden change takes at most: two medians of five
END_SCATTERS = 8.0  # scatters by which the last rows must stand above those before, as spikes must (judge.SPIKE_SCATTERS)
END_RELATIVE = 0.05  # of the level, likewise; at one row twice that
END_RATIO = 1.5  # times the highest that as many rows stood before
COMPARED = 2000  # rows before the end that are compared with it
FALL_SCATTERS = 8.0  # scatters of single rows: a fall by so many is remarked on


def never_learned(loss: np.ndarray, from_start: bool) -> str:
    """Why a log without an event shows no training. loss (N,): finite; from_start: the log begins where training does."""
    if len(loss) < FEWEST:
        return ""
    if why := _repeats(loss):
        return why
    if abs(np.median(_ends(loss)[1])) <= FEWEST * last_digit(loss):  # as low as the log prints: all is memorised
        return ""
    return _only_rose(loss, from_start) or (_gains_nothing(loss) if from_start else "")


def idle_gradient(norm: np.ndarray | None) -> str:
    """Why a gradient norm (N,), nan where not measured, shows no training: it is exactly 0 to the end."""
    if norm is None or len(measured := norm[~np.isnan(norm)]) < FEWEST:
        return ""
    moves = np.flatnonzero(measured != 0)
    last = int(moves[-1]) + 1 if len(moves) else 0
    if len(measured) - last < FEWEST:
        return ""
    since = f"from its value {last + 1} on" if last else "throughout"
    return f"the gradient norm is exactly 0 {since}: nothing is trained there"


def _repeats(loss: np.ndarray) -> str:
    """The same number to the last digit in all last rows, where it was not rounding that made them equal."""
    other = np.flatnonzero(loss != loss[-1])
    first = int(other[-1]) + 1 if len(other) else 0
    rows = len(loss) - first
    if rows < FEWEST:
        return ""
    if first:
        digit = last_digit(loss)
        before = np.abs(np.diff(loss[max(0, first - FEWEST):first + 1]))
        if not digit or np.median(before) <= CHANGED * digit or abs(loss[-1]) <= FEWEST * digit:  # rounded to 0: all is memorised
            return ""
    where = f"the last {rows}" if first else f"all {rows}"
    return f"the loss is exactly {loss[-1]:.6g} in {where} rows: nothing that it is computed from changes"


def _ends(loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last rows of a log."""
    size = max(MIN_BEHIND, round(HEAD * len(loss)))
    return loss[:size], loss[-size:]


def _only_rose(loss: np.ndarray, from_start: bool) -> str:
    """A loss that is higher at its end than at its first rows, and was never much lower."""
    s, d = short_median(loss), np.diff(loss)
    first, end = float(np.median(loss[:MIN_BEHIND])), float(np.median(_ends(loss)[1]))
    rise, gained = end - first, first - float(s.min())
    noise = wander(d - np.median(d), 0.0 if from_start else 2.0)
    if rise <= max(JUMP_SCATTERS * noise, JUMP_RELATIVE * abs(first), last_digit(loss)) or gained > RISEN * rise:
        return ""
    return f"the loss only rises from its first rows on, from {first:.4g} to {end:.4g}: nothing was learnt that could be lost"


def _gains_nothing(loss: np.ndarray) -> str:
    """A loss that falls, if at all, by less than JUMP_RELATIVE of its level from the start of training to the end of the log."""
    d = np.diff(loss)
    head, tail = _ends(loss)
    noise = wander(d - trend(d), 0.0, mean_of=len(head))
    start = max(np.median(head), np.median(loss[:3]))  # most is learnt in the first rows
    gain, level = float(start - np.median(tail)), abs(float(np.median(loss)))
    if gain + STANDARD_ERRORS * MEDIAN_ERROR * np.sqrt(2) * noise > JUMP_RELATIVE * level:
        return ""
    return f"the loss gains nothing over the log: {start:.4g} at its start, {np.median(tail):.4g} at its end"


def last_rows(loss: np.ndarray) -> int:
    """How many rows at the very end stand above all before as a jump would, too few for any other rule; 0 where none do."""
    loss = loss[-COMPARED:]
    found = 0
    for k in range(1, MIN_BEHIND):
        before = loss[:-k]
        if len(before) < MIN_BEFORE:
            break
        level = np.median(before[-LEVEL:])
        height = loss[-k:].min() - level
        near = before[-4 * LEVEL:]
        noise = max(robust_sd(near - short_median(near)), last_digit(loss))
        earlier = _heights(before, k)
        usual = max(noise, robust_sd(earlier)) if len(earlier) >= MIN_BEFORE else noise
        if (height > END_SCATTERS * usual and loss[-k:].mean() - level > END_RELATIVE * (2 if k == 1 else 1) * abs(level)
                and height > END_RATIO * max(earlier.max(initial=0.0), 0.0)):  # fmt: skip
            found = k
    return found


def _heights(loss: np.ndarray, k: int) -> np.ndarray:
    """How high every k rows stood above the level before them."""
    span = min(LEVEL, len(loss) - k)
    if span < MIN_BEHIND:
        return np.empty(0)
    levels = np.median(np.lib.stride_tricks.sliding_window_view(loss[:len(loss) - k], span), axis=1)
    lowest = np.lib.stride_tricks.sliding_window_view(loss[span:], k).min(axis=1)
    return lowest - levels


def is_abrupt(loss: np.ndarray, change: Change) -> bool:
    """Whether a change of level comes at once: the middle half of it within ABRUPT rows."""
    s, jump = short_median(loss), change.behind - change.level
    low = np.flatnonzero(s[:change.at + 1] <= change.level + jump / 4)
    high = np.flatnonzero(s[change.at:] >= change.level + 3 * jump / 4)
    return bool(len(low) and len(high) and change.at + high[0] - low[-1] <= ABRUPT)


def rises_from_zero(loss: np.ndarray, change: Change) -> bool:
    """Whether a slow rise starts where the loss does, at exactly 0: such a loss (GRPO's, a divergence) begins there."""
    first = short_median(loss)[:MIN_BEHIND]
    return bool((np.abs(first) <= last_digit(loss)).all() and not is_abrupt(loss, change))


def fall(steps: np.ndarray, loss: np.ndarray) -> str:
    """A remark on a loss that falls by many scatters at once and stays there."""
    s = short_median(loss)
    drops = s[FEWEST:-ABRUPT] - s[FEWEST + ABRUPT:]
    if not len(drops) or drops.max() < FALL_SCATTERS / 2 * robust_sd(loss - s):  # nearly always, and quick to see
        return ""
    change = find_change(-loss)
    if change is None or not change.sure or change.at < FEWEST or not is_abrupt(-loss, change):
        return ""
    near = loss[max(0, change.at - 4 * LEVEL):change.at]
    noise = max(robust_sd(np.clip(near - short_median(near), -CLIP, CLIP)), last_digit(loss))
    size = (change.behind - change.level) / noise if noise else np.inf
    if size < FALL_SCATTERS:
        return ""
    went = f"from {-change.level:.4g} to {-change.behind:.4g}"
    return (f"the loss falls at once {went} at step {steps[change.at]}, by {size:.0f} scatters, and stays there: a learning rate that is "
            "lowered does so; if none was, look at what is measured from there on")  # fmt: skip
