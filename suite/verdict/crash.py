"""From a loss curve to an outcome and a crash step: the one place where a crash is defined.

`judge` is for our own runs, where the loss c of the best token-constant output is known. `detect` is for a log from
elsewhere: with `constant_loss` it applies the same rule, without it the log's own level and scatter.

Both work on the short median s (centred, five points). m_k is the running minimum of s before point k.

* c known: an excursion is a run of points with s above m_k + (c - m_k)/2. One that lasts the confirmation window is the
  crash, one that comes back is a spike, and one that meets the end of the curve sooner is an unconfirmed crash
  (if five points or more lie behind it). A foreign log is complete: there an excursion of any length that came back is a spike.
* c unknown: the threshold is L + max(8 scatter, L/2), with L the log's usual level before the jump; s must stay above it
  to the end of the log, because a collapse never comes back and a foreign log is complete. See `judge_foreign`.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from suite.verdict.foreign_log import Log, LogError, read_logs
from suite.verdict.outcomes import OUTCOMES
from suite.verdict.signature import foreign_signature

__all__ = ["OUTCOMES", "LogError", "Verdict", "detect", "judge", "judge_foreign", "short_median"]

SHORT = 5  # points: passes over spikes of one or two points, and keeps a jump at its exact place
HALF_WAY = 0.5  # of c - m; design, section 5
AT_CONSTANT = 0.1  # of c - m; design, section 5: a window's median this near to c, on either side, is a collapse
STUCK = 0.6  # of c; design, section 5: a run that ends the horizon above it has not trained (0.5 and 0.7: `report`)
MIN_STEPS = 200  # design, section 5: below it a run is too short, from it on it should have learnt something
CLEARLY_BELOW = 0.2  # of c. Batch noise (sd up to .15 at c = 2) pulls m about .25 below the true level; at less than
#                      twice that the half-way line lies inside the noise, and a slow learner would "collapse"
LEARNT_POINTS = 10  # points whose mean s must be clearly below c: its sd is then .05 at most, so .2 c is 8 sd

WINDOW_STEPS = 50  # steps that confirm a crash in a foreign log, as in our protocols
WINDOW_MIN_POINTS = 10  # the same in a thinned log: two medians of five that share no point
MIN_POINTS = 20  # points a foreign log needs, and needs before a jump: with fewer, wandering noise looks like two levels
JUMP_SCATTERS = 8.0  # robust sds of s: no alarm in 1,000 seeds of white, t(2) or AR(1) noise (tests); the digits jump by 16+
JUMP_RELATIVE = 0.5  # of the level: a quiet log that rises less is worse, not dead; the paper's jump is 1.4, the digits' 1.8
FLAT = 0.25  # of the jump: scatter and drift after it, below which it is a new flat level; the paper's trace has .01
MAD_TO_SD = 1.4826  # makes the median absolute deviation an sd on normal noise


@dataclass(frozen=True)
class Verdict:
    """What became of a run. Losses are in the curve's own unit; the crash step is one of its steps."""

    outcome: str  # one of OUTCOMES
    crash_step: int | None  # first step at which it stopped being usable (collapsed_at_init: its first); None: none seen
    confirmed: bool  # a full confirmation window lies behind the event (a non-finite value needs none)
    best_loss: float | None  # m: minimum of the short median, up to the crash or the horizon
    final_loss: float | None  # median of the last `window` finite points, or fewer; of those up to the horizon where there was no crash
    threshold: float | None  # the loss level used at crash_step; None where no level was crossed
    spikes: int  # excursions of the short median above the threshold that came back, up to the crash; not an outcome
    steps: int  # points judged
    late_step: int | None = None  # where no event counts: the first that began behind the horizon


def short_median(loss) -> np.ndarray:
    """Centred running median of five of a 1-D curve; at the ends of the points that are there (three, four)."""
    loss = np.asarray(loss, float)
    n, half = len(loss), SHORT // 2
    if n < SHORT:
        return np.array([np.median(loss[max(0, i - half):i + half + 1]) for i in range(n)])
    out = np.empty(n)
    out[half:n - half] = np.sort(np.lib.stride_tricks.sliding_window_view(loss, SHORT), axis=1)[:, half]
    for i in range(half):
        out[i] = np.median(loss[:i + half + 1])
        out[n - 1 - i] = np.median(loss[n - 1 - i - half:])
    return out


