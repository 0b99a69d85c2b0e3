"""How hot each scheme can be trained at each depth (LR50), and what it reaches where all of them live."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D

from paper_figures.rows import caption, load_runs
from paper_figures.style import NEUTRAL, legend, page, plain_log, scheme_handles, scheme_look, skip
from suite.evidence.edges import edges
from suite.evidence.stats import Critical
from suite.records.tables import Store

NAME = "critical_rates"
TITLE = "How hot can a deep diffusion transformer be trained?"
INPUTS = ("runs",)
PROTOCOLS = ("frontier", "frontier64")
WIDTH, HEIGHT = 9.0, 4.3  # inches; on a page of 900 pixels a 9-point letter is 9 pixels wide and more
OPEN = 1.35  # length of an arrow, as a factor
SEEDS = 3  # that every cell needs at the cool rate


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    runs = runs[(runs["variant"] == 0) & (runs["status"] == "done")]
    if runs.empty:
        return skip(folder, NAME, "no run has an outcome")
    shown = set(runs["run_id"])
    found = edges(row for row in Store(folder).runs() if row["run_id"] in shown)
    depths, looks, cool = sorted(set(runs["depth"])), runs.drop_duplicates("label"), cool_rate(runs)
    horizon = found[0].horizon
    seen = sorted(edge.lr50.n for edge in found)
    notes = [
        f"Left: the rate at which half of the runs are dead by step {horizon} (LR50@{horizon}). Dot and whisker: penalised logistic fit "
        "with a 95 % interval, seeds resampled. Bar alone: all runs live at its lower end and all die at its upper end, no fit. Arrow: "
        "fewer than half die at the hottest rate tested, its foot, or the rates tested do not reach an interval's end. "
        f"Hollow: LR50u@{horizon}, which counts runs that never trained as well, where it differs. "
        f"Runs a cell: {' to '.join(dict.fromkeys(map(str, (seen[0], seen[-1]))))}.",
    ]
    if cool is not None:
        at = runs[runs["lr"] == cool]
        n = sorted(at.groupby(["label", "depth"]).size())
        notes.append(f"Right: learning rate {cool:g}, the hottest at which every cell was run and all live; small markers are runs (n = "
                     f"{n[0] if n[0] == n[-1] else f'{n[0]} to {n[-1]}'} a cell), lines join their means.")  # fmt: skip
    if any(edge.lr50.falls for edge in found):
        names = ", ".join(f"{edge.label} at {edge.depth} blocks" for edge in found if edge.lr50.falls)
        notes.append(f"Not monotone (fewer die at some hotter rate): {names}.")
    figure, body = page(WIDTH, HEIGHT, TITLE, caption(runs, *notes))
    axes = body.subplots(1, 1 if cool is None else 2, squeeze=False)[0]
    _edges(axes[0], found, looks, depths, horizon)
    if cool is not None:
        _losses(axes[1], runs[runs["lr"] == cool], looks, depths, cool)
    for ax in axes:
        ax.set_xticks(range(len(depths)), [f"{depth}" for depth in depths])
        ax.set(xlim=(-0.5, len(depths) - 0.5), xlabel="depth (blocks)")
    hollow = Line2D([], [], marker="o", color=NEUTRAL, markerfacecolor="white", linestyle="", label="LR50u, where it differs")
    legend(body, [*scheme_handles(runs, markers=True), hollow], WIDTH)
    return figure


def cool_rate(runs) -> float | None:
    """The hottest rate at which every cell of the table has runs of enough seeds and all of them live, or None."""
    cells = set(runs[["label", "depth"]].itertuples(index=False, name=None))
    fit = []
    for lr, at in runs.groupby("lr"):
        counts = at.groupby(["label", "depth"])["seed"].nunique()
        if set(counts.index) == cells and counts.min() >= SEEDS and (at["outcome"] == "survived").all():
            fit.append(float(lr))
    return max(fit, default=None)


def _places(looks, depths) -> dict[tuple[str, int], float]:
    """Where a scheme stands at a depth: side by side about the depth's tick."""
    step = 0.7 / max(5, len(looks))
    return {(look.label, depth): k + (i - (len(looks) - 1) / 2) * step
            for i, look in enumerate(looks.itertuples()) for k, depth in enumerate(depths)}  # fmt: skip


def _edges(ax, found, looks, depths, horizon) -> None:
    labels = {(row.scheme, row.arm, row.params, row.writers, f"{row.gate_lr:g}", row.data): row.label for row in looks.itertuples()}
    places = _places(looks, depths)
    for edge in found:
        x, look = places[labels[edge.cell[:6]], edge.depth], scheme_look(edge.scheme)
        _mark(ax, x, edge.lr50, *look)
        if str(edge.lr50u) != str(edge.lr50):
            usable = edge.lr50u
            middle = usable.rate or np.sqrt(usable.low * usable.high) if usable.kind in ("fit", "bracket") else usable.low or usable.high
            ends = [end for end in (usable.low, usable.high) if 0 < end < np.inf]
            ax.plot([x + 0.05] * len(ends), ends, color=look[0], linewidth=1)
            ax.plot([x + 0.05], [middle], marker=look[1], color=look[0], markersize=7, markerfacecolor="white", markeredgewidth=1.4,
                    zorder=4)  # fmt: skip
    plain_log(ax, (1, 2, 3, 5, 7))
    ax.set(title=f"critical learning rate LR50@{horizon}", ylabel="learning rate")


def _mark(ax, x: float, one: Critical, colour: str, marker: str) -> None:
    if one.kind == "fit":
        low, high = one.low or one.rate / OPEN, min(one.high, one.rate * OPEN)
        ax.plot([x, x], [low, high], color=colour, linewidth=2)
        for end, closed, arrow in ((low, one.low, "v"), (high, np.isfinite(one.high), "^")):
            if not closed:
                ax.plot([x], [end], marker=arrow, color=colour, markersize=4, linestyle="")
        ax.plot([x], [one.rate], marker=marker, color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.6, zorder=4)
    elif one.kind == "bracket":
        ax.plot([x, x], [one.low, one.high], color=colour, linewidth=6, alpha=0.55, solid_capstyle="butt")
        ax.plot([x], [np.sqrt(one.low * one.high)], marker=marker, color=colour, markersize=5, markeredgecolor="white", zorder=4)
    else:
        foot, tip = (one.low, one.low * OPEN) if one.kind == "above" else (one.high, one.high / OPEN)
        ax.plot([x, x], [foot, tip], color=colour, linewidth=1.8)
        ax.plot([x], [tip], marker="^" if one.kind == "above" else "v", color=colour, markersize=4, linestyle="")
        ax.plot([x], [foot], marker=marker, color=colour, markersize=5, markeredgecolor="white", zorder=4)


def _losses(ax, at, looks, depths, cool) -> None:
    places = _places(looks, depths)
    for look in looks.itertuples():
        mine, (colour, marker) = at[at["label"] == look.label], scheme_look(look.scheme)
        ax.plot([places[look.label, depth] for depth in mine["depth"]], mine["heldout_loss"], linestyle="", marker=marker, color=colour,
                markersize=5, markeredgecolor="white", markeredgewidth=0.5, zorder=4)  # fmt: skip
        means = mine.groupby("depth")["heldout_loss"].mean()
        ax.plot([places[look.label, depth] for depth in means.index], means, color=colour, linewidth=1.4, alpha=0.8, zorder=3)
    ax.set(title=f"held-out loss, learning rate {cool:g}", ylabel="held-out loss at the horizon")
