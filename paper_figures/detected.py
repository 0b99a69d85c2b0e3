"""What `detect` sees in a log: of a reader's file, and of three of our own runs as somebody would have logged them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from paper_figures import style
from paper_figures.figure import NotDrawn, figure
from paper_figures.runs import caption, load_runs
from paper_figures.style import NEUTRAL, PALETTE, page
from suite.detect.judge import judge_foreign
from suite.detect.log_columns import Log, LogError
from suite.records.store import read
from suite.verdict.smooth import short_median

EVERY = 10  # steps between two points of a log, as trainers write by default
KINDS = (".png", ".pdf", ".svg")
POINTS = 5000  # drawn of a curve; the lowest and the highest of what lies between are kept
WORDS = "Grey: the loss as logged; blue: its median of five points. Red lines are dotted where the crash is not confirmed."
MOST = 12  # runs of one file that are drawn


def draw_detected(path: Path, judged: list[tuple[Log, dict]]) -> None:
    """One panel a run, at most MOST. Raises LogError where the file's name does not end like a picture's or cannot be
    written."""
    if path.suffix.lower() not in KINDS:
        raise LogError(f"--plot {path}: ends in none of {', '.join(KINDS)}; name a picture")
    shown = judged[:MOST]
    words = WORDS + " Crosses at the foot: values that are no number."
    if len(judged) > MOST:
        words += f" The first {MOST} of {len(judged)} runs."
    with style.context():
        fig = Figure(figsize=(8, 1 + 2.2 * len(shown)), layout="constrained", facecolor="white")
        for axis, (log, found) in zip(np.ravel(fig.subplots(len(shown), 1, squeeze=False)), shown, strict=True):
            _panel(axis, log, found)
        fig.get_axes()[-1].set_xlabel("step")
        fig.supxlabel("\n".join(style.wrap(words, 7.8, 8)), x=0.01, ha="left", fontsize=8, color=NEUTRAL)
        try:
            fig.savefig(path, dpi=150)
        except OSError as error:
            raise LogError(f"--plot {path}: cannot be written ({error.strerror})") from None


@figure("detected", "What `detect` sees, knowing nothing but the loss at every tenth step", ("runs", "curves"), ("anatomy",))
def detected(folder: Path, title: str):
    runs = load_runs(folder)
    runs = runs[(runs["status"] == "done") & (runs["protocol_version"] >= 4)]
    dead = runs[(runs["outcome"] == "collapsed") & (runs["crash_step"] < 0.9 * runs["horizon"])]
    living = runs[runs["outcome"] == "survived"]
    if dead.empty or living.empty:
        raise NotDrawn("needs a run that collapsed and one that survived")
    dead = dead.sort_values(["crash_step", "run_id"])
    chosen = [dead.iloc[-1], dead.iloc[0], living.sort_values(["lr", "run_id"]).iloc[-1]]
    words = "The run that collapsed last (in nine tenths of the horizon), the one that collapsed first, and the hottest that survived. "
    fig, body = page(9.5, 7.4, title, caption(runs, words + WORDS))
    for axis, run in zip(body.subplots(len(chosen), 1), chosen, strict=True):
        curve = read(folder, "curves", run.scheme, run.depth)
        curve = curve[curve["run_id"] == run.run_id].sort_values("step").iloc[EVERY - 1 :: EVERY]
        steps, loss = curve["step"].to_numpy(), curve["loss"].to_numpy(float)
        found = asdict(judge_foreign(steps, loss)[0])
        truth = f"truth: {run.outcome}" + (f" at {run.crash_step:,.0f}" if run.outcome == "collapsed" else "")
        axis.set_xlabel("step")
        _panel(axis, Log(steps, loss, None, {}, True, f"{run.label}, {run.depth} blocks, {run.lr:g}, seed {run.seed} ({truth})"), found)
    return fig


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
    if not good.all():  # an empty line at the foot would spoil the layout
        at_the_foot = axis.get_xaxis_transform()
        axis.plot(log.steps[~good], np.zeros((~good).sum()), "x", color=PALETTE[3], markersize=4, transform=at_the_foot, clip_on=False)
    words = found["outcome"].replace("_", " ")
    if found["crash_step"] is not None:
        look = {"color": PALETTE[3], "linestyle": "-" if found["confirmed"] else ":"}
        axis.axvline(found["crash_step"], linewidth=1, **look)
        late = found["crash_step"] > np.mean(axis.get_xlim())  # words stand where no loss is: above it before a jump, below it behind
        said = {"textcoords": "offset points", "fontsize": 8, "color": PALETTE[3], "ha": "right" if late else "left"}
        beside = -4 if late else 4
        axis.annotate("broken from here", (found["crash_step"], 1), (beside, -3), xycoords=("data", "axes fraction"), va="top", **said)
        if found["threshold"] is not None:
            axis.axhline(found["threshold"], linewidth=0.8, **look)
            axis.annotate("level that was crossed", (found["crash_step"], found["threshold"]), (beside, 3 if late else -3),
                          va="bottom" if late else "top", **said)  # fmt: skip
        words += f" at step {found['crash_step']:,}" + ("" if found["confirmed"] else ", not confirmed")
    axis.set_title(": ".join(part for part in (log.run, words) if part), loc="left", color=NEUTRAL)
    axis.set(ylabel="loss")


def _kept(values: np.ndarray) -> np.ndarray:
    """Indices of at most about POINTS values that look like all of them."""
    size = -(-len(values) // (POINTS // 2))
    if size <= 1:
        return np.arange(len(values))
    starts = np.arange(0, len(values), size)
    parts = [values[i:i + size] for i in starts]
    return np.unique(np.concatenate([[i + part.argmin(), i + part.argmax()] for i, part in zip(starts, parts, strict=True)]))
