"""From a loss curve to an outcome and a crash step: the one place where a crash is defined.

`judge` is for our own runs, where the loss c of the best token-constant output is known. It works on the short median
s (centred, five points); m_k is the running minimum of s before point k. An excursion is a run of points with s above
m_k + (c - m_k)/2. One that lasts the confirmation window is the crash, one that comes back is a spike, and one that
meets the end of the curve sooner is an unconfirmed crash (if five points or more lie behind it). Logs from elsewhere:
`suite.detect.judge`.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from suite.verdict.smooth import SHORT, short_median

OUTCOMES = ("survived", "stuck", "collapsed", "degraded", "untrained", "nonfinite", "too_short")
DEAD = ("collapsed", "degraded", "nonfinite")  # a run that trained, and died
UNUSABLE = (*DEAD, "stuck", "untrained")  # what LR50 counts
GONE = (*DEAD, "untrained")  # at no loss that training gives: their state is looked at, and they get neither scores nor a probe

HALF_WAY = 0.5  # of c - m: the line that a loss crosses. This and the next three were fixed before a run was looked at
AT_CONSTANT = 0.1  # of c - m: a window's median this near to c, on either side, is a collapse
STUCK = 0.6  # of c: a run that ends the horizon above it has not trained (what others would give: results/instrument/thresholds.csv)
MIN_STEPS = 200  # below it a run is too short to judge, from it on it should have learnt something
CLEARLY_BELOW = 0.2  # of c. Batch noise (sd up to .15 at c = 2) pulls m about .25 below the true level; at less than
#                      twice that the half-way line lies inside the noise, and a slow learner would "collapse"
LEARNT_POINTS = 10  # points whose mean s must be clearly below c: its sd is then .05 at most, so .2 c is 8 sd


def fate(outcome: str) -> str:
    """"dead", "unusable" or "live": what of an outcome may be expected to repeat on another machine; "" for what is none of these."""
    return "dead" if outcome in DEAD else "unusable" if outcome in UNUSABLE else "live" if outcome == "survived" else ""


@dataclass(frozen=True)
class Verdict:
    """What became of a run. Losses are in the curve's own unit; the crash step is one of its steps."""

    outcome: str  # one of OUTCOMES; of a log from elsewhere also `unknown`
    crash_step: int | None  # first step at which it stopped being usable; None: it did not, or it never was
    confirmed: bool  # a full confirmation window lies behind the event (a non-finite value needs none)
    best_loss: float | None  # m: minimum of the short median, up to the crash or the horizon
    final_loss: float | None  # median of the last `window` finite points, or fewer; of those up to the horizon where there was no crash
    threshold: float | None  # the loss level used at crash_step; None where no level was crossed
    spikes: int  # excursions of the short median above the threshold that came back, up to the crash; not an outcome
    steps: int  # points judged
    late_step: int | None = None  # where no event counts: the first that began behind the horizon


def judge(
    steps, loss, *, constant_loss: float, window: int, horizon: int, grad_norm=None, warmup: int = 0, heldout_loss: float | None = None,
    stuck: float = STUCK, below: float = CLEARLY_BELOW,
) -> Verdict:
    """Judge one of our own runs on its curve so far: one point a step, `steps` strictly increasing.

    `constant_loss` is c; `window` is the confirmation window in points; events that start after the step `horizon` do
    not count, but the first is told as `late_step`; `warmup` is the number of steps in which the learning rate rises:
    before twice that many (and 200) nothing can be said of a run that has not crashed. `heldout_loss` is that at the
    horizon: a run is `stuck` where both losses end the horizon above 0.6 c (the curve's alone where it is None). A
    verdict of collapsed or degraded that is confirmed rests on the points up to the end of its window alone, so later
    points cannot change it. Raises ValueError on arguments that make no sense.
    """
    return judge_known(steps, loss, constant_loss, window, horizon, grad_norm, max(MIN_STEPS, 2 * warmup), heldout_loss, stuck, below)


