"""A change of level in a loss curve of which nothing is known: no constant loss, no noise level, no start of training.

Every point of the curve is tried as the first behind a change; a jump is judged by its size in scatters. The scatter
is bounded from below by the last printed digit, by the heights over the running minimum just before, and by how far
noise wanders that has the differences of this log: if neighbouring points correlate by r, differences of sd d come
from an AR(1) noise of sd d / sqrt(2 (1 - r)). How well a log tells r depends on its length; a jump that is large with
the smallest r that the log allows, but not with the largest, is not `sure`.

Curves of more than POINTS points are searched in blocks of medians. Everything works on the short median of five.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, replace

import numpy as np

from suite.verdict.smooth import SHORT, robust_sd, short_median

POINTS = 1200  # at which a curve is searched: the search is quadratic, and an event shorter than a thousandth of a log is a spike
MIN_BEFORE, MIN_BEHIND = 8, SHORT  # points that a level needs
LEVEL, LEAST_LEVEL = 15, 5  # points whose median is the level before, fewer where little lies before: a falling curve has none for long
JUMP_SCATTERS = 4.5  # results/detect/: fixed on seeds that its table does not have
JUMP_RELATIVE = 0.02  # of the level: below it a change is one of the second printed digit, and nobody's run has died
UNSURE_RELATIVE = 0.25  # of the level: a rise that is perhaps none is told from here on
ABOVE, BELOW = 0.8, 0.9  # of the points behind and just before that must lie on their side of the middle
DOUBT = 2.0  # over sqrt(points): how far the correlation may be from what it looks like
LARGEST_R = 0.95  # a correlation beyond it is drift, which the heights measure
TREND, LEAST_TREND = 0.1, 9  # share of the differences whose median is the slope, and how many at least
DIGITS = 8  # decimals; nobody prints a loss with more, and float32 has no more
HUGE, HUGE_BEHIND, HELD = 50.0, 10.0, 20  # scatters from one point to the next, before it and in all, by which no noise of any
#                                           correlation jumps at once; points for which such a jump must be held
EXPLODES = 100.0  # times the largest of its first losses: by the size of such a loss, not by its differences, is told where it rose
CLIP = 4.0  # robust sds at which differences count no further, so that the jump itself is no noise
DIP = 4.0  # points above the line that make up for one below, where the first point behind the change is sought
MEDIAN_OF_FIVE = 0.536  # sd of the median of five normal values


@dataclass(frozen=True)
class Change:
    """A rise of the level that lasts to the end of the curve. Losses in the curve's unit."""

    at: int  # index of the first point behind it
    level: float  # the short median's usual value just before
    behind: float  # and from there to the end
    low: float  # its minimum before
    sure: bool  # it is more than this log's noise can do
    lacks: str  # what is missing for that, in words; "" where sure

    @property
    def line(self) -> float:
        """Half way from the lowest to the level behind: what was crossed."""
        return (self.low + self.behind) / 2


def find_change(loss) -> Change | None:
    """The rise of level in (N,) finite losses that stands out most, or None; one that is sure goes before all that are not.

    Of more than POINTS losses the last POINTS are searched on their own too, where a block would be too coarse for
    what has just begun. A loss that explodes has no level behind that: its logarithm is searched first.
    """
    loss = np.asarray(loss, float)
    if len(loss) and loss.min() > 0 and loss.max() > EXPLODES * loss[:MIN_BEFORE].max():
        size = _search(np.log(loss))
        if size and size.sure:
            return replace(size, level=float(np.exp(size.level)), behind=float(np.exp(size.behind)), low=float(np.exp(size.low)))
    return _search(loss)


def _search(loss: np.ndarray) -> Change | None:
    """`find_change` of losses as they are."""
    found = _find(loss)
    if len(loss) > POINTS and not (found and found.sure) and (late := _find(loss[-POINTS:])):
        at = len(loss) - POINTS + late.at
        if late.sure or not found:
            return replace(late, at=at, low=float(short_median(loss[:at]).min()))
    return found


