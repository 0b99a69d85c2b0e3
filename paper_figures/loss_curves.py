"""Training loss against step, one panel per learning rate and depth that was run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D

from paper_figures.rows import caption, curves_of, load_runs
from paper_figures.style import NEUTRAL, crash_handle, legend, line_of, page, scheme_handles, skip

NAME = "loss_curves"
TITLE = "Training loss by depth and scheme"
INPUTS = ("runs", "curves")
PROTOCOLS = None
MEDIAN = 11  # points of the running median
PER_LINE = 4  # panels beside each other, where not every learning rate was run at every depth


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    curves = curves_of(folder, runs)
    if not curves:
        return skip(folder, NAME, "no run has a curve")
    shown = runs[runs["run_id"].isin(curves)]
    panels = sorted(set(zip(shown["lr"], shown["depth"], strict=True)))
    lrs, depths = set(shown["lr"]), set(shown["depth"])
    columns = len(depths) if len(panels) == len(lrs) * len(depths) else min(len(panels), PER_LINE)
    lines = -(-len(panels) // columns)
    limits = loss_limits(shown, curves)
    width, height = max(6.0, 1.0 + 3.0 * columns), 1.3 + 2.5 * lines
    figure, body = page(width, height, TITLE, caption(runs, curve_note(limits, curves)))
    axes = body.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    last_step = max(curve["step"].max() for curve in curves.values())
    for i, (ax, (lr, depth)) in enumerate(zip(axes, panels, strict=False)):
        draw_curves(ax, shown[(shown["depth"] == depth) & (shown["lr"] == lr)], curves, limits)
        ax.set_title(f"depth {depth}" + (f", learning rate {lr:g}" if len(lrs) > 1 else ""))
        ax.set(xlabel="step" if i + columns >= len(panels) else "", ylabel="" if i % columns else "loss")
        ax.set_xlim(-0.02 * last_step, 1.02 * last_step)
    for ax in axes[len(panels):]:
        ax.axis("off")
    legend(body, curve_handles(shown), width)
    return figure


def draw_curves(ax, runs, curves, limits) -> None:
    """Raw losses faint, running medians bold, an X where a run crashed, and the level of the constant predictor."""
    faint = max(0.06, 0.3 / max(1.0, len(runs) / 5))
    for level in sorted(set(runs["constant_loss"].dropna())):
        ax.axhline(level, color=NEUTRAL, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    marks = []
    for row in runs.itertuples():
        curve, look = curves[row.run_id], line_of(row)
        median = curve["loss"].rolling(MEDIAN, center=True, min_periods=1).median()
        raw = {"color": look["color"], "linewidth": 0.5, "alpha": faint, "rasterized": True}  # or the pdf grows large
        ax.plot(curve["step"], curve["loss"], zorder=2, **raw)
        ax.plot(curve["step"], median, linewidth=1.5 if len(runs) < 12 else 1.0, zorder=3, **look)
        if row.crashed and row.crash_step == row.crash_step:
            before = median[(curve["step"] <= row.crash_step).to_numpy()].dropna()
            level = np.clip(before.iloc[-1] if len(before) else limits[1], *limits)
            marks.append((row.crash_step, level, look["color"]))
    for step, level, colour in marks:
        ax.plot(step, level, "X", color=colour, markersize=10, markeredgecolor="white", zorder=5, clip_on=False)
    ax.set_ylim(*limits)
    ax.margins(x=0.02)


def loss_limits(runs, curves) -> tuple[float, float]:
    """A range that shows the good losses well and the constant predictor's level, not the highest spike."""
    losses = np.concatenate([curves[run_id]["loss"].dropna() for run_id in runs["run_id"]])
    if not len(losses):
        return 0.0, 1.0
    low, constant = np.percentile(losses, 0.5), runs["constant_loss"].max()
    high = 1.2 * (constant if constant == constant else np.percentile(losses, 99))
    return low - 0.05 * (high - low), max(high, low + 1e-9)


def curve_handles(runs) -> list:
    """Legend entries of `draw_curves`."""
    handles = scheme_handles(runs, markers=False)
    if runs["constant_loss"].notna().any():
        handles.append(Line2D([], [], color=NEUTRAL, linestyle=(0, (4, 3)), linewidth=1, label="constant predictor"))
    return handles + [crash_handle()] * bool(runs["crashed"].any())


def curve_note(limits, curves) -> str:
    """What a reader of the curves must know."""
    note = f"Faint: raw loss of each batch; bold: running median of {MEDIAN} steps, one line per run."
    cut = any((curve["loss"] > limits[1]).any() for curve in curves.values())
    return note + (f" Losses above {limits[1]:.3g} are cut off." if cut else "")
