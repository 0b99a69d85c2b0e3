"""What keeps a log without an event from being called alive: it never learnt, or something begins in its last rows.

Each function says in words what it saw, or "" where it saw nothing; `fall` only remarks. All of them know the log
alone, no constant loss.
"""

from __future__ import annotations

import numpy as np

from suite.detect.change import (
    JUMP_RELATIVE,
    JUMP_SCATTERS,
    LEVEL,
    MIN_BEFORE,
    MIN_BEHIND,
    POINTS,
    Change,
    blocks,
    last_digit,
    trend,
    wander,
)  # fmt: skip
from suite.verdict.smooth import SHORT, robust_sd, short_median

FEWEST = 20  # rows of which it is said that they never learnt, and which are repeated: as many as any verdict needs (judge.MIN_POINTS)
CHANGED = 5  # last digits that rows differed by before those that are repeated: less is a curve that goes flat, rounded
MEMORISED = 5  # last digits: a loss as low as this is as low as the log prints
HEAD = 0.1  # share of the rows that is the end of a log
STANDARD_ERRORS = 2.0  # above the gain that is seen: a larger one is ruled out
MEDIAN_ERROR = 1.25  # standard error of a median over that of a mean, for normal noise
RISEN = 0.25  # of a rise: what may have been gained before it where a loss "only rose", and what it must have risen by early
EARLY = 1 / 3  # of the log
OUTSTANDING = 3.0  # standard errors by which first rows must stand above the last, of several numbers of first rows
ABRUPT = 10  # points that the middle half of a sudden change takes at most: two medians of five
END_SCATTERS = 8.0  # scatters by which the last rows must stand above those before, as spikes must (judge.SPIKE_SCATTERS)
END_RELATIVE = 0.05  # of the level, likewise; at one row twice that
END_RATIO = 1.5  # times the highest that as many rows stood before
COMPARED = 2000  # rows before the end that are compared with it
STAYS = 0.95  # of the rows behind a fall that lie nearer to its foot than to its top
FALL_SCATTERS = 8.0  # scatters of single rows: a fall by so many is remarked on


def never_learned(loss: np.ndarray, from_start: bool) -> tuple[str, str]:
    """(why a log without an event shows no training, or what is to be remarked on that) of a log of finite losses (N,).

    from_start: the log begins where training does; one that begins later may have learnt all before.
    """
    if len(loss) < FEWEST:
        return "", ""
    if why := repeats(loss):
        return why, ""
    if abs(np.median(_last(loss))) <= MEMORISED * last_digit(loss):  # as low as the log prints: all is memorised
        return "", ""
    if why := only_rose(loss, from_start):
        return why, ""
    sure, what = _gains_nothing(loss)
    if not from_start:
        return "", what and f"{what}; it does not begin where training does: what was learnt before is not in it"
    return (what, "") if sure else ("", what)


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


def repeats(loss: np.ndarray) -> str:
    """Why a log of finite losses (N,) shows no training: the same number to the last digit in all last rows, where it was not rounding
    that made them equal."""
    if len(loss) < FEWEST:
        return ""
    other = np.flatnonzero(loss != loss[-1])
    first = int(other[-1]) + 1 if len(other) else 0
    rows = len(loss) - first
    if rows < FEWEST:
        return ""
    if first:
        digit = last_digit(loss)
        before = np.abs(np.diff(loss[max(0, first - FEWEST):first + 1]))
        if not digit or np.median(before) <= CHANGED * digit or abs(loss[-1]) <= MEMORISED * digit:  # rounded to 0: all is memorised
            return ""
    where = f"the last {rows}" if first else f"all {rows}"
    return f"the loss is exactly {loss[-1]:.6g} in {where} rows: nothing that it is computed from changes"


def _last(loss: np.ndarray) -> np.ndarray:
    """The last rows of a log."""
    return loss[-max(MIN_BEHIND, round(HEAD * len(loss))):]


