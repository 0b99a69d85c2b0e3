"""What became of a run that somebody else trained: an outcome and a crash step from a log of any trainer.

With `constant_loss` the rule is that of `suite.verdict.outcome.judge`, save that a log is complete: what came back is a
spike, however long it took. Without it, a change of level is sought by the log's own level and scatter
(`suite.detect.change`).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from suite.detect.change import LEVEL, MIN_BEHIND, Change, find_change
from suite.detect.doubts import fall, idle_gradient, is_abrupt, last_rows, never_learned, only_rose, repeats, rises_from_zero
from suite.detect.log_columns import Log, LogError, read_logs
from suite.verdict.outcome import Verdict, checked, excursions, judge_known, verdict_of
from suite.verdict.signature import foreign_signature
from suite.verdict.smooth import robust_sd, short_median

__all__ = ["LogError", "detect", "detect_runs", "judge_foreign", "judge_logs"]

WINDOW_STEPS = 50  # steps that confirm a crash, as in our protocols
WINDOW_MIN_POINTS = 10  # the same in a thinned log: two medians of five that share no point
MIN_POINTS, MIN_STEPS = 20, 200  # of which a log without an event is too short to be called alive
FIRST = 2  # spacings: a log whose first point lies within them begins where training does
FLAT = 0.25  # of the jump: scatter and drift behind it, below which it is a new flat level; the paper's trace has .01
GIVEN_BACK = 0.25  # of what the log had gained: a rise of less is no collapse to a constant output, however flat (ours give back 1)
SPIKE_SCATTERS, SPIKE_RELATIVE = 8.0, 0.5  # robust sds and share of the level above which an excursion that came back is a spike


def judge_foreign(steps, loss, *, constant_loss: float | None = None, grad_norm=None, unit: str = "step") -> tuple[Verdict, list[str]]:
    """Judge a log from elsewhere, thinned or not, from the start of training or not; returns the verdict and notes.

    The confirmation window is 50 steps' worth of points, but at least ten. Without `constant_loss` the crash is the
    change of level that stands out most: `collapsed` where the loss behind it is flat at once (its scatter, and the
    difference between its first window and the rest, within a quarter of the jump) and a quarter of what was gained
    is lost; `degraded` otherwise, so also for a slow rise and a recovery under way. `unknown`: a rise, but too few
    points before it, behind it, or in all to tell it from noise; or no event in a log that shows no training.
    `nonfinite` is the first non-finite value, as in `judge`. unit: what a step is; epochs and rows are points, of
    which nobody knows how many steps they are. Raises ValueError as `judge` does.
    """
    steps = np.asarray(steps)
    spacing = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    window = int(np.clip(round(WINDOW_STEPS / spacing), WINDOW_MIN_POINTS, WINDOW_STEPS)) if spacing > 0 else WINDOW_STEPS
    min_points = max(MIN_POINTS, int(np.ceil(MIN_STEPS / spacing))) if spacing > 0 else MIN_POINTS
    notes = [f"confirmation window: {window} points of about {spacing:g} steps"]
    if unit != "step":
        window, min_points = WINDOW_MIN_POINTS, MIN_POINTS
        notes = [f"confirmation window: {window} {unit}s"]
    if constant_loss is not None:
        verdict = judge_known(steps, loss, constant_loss, window, None, grad_norm, min_points)
    else:
        verdict, lacks = _judge_unknown(steps, loss, window, grad_norm, min_points)
        notes += ["constant loss unknown: threshold from the log's own level and scatter; --constant-loss is stricter, and needed for "
                  "untrained", *lacks]  # fmt: skip
    if verdict.outcome in ("survived", "too_short"):
        loss = np.asarray(loss, float)
        verdict, doubt = _doubted(verdict, steps, loss, constant_loss is not None)
        notes += [note for note in (doubt, fall(steps, loss)) if note]
    if verdict.outcome == "nonfinite":
        after = np.asarray(loss, float)[np.searchsorted(steps, verdict.crash_step) + 1:]
        if np.isfinite(after).any():
            notes.append("the loss is finite again later: a trainer that skips such steps (fp16 loss scaling) goes on from the weights "
                         "before them; judge by how the loss goes on")
    return verdict, notes


def begins_training(steps) -> bool:
    """Whether a log begins where training does: its first point lies within two spacings of step 0."""
    return len(steps) > 1 and bool(steps[0] <= FIRST * np.median(np.diff(steps)))


def _doubted(verdict: Verdict, steps, loss: np.ndarray, known: bool) -> tuple[Verdict, str]:
    """A verdict of survived or too_short, or unknown with the reason where the log shows more than that, or less.

    known: with a constant loss, which tells whether it has learnt.
    """
    if k := last_rows(loss):
        at = len(loss) - k
        which, level = "the last row" if k == 1 else f"the last {k} rows", np.median(loss[:at][-LEVEL:])
        return replace(verdict, outcome="unknown", crash_step=int(steps[at])), (
            f"the loss rises from {level:.4g} to {np.median(loss[at:]):.4g} in {which}, from step {steps[at]} on: too few to judge by, "
            f"{MIN_BEHIND} are needed")  # fmt: skip
    if verdict.outcome == "too_short":
        why, remark = "" if known else repeats(loss), ""
    else:
        why, remark = ("", "") if known else never_learned(loss, begins_training(steps))
    return (replace(verdict, outcome="unknown"), why) if why else (verdict, remark)


def _judge_unknown(steps, loss, window, grad_norm, min_points) -> tuple[Verdict, list[str]]:
    """The rule of `judge_foreign` where no constant loss is given."""
    steps, loss, end, broken = checked(steps, loss, grad_norm, window, None)
    raw, smooth = loss[:end], short_median(loss[:end])
    change = find_change(raw)
    at = None if change is None else change.at
    sure, confirmed = change is not None and change.sure, at is not None and change.sure and end - at >= window
    spikes = _spikes(smooth[:at])

    def verdict(outcome, at=None, threshold=None):
        kept = None if at is None or outcome == "unknown" else at
        sure = outcome != "unknown" and (confirmed or outcome == "nonfinite")
        found = verdict_of(outcome, steps, raw, smooth, window, spikes, kept, sure, threshold, len(loss))
        return replace(found, crash_step=int(steps[at])) if at is not None else found

    if broken and not confirmed:
        return verdict("nonfinite", end), []
    if sure and rises_from_zero(raw, change):
        return verdict("unknown"), [
            f"the loss rises slowly from exactly 0, where it began, to {change.behind:.4g}: some losses begin there (GRPO's, a divergence "
            "from a reference), and nothing had been gained that could be lost"]  # fmt: skip
    if sure and (why := only_rose(raw, begins_training(steps))) and not is_abrupt(raw, change):
        return verdict("unknown"), [why]
    if sure:
        return verdict("collapsed" if _flat(smooth, change, window) else "degraded", at, change.line), []
    if change is not None:
        return verdict("unknown", at, change.line), [
            f"the loss rises from {change.level:.4g} to {change.behind:.4g} at step {steps[at]}, but that is not enough to judge by: "
            f"{change.lacks}"]  # fmt: skip
    return verdict("too_short" if len(loss) < min_points else "survived"), []


def _flat(smooth, change: Change, window: int) -> bool:
    """Whether the loss behind a change is a new flat level that gives back a good part of what the run had learnt."""
    after = smooth[change.at:]
    head = min(window, (len(after) + 1) // 2)
    jump = change.behind - change.level
    drift = abs(np.median(after[head:]) - np.median(after[:head]))
    return max(robust_sd(after), drift) <= FLAT * jump and jump >= GIVEN_BACK * (smooth[0] - change.low)


def _spikes(smooth) -> int:
    """Excursions of the short median above its usual height over the running minimum that came back."""
    if not len(smooth):
        return 0
    low = np.minimum.accumulate(smooth)
    height = smooth - low
    usual = np.median(height)
    rise = usual + max(SPIKE_SCATTERS * robust_sd(height), SPIKE_RELATIVE * abs(low[-1] + usual))
    return int(np.sum(excursions(height > rise)[1] < len(smooth)))


def detect_runs(
    path: str | Path, constant_loss: float | None = None, column: str | None = None, step: str | None = None
) -> list[dict]:
    """Judge a log file ("-": standard input), run by run: dicts that go straight to JSON.

    A loss is needed; grad_norm, g_mean, g_ctr, tcs, q_grad, k_grad are used where the log has them, others ignored.
    column: the name of the loss, step: of what counts the steps, where they cannot be told. Keys: `run` (its name,
    where the file has several), those of `Verdict` (save late_step), `mms_signature` (whether the crash carries the paper's gradient
    event: true, false, or null where the log cannot tell; see `suite.verdict.signature`) and `notes` (a list of
    sentences). Raises LogError where the log cannot be read, ValueError where `constant_loss` makes no sense.
    """
    return [found for _, found in judge_logs(path, constant_loss, column, step)]


def judge_logs(
    path: str | Path, constant_loss: float | None = None, column: str | None = None, step: str | None = None
) -> list[tuple[Log, dict]]:
    """`detect_runs`, each with its curve."""
    return [(log, _detected(log, constant_loss)) for log in read_logs(path, column, step)]


def detect(path: str | Path, constant_loss: float | None = None, column: str | None = None, step: str | None = None) -> dict:
    """`detect_runs` of a file with one run; LogError where it has several."""
    found = detect_runs(path, constant_loss, column, step)
    if len(found) > 1:
        raise LogError(f"{path}: holds {len(found)} runs; judge them with detect_runs, or name one column with --column")
    return found[0]


def _detected(log: Log, constant_loss: float | None) -> dict:
    unit = log.placed.unit if log.placed else "step"
    verdict, notes = judge_foreign(log.steps, log.loss, constant_loss=constant_loss, grad_norm=log.grad_norm, unit=unit)
    if (idle := idle_gradient(log.metrics.get("grad_norm"))) and constant_loss is None and verdict.outcome == "survived":
        verdict = replace(verdict, outcome="unknown")
    notes += [note for note in (idle, _place(log, verdict.crash_step)) if note]
    if not log.ends_with_newline:
        notes.append("the last line has no line end: it may be cut off inside a number")
    found, reasons = foreign_signature(log.metrics, log.steps, verdict.crash_step)
    said = asdict(verdict)
    del said["late_step"]  # a log has no horizon
    return {**({"run": log.run} if log.run else {}), **said, "mms_signature": found, "notes": notes + log.notes + reasons}


def _place(log: Log, crash: int | None) -> str:
    """How the log itself calls the step of the crash, where it is counted otherwise there."""
    if crash is None or log.placed is None or log.placed.epochs is None:
        return ""
    at = int(np.searchsorted(log.steps, crash))
    counter = "" if log.placed.counters is None else f", step {log.placed.counters[at]:g} of it"
    return f"{log.placed.unit} {crash} is {log.placed.called} {log.placed.epochs[at]:g}{counter}"