def judge_known(
    steps, loss, c, window, horizon, grad_norm, min_points, heldout_loss=None, stuck=STUCK, below=CLEARLY_BELOW
) -> Verdict:
    """`judge`, with the number of points below which a run is too short. horizon None: a foreign log, to be taken as complete."""
    steps, loss, end, broken = checked(steps, loss, grad_norm, window, horizon)
    if not (np.isfinite(c) and c > 0):
        raise ValueError(f"constant_loss must be finite and above 0, not {c}")
    raw, smooth = loss[:end], short_median(loss[:end])
    counted = end if horizon is None else int(np.searchsorted(steps[:end], horizon, side="right"))

    best = np.minimum.accumulate(np.concatenate((smooth[:1], smooth[:-1])))  # m_k; the first point has only itself
    armed = np.zeros(end, bool)  # the run has been clearly below c before point k: only then can it fall back
    arm = min(LEARNT_POINTS, window)
    if end > arm:
        means = np.lib.stride_tricks.sliding_window_view(smooth, arm).mean(axis=1)
        armed[arm:] = np.logical_or.accumulate(means < c * (1 - below))[:-1]
    starts, stops = excursions(armed & (smooth > best + HALF_WAY * (c - best)))

    # The last two medians of a window lean on points behind it. Leaving them out makes a confirmed verdict final.
    lasted = (stops - starts >= window - SHORT // 2) & (starts + window <= end)
    if horizon is None:
        lasted &= stops == end
    events = lasted | (stops == end) & (end - starts >= SHORT)
    event = events & (starts < counted)
    at = int(starts[event][0]) if event.any() else None
    confirmed = at is not None and bool(lasted[event][0])
    spikes = int(np.sum((starts < (counted if at is None else at)) & (stops < end)))

    def verdict(outcome, at=None, confirmed=False, threshold=None):
        return verdict_of(outcome, steps, raw, smooth, window, spikes, at, confirmed, threshold, len(loss), counted)

    if broken and not confirmed:
        return verdict("nonfinite", end, True)
    if len(loss) < min_points and not confirmed:
        return verdict("too_short")
    if at is not None:
        m = best[at]
        level = np.median(raw[at:None if horizon is None else at + window])  # where a log is complete, of all that followed
        collapsed = abs(level - c) <= AT_CONSTANT * (c - m)
        return verdict("collapsed" if collapsed else "degraded", at, confirmed, m + HALF_WAY * (c - m))
    late = starts[events & (starts >= counted)]
    late_step = int(steps[late[0]]) if len(late) else int(steps[end]) if end < len(loss) else None
    if not armed[:counted].any():
        return replace(verdict("untrained"), late_step=late_step)
    alive = verdict("survived")
    if horizon is not None and steps[-1] >= horizon and min(alive.final_loss, np.inf if heldout_loss is None else heldout_loss) > stuck * c:
        alive = replace(alive, outcome="stuck")
    return replace(alive, late_step=late_step)


def checked(steps, loss, grad_norm, window, horizon):
    """The arguments as arrays, the index of the first non-finite point (or the length), and whether that point counts."""
    steps, loss = np.asarray(steps), np.asarray(loss, float)
    if steps.ndim != 1 or steps.shape != loss.shape:
        raise ValueError(f"steps and loss must be 1-D and of one length, not {steps.shape} and {loss.shape}")
    if (np.diff(steps) <= 0).any():
        raise ValueError("steps must be strictly increasing")
    if window < SHORT:
        raise ValueError(f"window must be at least {SHORT} points, not {window}")
    bad = ~np.isfinite(loss)
    if grad_norm is not None:
        grad_norm = np.asarray(grad_norm, float)
        if grad_norm.shape != loss.shape:
            raise ValueError(f"grad_norm must be as long as loss, not {grad_norm.shape} against {loss.shape}")
        bad |= ~np.isfinite(grad_norm)
    end = int(bad.argmax()) if bad.any() else len(loss)
    return steps, loss, end, bool(bad.any()) and (horizon is None or bool(steps[end] <= horizon))


def verdict_of(outcome, steps, raw, smooth, window, spikes, at, confirmed, threshold, points, counted=None) -> Verdict:
    """A Verdict in Python's own numbers (NumPy's do not go into JSON); `at` is the crash's index, `counted` the horizon's."""
    usable = smooth[:at] if at else smooth[:counted]
    seen = raw[:counted] if at is None else raw
    return Verdict(
        outcome=outcome, crash_step=None if at is None else int(steps[at]), confirmed=bool(confirmed),
        best_loss=float(usable.min()) if len(usable) else None,
        final_loss=float(np.median(seen[-window:])) if len(seen) else None,
        threshold=None if threshold is None else float(threshold), spikes=spikes, steps=points)


def excursions(mask) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops (half-open) of the runs of True in a 1-D mask."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return edges[::2], edges[1::2]