def judge(
    steps, loss, *, constant_loss: float, window: int, horizon: int, grad_norm=None, warmup: int = 0, heldout_loss: float | None = None
) -> Verdict:
    """Judge one of our own runs on its curve so far: one point a step, `steps` strictly increasing.

    `constant_loss` is c; `window` is the confirmation window in points; events that start after the step `horizon` do not
    count, but the first is told as `late_step`; `warmup` is the number of steps in which the learning rate rises: before twice that
    many (and 200) nothing can be said of a run that has not crashed. `heldout_loss` is that at the horizon: a run is `stuck` where
    both losses end the horizon above 0.6 c (the curve's alone where it is None). A verdict of collapsed or degraded that is confirmed
    rests on the points up to the end of its window alone, so later points cannot change it. Raises ValueError on arguments that make
    no sense.
    """
    return _judge_known(steps, loss, constant_loss, window, horizon, grad_norm, max(MIN_STEPS, 2 * warmup), heldout_loss)


def _judge_known(steps, loss, c, window, horizon, grad_norm, min_points, heldout_loss=None) -> Verdict:
    """`judge`, with the number of points below which a run is too short. horizon None: a foreign log, to be taken as complete."""
    steps, loss, end, broken = _checked(steps, loss, grad_norm, window, horizon)
    if not (np.isfinite(c) and c > 0):
        raise ValueError(f"constant_loss must be finite and above 0, not {c}")
    raw, smooth = loss[:end], short_median(loss[:end])
    counted = end if horizon is None else int(np.searchsorted(steps[:end], horizon, side="right"))

    best = np.minimum.accumulate(np.concatenate((smooth[:1], smooth[:-1])))  # m_k; the first point has only itself
    armed = np.zeros(end, bool)  # the run has been clearly below c before point k: only then can it fall back
    arm = min(LEARNT_POINTS, window)
    if end > arm:
        means = np.lib.stride_tricks.sliding_window_view(smooth, arm).mean(axis=1)
        armed[arm:] = np.logical_or.accumulate(means < c * (1 - CLEARLY_BELOW))[:-1]
    starts, stops = _runs(armed & (smooth > best + HALF_WAY * (c - best)))

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
        return _verdict(outcome, steps, raw, smooth, window, spikes, at, confirmed, threshold, len(loss), counted)

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
        return replace(verdict("collapsed_at_init", 0, True), late_step=late_step)
    alive = verdict("survived")
    if horizon is not None and steps[-1] >= horizon and min(alive.final_loss, np.inf if heldout_loss is None else heldout_loss) > STUCK * c:
        alive = replace(alive, outcome="stuck")
    return replace(alive, late_step=late_step)


def judge_foreign(steps, loss, *, constant_loss: float | None = None, grad_norm=None) -> tuple[Verdict, list[str]]:
    """Judge a log from elsewhere, thinned or not, from the start of training or not; returns the verdict and notes.

    The confirmation window is 50 steps' worth of points, but at least ten. With `constant_loss` the rule is that of
    `judge`, save that a log has no horizon: what came back is a spike, however long it took, and nothing is called
    stuck. Without it, over the points before k: let e be the height of s over its running minimum m (so that a falling curve has no
    scatter from falling), S the robust sd of e, and L the greater of m + median(e) and the median of s over the
    later half. The crash is the first k from which s stays above L + max(8 S, |L|/2) to the end of the log, with a window of
    points before it (at least 20) and five behind it; a loss that rises over the whole log has no such level, and survives.
    `collapsed` where the loss then is flat at once: its scatter, and the difference between its first window and the rest,
    are within a quarter of the jump; `degraded` otherwise, so also for a slow rise and a recovery under way.
    `nonfinite` is the first non-finite value, as in `judge`. Raises ValueError as `judge` does.
    """
    steps = np.asarray(steps)
    spacing = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    window = int(np.clip(round(WINDOW_STEPS / spacing), WINDOW_MIN_POINTS, WINDOW_STEPS)) if spacing > 0 else WINDOW_STEPS
    min_points = max(MIN_POINTS, int(np.ceil(MIN_STEPS / spacing))) if spacing > 0 else MIN_POINTS
    notes = [f"confirmation window: {window} points of about {spacing:g} steps"]
    if constant_loss is not None:
        verdict = _judge_known(steps, loss, constant_loss, window, None, grad_norm, min_points)
    else:
        verdict = _judge_unknown(steps, loss, window, grad_norm, min_points)
        notes.append("constant loss unknown: threshold from the log's own level and scatter; --constant-loss is stricter, "
                     "and needed for collapsed_at_init")
    if verdict.outcome == "nonfinite":
        after = np.asarray(loss, float)[np.searchsorted(steps, verdict.crash_step) + 1:]
        if np.isfinite(after).any():
            notes.append("the loss is finite again later: a trainer that skips such steps (fp16 loss scaling) goes on from the weights "
                         "before them; judge by how the loss goes on")
    return verdict, notes


