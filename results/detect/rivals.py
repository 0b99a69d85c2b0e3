"""Detectors of training trouble in use, and ours, as functions that see one row of a log after another.

Each factory gives a new detector, which says whether the row that it is shown is an alarm (`suite.evidence.online`).
Rules and settings are those of their sources; most were made to skip a batch, clip a gradient or count spikes, not to
find the death of a run: held to that, they are held to more than they promise.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np
import ruptures
from scipy.stats import median_abs_deviation

from suite.detect.judge import judge_foreign
from suite.diagnosis.watch import LossWatch
from suite.verdict.outcome import DEAD

EVERY = 10  # rows between two looks at all that has happened, of the detectors that look at a whole prefix


def sigmas(window: int = 128, sigmas: float = 6.0) -> Callable:
    """Loss or gradient norm above mean plus six standard deviations of its last 128 values (OLMo-core's stability monitor)."""
    seen = deque(maxlen=window), deque(maxlen=window)

    def see(step: int, loss: float, norm: float) -> bool:
        found = False
        for past, value in zip(seen, (loss, norm), strict=True):
            if math.isnan(value):
                continue
            if len(past) == window:
                values = np.array(past)
                spread = values.std()
                found |= bool(spread > 1e-10 and value > values.mean() + sigmas * spread)
            past.append(value)
        return found

    return see


def zclip(alpha: float = 0.97, z: float = 2.5, warmup: int = 25) -> Callable:
    """Gradient norm above 2.5 standard deviations of its moving average (ZClip, arXiv:2504.02507, by whose rule it is clipped, and
    enters the average so). alpha: of the average, and of the variance; warmup: steps whose mean and variance begin it."""
    first: list[float] = []
    now: list[float] = []  # mean, variance

    def see(step: int, loss: float, norm: float) -> bool:
        if math.isnan(norm):
            return False
        if not now:
            first.append(norm)
            if len(first) == warmup:
                now[:] = np.mean(first), np.var(first)
            return False
        mean, spread = now[0], math.sqrt(now[1])
        score = (norm - mean) / (spread + 1e-6)
        kept = mean + z * spread * z / score if score > z else norm
        now[0] = alpha * mean + (1 - alpha) * kept
        now[1] = alpha * now[1] + (1 - alpha) * (kept - now[0]) ** 2
        return score > z

    return see


def tenfold(times: float = 10.0, first: int = 100) -> Callable:
    """Loss or gradient norm at least ten times the largest of its first 100 values (Megatron-LM's `is_unexpectedly_large`)."""
    count, largest = [0, 0], [0.0, 0.0]

    def see(step: int, loss: float, norm: float) -> bool:
        found = False
        for i, value in enumerate((abs(loss), norm)):
            if not math.isfinite(value):
                continue
            if count[i] < first:
                count[i] += 1
                largest[i] = max(largest[i], value)
            else:
                found |= value >= times * largest[i]
        return found

    return see


def rolling_median(window: int = 201, above: float = 0.1) -> Callable:
    """Loss more than .1 above the median of its last 201 values (Qwen's count of spikes, arXiv:2608.30320; there in nats)."""
    past = deque(maxlen=window)

    def see(step: int, loss: float, norm: float) -> bool:
        found = len(past) == window and loss > float(np.median(past)) + above
        past.append(loss)
        return found

    return see


def change_points(every: int = EVERY, size: int = 10, penalty: float = 300.0) -> Callable:
    """A rise of the mean loss that PELT finds in what has happened so far (ruptures, least squares), looked at after every tenth row.

    The last change counts, where the mean behind it is higher than before it. size: rows of a piece at least; penalty:
    times log n and the noise's variance, which neighbours' differences tell. The usual 3 holds for white noise alone;
    of 3, 10, 30, 100, 300 this is the first by which few of the simulated logs of seeds from 10,000 on that have no
    spikes raise an alarm.
    """
    seen: list[tuple[int, float]] = []

    def see(step: int, loss: float, norm: float) -> int | None:
        seen.append((step, loss))
        if len(seen) % every or len(seen) < 2 * size:
            return None
        values = np.array([value for _, value in seen])
        variance = (median_abs_deviation(np.diff(values), scale="normal") ** 2 / 2) or 1e-12
        ends = ruptures.KernelCPD(kernel="linear", min_size=size).fit(values).predict(pen=penalty * math.log(len(values)) * variance)
        if len(ends) < 2:
            return None
        before, last = ([0, *ends][-3], ends[-2])
        return seen[last][0] if values[last:].mean() > values[before:last].mean() else None

    return see


def ours_detect(every: int = EVERY) -> Callable:
    """`python -m suite detect` on what has happened so far, after every tenth row: dead."""
    steps: list[int] = []
    losses: list[float] = []

    def see(step: int, loss: float, norm: float) -> int | None:
        steps.append(step)
        losses.append(loss)
        if len(steps) % every:
            return None
        found = judge_foreign(steps, losses)[0]
        return found.crash_step if found.outcome in DEAD else None

    return see


def ours_monitor() -> Callable:
    """`Monitor`'s watch on the loss alone: it speaks twelve rows behind a jump that stays."""
    watch = LossWatch()
    return lambda step, loss, norm: bool(watch.see(loss))


def sigmas_of_loss() -> Callable:
    """The first part of `sigmas` alone."""
    see = sigmas()
    return lambda step, loss, norm: see(step, loss, math.nan)


RIVALS: dict[str, tuple[str, Callable]] = {  # name: what it watches, what makes it
    "mean + 6 sigma of 128 (OLMo-core)": ("loss or norm", sigmas),
    "mean + 6 sigma of 128, of the loss alone": ("loss", sigmas_of_loss),
    "z 2.5 of an average (ZClip)": ("norm", zclip),
    "ten times the first 100 (Megatron-LM)": ("loss or norm", tenfold),
    ".1 above the median of 201 (Qwen)": ("loss", rolling_median),
    "change points (ruptures)": ("loss", change_points),
    "detect (ours)": ("loss", ours_detect),
    "Monitor's loss watch (ours)": ("loss", ours_monitor),
}
