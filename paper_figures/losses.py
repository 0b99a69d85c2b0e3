"""Loss against step: by learning rate and depth, over a whole horizon, and beside the outcomes of every scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paper_figures.figure import figure, some
from paper_figures.outcomes import draw_grid
from paper_figures.runs import caption, crash_of, curves_of, load_runs, main_lr, main_setting, short_outcome, until_horizon
from paper_figures.style import CONSTANT, crash_handle, handle, legend, line_of, mark_crash, page, plain_log, scheme_handles
from suite.records.store import read

MEDIAN = 11  # points of the running median
SMOOTH = 51  # of that over a whole horizon; it cuts a transition of ten steps no shorter than it is wide
PER_LINE = 4  # panels beside each other, where not every learning rate was run at every depth


@figure("loss_curves", "Training loss by depth and scheme", ("runs", "curves"))
def loss_curves(folder: Path, title: str):
    """One panel per learning rate and depth that was run."""
    runs = load_runs(folder)
    curves = some(curves_of(folder, runs), "no run has a curve")
    shown = runs[runs["run_id"].isin(curves)]
    panels = sorted(set(zip(shown["lr"], shown["depth"], strict=True)))
    lrs, depths = set(shown["lr"]), set(shown["depth"])
    whole = len(depths) > 1 and len(panels) == len(lrs) * len(depths)  # a rate a line, a depth a column
    columns = len(depths) if whole else min(len(panels), PER_LINE)
    lines = -(-len(panels) // columns)
    limits = loss_limits(shown, curves)
    fig, body = page(max(6.0, 1.0 + 3.0 * columns), 1.3 + 2.5 * lines, title, caption(runs, curve_note(limits, curves)))
    axes = body.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    last_step = max(until_horizon(curves[row.run_id], row)["step"].max() for row in shown.itertuples())
    for i, (ax, (lr, depth)) in enumerate(zip(axes, panels, strict=False)):
        draw_curves(ax, shown[(shown["depth"] == depth) & (shown["lr"] == lr)], curves, limits)
        ax.set_title(f"depth {depth}" + (f", learning rate {lr:g}" if len(lrs) > 1 else ""))
        ax.set(xlabel="step" if i + columns >= len(panels) else "", ylabel="" if i % columns else "loss")
        ax.set_xlim(-0.02 * last_step, 1.02 * last_step)
    for ax in axes[len(panels) :]:
        ax.axis("off")
    legend(body, curve_handles(shown))
    return fig


@figure("headline", "Which residual schemes keep a deep diffusion transformer trainable?", ("runs", "curves"), ("laptop",))
def headline(folder: Path, title: str):
    """The loss of the deepest networks, and the fate of every scheme at every depth."""
    runs = load_runs(folder)
    runs = runs[(runs["variant"] == 0) & (runs["lr"] == main_lr(runs))]
    curves = some(curves_of(folder, runs), "no run has a curve")
    shown = runs[runs["run_id"].isin(curves)]
    shown = shown[shown["depth"] == shown["depth"].max()]
    curves = {run_id: curves[run_id] for run_id in shown["run_id"]}
    limits = loss_limits(shown, curves)
    fig, body = page(9.0, 4.3, title, caption(runs, curve_note(limits, curves)))  # on 900 pixels a 9-point letter is 9 wide and more
    left, right = body.subplots(1, 2, width_ratios=(1.1, 1))
    draw_curves(left, shown, curves, limits)
    left.set(title=f"training loss, {shown['depth'].iloc[0]} blocks", xlabel="step", ylabel="loss")
    draw_grid(right, runs, sorted(set(runs["depth"])), runs.drop_duplicates("label"))
    right.set_title("outcome; step of the crash, or final loss")
    legend(body, curve_handles(shown))
    return fig


@figure("fig12_full_loss", "Figure 12: loss over the whole horizon", ("runs", "curves", "evals"), ("anatomy",))
def full_loss(folder: Path, title: str):
    """The loss of the training batches, and on held-out samples."""
    runs = main_setting(load_runs(folder))
    curves = some(curves_of(folder, runs), "no run has a curve")
    shown = runs[runs["run_id"].isin(curves)]
    evals = read(folder, "evals")
    evals = evals[evals["run_id"].isin(shown["run_id"]) & np.isfinite(evals["heldout_loss"])]
    limits = loss_limits(shown, curves)
    ends = [f"{label}: " + ", ".join(f"seed {row.seed} {short_outcome(row)}" for row in group.itertuples())
            for label, group in shown[shown["crashed"]].groupby("label", sort=False)]
    fig, body = page(9.0 if len(evals) else 7.0, 4.6, title, caption(
        runs, f"One line per run; left: raw losses faint, running median of {SMOOTH} steps bold, taken separately before and after a crash."
        + _cut(limits, curves), f"Crashes: {'; '.join(ends)}." if ends else "No run crashed.",
        "The paper's figure shows MV-Split of 400 and 1000 layers through 80k steps of pretraining, then fine-tuning and preference"
        " optimisation, which have no counterpart here; it prints no numbers."))  # fmt: skip
    axes = body.subplots(1, 1 + bool(len(evals)), squeeze=False)[0]
    draw_curves(axes[0], shown, curves, limits, SMOOTH, apart=True)
    axes[0].set(title="training loss", xlabel="step", ylabel="loss")
    if len(evals):
        _heldout(axes[1], shown, evals)
    legend(body, curve_handles(shown))
    return fig


def draw_curves(ax, runs, curves, limits, width: int = MEDIAN, look_of=line_of, apart: bool = False) -> None:
    """Raw losses faint, running medians bold, an X half way up the jump of a run that crashed, and the level of the constant predictor.

    apart: the median is taken on either side of a crash by itself, so that it neither foresees nor delays it.
    """
    faint = max(0.06, 0.3 / max(1.0, len(runs) / 5))
    _constants(ax, runs)
    for row in runs.itertuples():
        curve, look, crash = until_horizon(curves[row.run_id], row), look_of(row), crash_of(row)
        sides = curve["step"] >= (crash if apart and crash else np.inf)
        median = curve.groupby(sides)["loss"].transform(lambda part: part.rolling(width, center=True, min_periods=1).median())
        raw = {"color": look["color"], "linewidth": 0.5, "alpha": faint, "rasterized": True}  # or the pdf grows large
        ax.plot(curve["step"], curve["loss"], zorder=2, **raw)
        ax.plot(curve["step"], median, linewidth=1.5 if len(runs) < 12 else 1.0, zorder=3, **look)
        if crash is not None:
            level = (row.best_loss + row.constant_loss) / 2  # what the loss must stay above to count as a crash
            mark_crash(ax, crash, look["color"], float(np.clip(level, *limits)) if np.isfinite(level) else sum(limits) / 2)
    ax.set_ylim(*limits)
    ax.margins(x=0.02)


def _constants(ax, runs) -> None:
    for level in sorted(set(runs["constant_loss"].dropna())):
        ax.axhline(level, **CONSTANT)


def _heldout(ax, runs, evals) -> None:
    """Held-out losses, logarithmic: fixed noise, so that small differences between schemes show."""
    for row in runs.itertuples():
        mine = until_horizon(evals[evals["run_id"] == row.run_id], row).sort_values("step")
        ax.plot(mine["step"], mine["heldout_loss"], linewidth=1.1, alpha=0.85, zorder=3, **line_of(row))
    _constants(ax, runs)
    ax.set_ylim(evals["heldout_loss"].min() * 0.96, min(evals["heldout_loss"].max(), 1.3 * runs["constant_loss"].max()) * 1.04)
    plain_log(ax, (1, 1.2, 1.5, 2, 5, 6, 7, 8))
    ax.set(title="held-out loss (fixed samples, t and noise)", xlabel="step", ylabel="loss (log scale)")


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
    constant = [handle("constant predictor", **CONSTANT)] * bool(runs["constant_loss"].notna().any())
    return scheme_handles(runs, markers=False) + constant + [crash_handle()] * bool(runs["crashed"].any())


def curve_note(limits, curves) -> str:
    """What a reader of the curves must know."""
    return f"Faint: raw loss of each batch; bold: running median of {MEDIAN} steps, one line per run." + _cut(limits, curves)


def _cut(limits, curves) -> str:
    cut = any((curve["loss"] > limits[1]).any() for curve in curves.values())
    return f" Losses above {limits[1]:.3g} are cut off." * cut