def only_rose(loss: np.ndarray, from_start: bool) -> str:
    """Why a loss is one that rises from its first rows on, and was never much lower."""
    if len(loss) < FEWEST:
        return ""
    s, d = short_median(loss), np.diff(loss)
    first, end = float(np.median(loss[:MIN_BEHIND])), float(np.median(_last(loss)))
    rise, gained = end - first, first - float(s.min())
    noise = wander(d - np.median(d), 0.0 if from_start else 2.0)
    if rise <= max(JUMP_SCATTERS * noise, JUMP_RELATIVE * abs(first), last_digit(loss)) or gained > RISEN * rise:
        return ""
    if np.argmax(s > first + RISEN * rise) > EARLY * len(s):  # it was level first
        return ""
    return f"the loss only rises from its first rows on, from {first:.4g} to {end:.4g}: nothing was learnt that could be lost"


def _gains_nothing(loss: np.ndarray) -> tuple[bool, str]:
    """(whether it is sure, in words) that a loss falls by next to nothing over the log; "" where it falls."""
    first = float(np.median(loss[:MIN_BEHIND]))
    if len(loss) > POINTS and first > np.median(loss[-len(loss) // 3:]) + OUTSTANDING * robust_sd(loss):  # within the first block
        return False, ""
    loss, _ = blocks(loss)
    third, d = max(MIN_BEHIND, len(loss) // 3), np.diff(loss)
    d -= trend(d)
    end, level = float(np.median(loss[-third:])), abs(float(np.median(loss)))
    sizes = [1, *(2**n + 1 for n in range(1, 64) if 2**n + 1 < third), third]  # most is learnt in the first rows
    noise = [wander(d, 0.0, mean_of=size) for size in sizes]
    errors = [MEDIAN_ERROR * np.hypot(one, noise[-1]) for one in noise]
    gains = [float(np.median(loss[:size])) - end for size in sizes]
    if any(gain > OUTSTANDING * error and gain > JUMP_RELATIVE * level for gain, error in zip(gains, errors, strict=True)):
        return False, ""
    what = f"{end + gains[-1]:.4g} in its first third, {end:.4g} in its last"
    if gains[-1] + STANDARD_ERRORS * errors[-1] <= JUMP_RELATIVE * level:
        return True, f"the loss gains nothing over the log: {what}"
    return (False, "") if gains[-1] > STANDARD_ERRORS * errors[-1] else (
        False, f"no gain of the loss over the log stands out of its noise: {what}")  # fmt: skip


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
    """A remark on a loss that falls by many scatters at once and stays there, which no learning does; "" for any other."""
    s, half = short_median(loss), SHORT // 2 + 1
    if len(s) < FEWEST + 2 * LEVEL:
        return ""
    drops = s[:-2 * half] - s[2 * half:]
    at = FEWEST + int(np.argmax(drops[FEWEST:-LEVEL])) + half  # the middle of the steepest
    ahead = loss[max(0, at - half - 4 * LEVEL):at - half]
    before = np.median(ahead[-LEVEL:])
    behind = np.median(loss[at + half:at + half + LEVEL])
    usual = drops[max(0, at - 4 * LEVEL):at - 3 * half]  # a steep curve falls all the time
    noise = max(robust_sd(ahead - short_median(ahead)), last_digit(loss), usual.max(initial=0.0) / 2)
    middle = (before + behind) / 2
    if before - behind < FALL_SCATTERS * noise or (s[at + half:] < middle).mean() < STAYS or s[:at - half].min() < middle:
        return ""  # small, short, or back to where it was before it rose
    at = at - half + int(np.argmax(s[at - half:] < middle))
    size = (before - behind) / noise if noise else np.inf
    return (f"the loss falls at once from {before:.4g} to {behind:.4g} at step {steps[at]}, by {size:.0f} scatters, and stays there: a "
            "lowered learning rate does so; if there was none, look at what is measured from there on")  # fmt: skip
