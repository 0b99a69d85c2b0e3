"""What `detect` saw in a log, as a picture for its reader: the loss, its short median, the step and the level that was crossed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from paper_figures.style import NEUTRAL, PALETTE, context, wrap
from suite.verdict.foreign_log import Log, LogError
from suite.verdict.smooth import short_median

KINDS = (".png", ".pdf", ".svg")
POINTS = 5000  # drawn of a curve; the lowest and the highest of what lies between are kept
MOST = 12  # runs of one file that are drawn


def draw_detected(path: Path, judged: list[tuple[Log, dict]]) -> None:
    """One panel a run, at most MOST. Raises LogError where the file's name does not end like a picture's or cannot be written."""
    if path.suffix.lower() not in KINDS:
        raise LogError(f"--plot {path}: ends in none of {', '.join(KINDS)}; name a picture")
    shown = judged[:MOST]
    caption = ("Grey: the loss as logged; blue: its median of five points. Red: the step from which it counts as broken, and the level "
               "that was crossed; dotted where that is not confirmed. Crosses at the foot: values that are no number.")  # fmt: skip
    if len(judged) > MOST:
        caption += f" The first {MOST} of {len(judged)} runs."
    with context():
        figure = Figure(figsize=(8, 1 + 2.2 * len(shown)), layout="constrained", facecolor="white")
        for axis, (log, found) in zip(np.ravel(figure.subplots(len(shown), 1, squeeze=False)), shown, strict=True):
            _panel(axis, log, found)
        figure.supxlabel("\n".join(wrap(caption, 7.8, 8)), x=0.01, ha="left", fontsize=8, color=NEUTRAL)
        try:
            figure.savefig(path, dpi=150)
        except OSError as error:
            raise LogError(f"--plot {path}: cannot be written ({error.strerror})") from None


def _panel(axis, log: Log, found: dict) -> None:
    good = np.isfinite(log.loss)
    steps, loss = log.steps[good], log.loss[good]
    if len(loss):
        keep = _kept(loss)
        axis.plot(steps[keep], loss[keep], color="#bbbbbb", linewidth=0.7)
        smooth = short_median(loss)
        keep = _kept(smooth)
        axis.plot(steps[keep], smooth[keep], color=PALETTE[0], linewidth=1.2)
        low, high = smooth.min(), smooth.max()
        room = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
        axis.set_ylim(low - room, high + 2 * room)  # a spike of one point may leave the picture
    at_the_foot = axis.get_xaxis_transform()
    axis.plot(log.steps[~good], np.zeros((~good).sum()), "x", color=PALETTE[3], markersize=4, transform=at_the_foot, clip_on=False)
    words = found["outcome"].replace("_", " ")
    if found["crash_step"] is not None:
        style = "-" if found["confirmed"] else ":"
        axis.axvline(found["crash_step"], color=PALETTE[3], linestyle=style, linewidth=1)
        if found["threshold"] is not None:
            axis.axhline(found["threshold"], color=PALETTE[3], linestyle=style, linewidth=0.8)
        words += f" at step {found['crash_step']:,}" + ("" if found["confirmed"] else ", not confirmed")
    axis.set_title(": ".join(part for part in (log.run, words) if part), loc="left", color=NEUTRAL)
    axis.set(xlabel="step", ylabel="loss")


def _kept(values: np.ndarray) -> np.ndarray:
    """Indices of at most about POINTS values that look like all of them."""
    size = -(-len(values) // (POINTS // 2))
    if size <= 1:
        return np.arange(len(values))
    starts = np.arange(0, len(values), size)
    parts = [values[i:i + size] for i in starts]
    return np.unique(np.concatenate([[i + part.argmin(), i + part.argmax()] for i, part in zip(starts, parts, strict=True)]))
