"""Figure 12: loss over the whole horizon, of the training batches and on held-out samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paper_figures.fig05_quality import crash_of, main_setting
from paper_figures.loss_curves import curve_handles, loss_limits
from paper_figures.rows import caption, curves_of, load_runs, short_outcome
from paper_figures.style import NEUTRAL, legend, line_of, page, plain_log, skip
from suite.records.tables import read

NAME = "fig12_full_loss"
TITLE = "Figure 12: loss over the whole horizon"
INPUTS = ("runs", "curves", "evals")
PROTOCOLS = ("anatomy",)
SMOOTH = 51  # steps of the running median; it cuts a transition of ten steps no shorter than it is wide


def draw(folder: Path, protocol: str):
    runs = main_setting(load_runs(folder))
    curves = curves_of(folder, runs)
    if not curves:
        return skip(folder, NAME, "no run has a curve")
    shown = runs[runs["run_id"].isin(curves)]
    evals = read(folder, "evals")
    evals = evals[evals["run_id"].isin(shown["run_id"]) & np.isfinite(evals["heldout_loss"])]
    limits, width = loss_limits(shown, curves), 9.0 if len(evals) else 7.0
    figure, body = page(width, 4.6, TITLE, caption(runs, *_notes(shown, limits, curves)))
    axes = body.subplots(1, 1 + bool(len(evals)), squeeze=False)[0]
    draw_losses(axes[0], shown, curves, limits)
    axes[0].set(title="training loss", xlabel="step", ylabel="loss")
    if len(evals):
        _heldout(axes[1], shown, evals)
    legend(body, curve_handles(shown), width)
    return figure


def draw_losses(ax, runs, curves, limits, look_of=line_of) -> None:
    """Raw losses faint, running medians bold, and an X where a run crashed.

    The median is taken on either side of a crash by itself, so that it neither foresees nor delays it.
    """
    faint = max(0.06, 0.3 / max(1.0, len(runs) / 5))
    for level in sorted(set(runs["constant_loss"].dropna())):
        ax.axhline(level, color=NEUTRAL, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    for row in runs.itertuples():
        curve, look = curves[row.run_id], look_of(row)
        crash = np.inf if crash_of(row) is None else crash_of(row)
        ax.plot(curve["step"], curve["loss"], color=look["color"], linewidth=0.4, alpha=faint, zorder=2, rasterized=True)
        parts = [part for _, part in curve.groupby(curve["step"] >= crash)]
        median = np.concatenate([part["loss"].rolling(SMOOTH, center=True, min_periods=1).median() for part in parts])
        ax.plot(curve["step"], median, linewidth=1.4, zorder=3, **look)
        if crash < np.inf:
            before = median[(curve["step"] < crash).to_numpy()]
            level = before[-1] if len(before) and np.isfinite(before[-1]) else limits[1]
            ax.plot(crash, np.clip(level, *limits), "X", color=look["color"], markersize=10, markeredgecolor="white", zorder=5)
    ax.set_ylim(*limits)
    ax.margins(x=0.02)


def _heldout(ax, runs, evals) -> None:
    """Held-out losses, logarithmic: fixed noise, so that small differences between schemes show."""
    for row in runs.itertuples():
        mine = evals[evals["run_id"] == row.run_id].sort_values("step")
        ax.plot(mine["step"], mine["heldout_loss"], linewidth=1.1, alpha=0.85, zorder=3, **line_of(row))
    for level in sorted(set(runs["constant_loss"].dropna())):
        ax.axhline(level, color=NEUTRAL, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    ax.set_ylim(evals["heldout_loss"].min() * 0.96, min(evals["heldout_loss"].max(), 1.3 * runs["constant_loss"].max()) * 1.04)
    plain_log(ax, (1, 1.2, 1.5, 2, 5, 6, 7, 8))
    ax.set(title="held-out loss (fixed samples, t and noise)", xlabel="step", ylabel="loss (log scale)")


def _notes(shown, limits, curves) -> list[str]:
    ends = [f"{label}: " + ", ".join(f"seed {row.seed} {short_outcome(row)}" for row in group.itertuples())
            for label, group in shown[shown["crashed"]].groupby("label", sort=False)]
    cut = any((curve["loss"] > limits[1]).any() for curve in curves.values())
    return [
        f"One line per run; left: raw losses faint, running median of {SMOOTH} steps bold, taken separately before and after a crash."
        + f" Losses above {limits[1]:.3g} are cut off." * cut,
        f"Crashes: {'; '.join(ends)}." if ends else "No run crashed.",
        "The paper's figure shows MV-Split of 400 and 1000 layers through 80k steps of pretraining, then fine-tuning and preference"
        " optimisation, which have no counterpart here; it prints no numbers.",
    ]