def blocks(loss: np.ndarray) -> tuple[np.ndarray, int]:
    """A curve as medians of blocks, at most POINTS, and the points of a block. What does not fill one is left out at the start,
    where least is decided."""
    size = -(-len(loss) // POINTS) if len(loss) else 1
    return np.median(loss[len(loss) % size:].reshape(-1, size), axis=1) if size > 1 else loss, size


def _find(loss: np.ndarray) -> Change | None:
    x, size = blocks(loss)
    n, kept = len(x), len(x) * size
    if n < 3:
        return None
    s = short_median(x)
    behind = _medians_to_the_end(s)
    d, digit = np.diff(x), last_digit(x)
    floor_sure = max(digit, wander(d - np.median(d), DOUBT))
    steps = d - trend(d)  # from one point to the next
    floor = max(digit, wander(d - trend(d), -DOUBT))  # a short log that falls steeply at first would seem to wander
    level = _levels(s)
    jump, relative = behind - level, JUMP_RELATIVE * np.abs(level)
    found = None  # (sure, size of the jump over what is needed, k)
    for k in np.flatnonzero(jump > np.maximum(JUMP_SCATTERS * floor, relative)):
        first, middle = max(0, k - 2 * _span(k)), (behind[k] + level[k]) / 2
        own = 0.0  # scatter from fewer than eight points is itself a coin
        if k >= MIN_BEFORE:
            own = max(robust_sd(s[first:k] - np.minimum.accumulate(s[first:k])), MEDIAN_OF_FIVE * robust_sd(x[first:k] - s[first:k]))
        if jump[k] <= JUMP_SCATTERS * own or (s[k:] > middle).mean() < ABOVE or (s[k - _span(k):k] <= middle).mean() < BELOW:
            continue
        least = max(JUMP_SCATTERS * max(floor_sure, own), relative[k])
        huge = n - k >= HELD and k >= MIN_BEFORE and s[k + 2] - s[k - 3] > jump[k] / 2 and (
            jump[k] > max(HUGE * max(own, digit, robust_sd(steps[:k - 2])), HUGE_BEHIND * robust_sd(steps)))  # fmt: skip
        sure = huge or jump[k] > least and n - k >= MIN_BEHIND
        rank = (bool(sure and k >= MIN_BEFORE), jump[k] / least, int(k))
        if not rank[0] and jump[k] < UNSURE_RELATIVE * abs(level[k]):
            continue
        if found is None or rank[:2] > found[:2]:
            found = rank
    if found is None:
        return None
    sure, _, k = found
    start = len(loss) - kept
    low = float(s[:k].min())
    at = _first_behind(s, (low + behind[k]) / 2)
    if size > 1:
        first, last = start + max(0, at - 2) * size, min(len(loss), start + (at + 2) * size)
        at = first + _first_behind(short_median(loss[first:last]), (low + behind[k]) / 2)
    before, after = at, len(loss) - at
    if before < 2:  # most of the curve lies above: a low start, no change
        return None
    lacks = ""
    if not sure or before < MIN_BEFORE or after < MIN_BEHIND:
        lacks = (f"{before} points before it, {MIN_BEFORE} are needed" if before < MIN_BEFORE else
                 f"{after} points behind it, {MIN_BEHIND} are needed" if after < MIN_BEHIND else
                 f"{len(loss)} points are too few to tell it from noise that wanders; log more often, or give --constant-loss")  # fmt: skip
    return Change(int(at), float(level[k]), float(behind[k]), low, not lacks, lacks)


def _span(k: int) -> int:
    """How many points before k make its level."""
    return min(k, LEVEL, max(LEAST_LEVEL, k // 2))


def _levels(s: np.ndarray) -> np.ndarray:
    """(N,) medians of the points just before each; nan for the first two, which have no level before."""
    out = np.full(len(s), np.nan)
    for k in range(2, min(len(s), 2 * LEVEL)):
        out[k] = np.median(s[k - _span(k):k])
    if len(s) > 2 * LEVEL:
        out[2 * LEVEL:] = np.median(np.lib.stride_tricks.sliding_window_view(s[LEVEL:-1], LEVEL), axis=1)
    return out


def _medians_to_the_end(s: np.ndarray) -> np.ndarray:
    """(N,) medians of s[k:]."""
    out, ordered = np.empty(len(s)), []
    for k in range(len(s) - 1, -1, -1):
        insort(ordered, s[k])
        half = len(ordered) // 2
        out[k] = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return out


def last_digit(x: np.ndarray) -> float:
    """The last decimal that a log prints, as a number; 0 where it prints more than DIGITS."""
    for digits in range(DIGITS + 1):
        scaled = x * 10.0**digits
        if np.allclose(scaled, np.round(scaled), rtol=1e-12, atol=1e-6):
            return 10.0**-digits
    return 0.0


def trend(d: np.ndarray) -> np.ndarray:
    """The running median of the differences: how steeply a curve goes."""
    half = max(LEAST_TREND, round(TREND * len(d))) // 2
    return np.median(np.lib.stride_tricks.sliding_window_view(np.pad(d, half, mode="edge"), 2 * half + 1), axis=1)


def wander(d: np.ndarray, doubt: float, mean_of: int = SHORT) -> float:
    """The sd of the short median of an AR(1) noise that has the differences d; its correlation taken `doubt` / sqrt(points) off.

    mean_of: of the mean of so many neighbouring points instead.
    """
    if len(d) < 2 or not (sd := robust_sd(d)):
        return 0.0
    d = np.clip(d, -CLIP * sd, CLIP * sd)
    r = 1 + 2 * (d[1:] * d[:-1]).mean() / (d * d).mean()  # neighbouring differences correlate by (r - 1) / 2
    r = min(max(r + doubt / np.sqrt(len(d)), 0.0), LARGEST_R)
    lags = np.arange(1, mean_of)
    mean = np.sqrt((1 + 2 * ((1 - lags / mean_of) * r**lags).sum()) / mean_of)  # of unit noise; a median's grows alike
    return float(sd / np.sqrt(2 * (1 - r)) * min(1.0, (MEDIAN_OF_FIVE * np.sqrt(SHORT) if mean_of == SHORT else 1.0) * mean))


def _first_behind(s: np.ndarray, line: float) -> int:
    """The point from which most of the curve lies above the line: where a walk to the end that pays DIP for each point below is highest."""
    return int(np.argmax(np.cumsum(np.where(s > line, 1.0, -DIP)[::-1])[::-1]))