def _judge_unknown(steps, loss, window, grad_norm, min_points) -> Verdict:
    """The rule of `judge_foreign` where no constant loss is given."""
    steps, loss, end, broken = _checked(steps, loss, grad_norm, window, None)
    raw, smooth = loss[:end], short_median(loss[:end])
    at, rise, level, spikes = None, np.inf, np.nan, 0
    history = max(window, MIN_POINTS)
    if end > history:
        best = np.minimum.accumulate(smooth)
        height, low = smooth - best, best[-1]  # nothing after a crash is below m, so m is the whole log's minimum
        # The scatter before the jump and the place of the jump need each other: start early, and move on while needed.
        at = max(history, _last_below(smooth, low + JUMP_RELATIVE * abs(low)))
        while True:
            usual = np.median(height[:at])
            scatter = MAD_TO_SD * np.median(np.abs(height[:at] - usual))
            # Noise that wanders has just been low at some point; the later half's median says where it usually is.
            level = max(low + usual, np.median(smooth[at // 2:at]))
            rise = level - low + max(JUMP_SCATTERS * scatter, JUMP_RELATIVE * abs(level))
            crossing = _last_below(smooth, low + rise)
            if crossing <= at:
                break
            at = crossing
        if crossing < at or end - at < SHORT:  # too little before it, or behind it, to tell
            at = None
        spikes = int(np.sum(_runs(height[:at] > rise)[1] < end))
    confirmed = at is not None and end - at >= window

    def verdict(outcome, at=None, confirmed=False, threshold=None):
        return _verdict(outcome, steps, raw, smooth, window, spikes, at, confirmed, threshold, len(loss))

    if broken and not confirmed:
        return verdict("nonfinite", end, True)
    if len(loss) < min_points and not confirmed:
        return verdict("too_short")
    if at is None:
        return verdict("survived")
    after = raw[at:]
    head = min(window, (len(after) + 1) // 2)
    jump = np.median(after) - level
    spread = MAD_TO_SD * np.median(np.abs(after - np.median(after)))
    drift = abs(np.median(after[head:]) - np.median(after[:head]))
    flat = max(spread, drift) <= FLAT * jump
    return verdict("collapsed" if flat else "degraded", at, confirmed, low + rise)


def detect_runs(path: str | Path, constant_loss: float | None = None, column: str | None = None) -> list[dict]:
    """Judge a log file ("-": standard input), run by run: dicts that go straight to JSON.

    A step and a loss are needed; grad_norm, g_mean, g_ctr, tcs, q_grad, k_grad are used where the log has them, others ignored. column:
    the name of the loss where it cannot be told. Keys: `run` (its name, where the file has several), those of `Verdict` (save
    late_step), `mms_signature` (whether the crash carries the paper's gradient event: true, false, or null where the log cannot tell;
    see `suite.verdict.signature`) and `notes` (a list of sentences). Raises LogError where the log cannot be read, ValueError where
    `constant_loss` makes no sense.
    """
    return [_detected(log, constant_loss) for log in read_logs(path, column)]


def detect(path: str | Path, constant_loss: float | None = None, column: str | None = None) -> dict:
    """`detect_runs` of a file with one run; LogError where it has several."""
    found = detect_runs(path, constant_loss, column)
    if len(found) > 1:
        raise LogError(f"{path}: holds {len(found)} runs; judge them with detect_runs, or name one column with --column")
    return found[0]


def _detected(log: Log, constant_loss: float | None) -> dict:
    verdict, notes = judge_foreign(log.steps, log.loss, constant_loss=constant_loss, grad_norm=log.grad_norm)
    if not log.ends_with_newline:
        notes.append("the last line has no line end: it may be cut off inside a number")
    found, reasons = foreign_signature(log.metrics, log.steps, verdict.crash_step)
    said = asdict(verdict)
    del said["late_step"]  # a log has no horizon
    return {**({"run": log.run} if log.run else {}), **said, "mms_signature": found, "notes": notes + log.notes + reasons}


def _checked(steps, loss, grad_norm, window, horizon):
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


def _verdict(outcome, steps, raw, smooth, window, spikes, at, confirmed, threshold, points, counted=None) -> Verdict:
    """A Verdict in Python's own numbers (NumPy's do not go into JSON); `at` is the crash's index, `counted` the horizon's."""
    usable = smooth[:at] if at else smooth[:counted]
    seen = raw[:counted] if at is None else raw
    return Verdict(
        outcome=outcome, crash_step=None if at is None else int(steps[at]), confirmed=bool(confirmed),
        best_loss=float(usable.min()) if len(usable) else None,
        final_loss=float(np.median(seen[-window:])) if len(seen) else None,
        threshold=None if threshold is None else float(threshold), spikes=spikes, steps=points)


def _runs(mask) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops (half-open) of the runs of True in a 1-D mask."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return edges[::2], edges[1::2]


def _last_below(smooth, level) -> int:
    """The index from which `smooth` stays above `level` to its end."""
    below = np.flatnonzero(smooth <= level)
    return int(below[-1]) + 1 if len(below) else 0
