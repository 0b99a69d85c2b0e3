"""How hot each scheme can be trained at each depth (LR50), and what it reaches where all of them live."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paper_figures.figure import figure, some
from paper_figures.runs import caption, load_runs
from paper_figures.style import NEUTRAL, handle, legend, page, plain_log, scheme_handles, scheme_look
from suite.evidence.cells import Cell
from suite.evidence.edges import edges
from suite.evidence.stats import Critical

OPEN = 1.35  # length of an arrow, as a factor
SEEDS = 3  # that every cell needs at the cool rate


@figure("critical_rates", "How hot can a deep diffusion transformer be trained?", ("runs",), ("frontier", "frontier64"))
def critical_rates(folder: Path, title: str):
    runs = load_runs(folder)
    runs = some(runs[(runs["variant"] == 0) & (runs["status"] == "done")], "no run has an outcome")
    found, depths, cool = edges(runs), sorted(set(runs["depth"])), cool_rate(runs)
    horizon, seen, at = found[0].horizon, [edge.lr50.n for edge in found], runs[runs["lr"] == cool]
    notes = [
        f"Left: the rate at which half of the runs are dead by step {horizon} (LR50@{horizon}). Dot and whisker: penalised logistic fit "
        "with a 95 % interval, seeds resampled. Bar alone: all runs live at its lower end and all die at its upper end, no fit. Arrow: "
        "fewer than half die at the hottest rate tested, its foot, or the rates tested do not reach an interval's end. "
        f"Hollow: LR50u@{horizon}, which counts runs that never trained as well, where it differs. Runs a cell: {_span(seen)}.",
    ]
    if cool is not None:
        notes.append(f"Right: learning rate {cool:g}, the hottest at which every cell was run and all live; small markers are runs (n = "
                     f"{_span(at.groupby(['label', 'depth']).size())} a cell), lines join their means.")  # fmt: skip
    if falls := [f"{edge.cell.label} at {edge.cell.depth} blocks" for edge in found if edge.lr50.falls]:
        notes.append(f"Not monotone (fewer die at some hotter rate): {', '.join(falls)}.")
    fig, body = page(9.0, 4.3, title, caption(runs, *notes))  # inches; on a page of 900 pixels a 9-point letter is 9 pixels wide and more
    axes = body.subplots(1, 1 if cool is None else 2, squeeze=False)[0]
    labels = list(dict.fromkeys(runs["label"]))
    step = 0.7 / max(5, len(labels))  # schemes stand side by side about a depth's tick
    places = {(label, depth): k + (i - (len(labels) - 1) / 2) * step for i, label in enumerate(labels) for k, depth in enumerate(depths)}
    cells = {Cell(*key): label for *key, label in runs[[*Cell._fields, "label"]].itertuples(index=False)}
    _edges(axes[0], [(places[cells[edge.cell], edge.cell.depth], edge) for edge in found])
    axes[0].set(title=f"critical learning rate LR50@{horizon}", ylabel="learning rate")
    if cool is not None:
        _losses(axes[1], at, labels, places)
        axes[1].set(title=f"held-out loss, learning rate {cool:g}", ylabel="held-out loss at the horizon")
    for ax in axes:
        ax.set_xticks(range(len(depths)), [f"{depth}" for depth in depths])
        ax.set(xlim=(-0.5, len(depths) - 0.5), xlabel="depth (blocks)")
    hollow = handle("LR50u, where it differs", marker="o", color=NEUTRAL, markerfacecolor="white", linestyle="")
    legend(body, [*scheme_handles(runs, markers=True), hollow])
    return fig


def _span(numbers) -> str:
    """The ends of some numbers, or the one that they all are."""
    return " to ".join(dict.fromkeys((f"{min(numbers)}", f"{max(numbers)}")))


def cool_rate(runs) -> float | None:
    """The hottest rate at which every cell of the table has runs of enough seeds and all of them live, or None."""
    cells = set(runs[["label", "depth"]].itertuples(index=False, name=None))
    fit = []
    for lr, at in runs.groupby("lr"):
        counts = at.groupby(["label", "depth"])["seed"].nunique()
        if set(counts.index) == cells and counts.min() >= SEEDS and (at["outcome"] == "survived").all():
            fit.append(float(lr))
    return max(fit, default=None)


def _edges(ax, placed) -> None:
    for x, edge in placed:
        usable, (colour, marker) = edge.lr50u, scheme_look(edge.cell.scheme)
        _mark(ax, x, edge.lr50, colour, marker)
        if str(usable) != str(edge.lr50):
            middle = usable.rate or (usable.low if usable.kind == "above" else usable.high)
            ends = [end for end in (usable.low, usable.high) if 0 < end < np.inf]
            ax.plot([x + 0.05] * len(ends), ends, color=colour, linewidth=1)
            ax.plot([x + 0.05], [middle], marker=marker, color=colour, markersize=7, markerfacecolor="white", markeredgewidth=1.4,
                    zorder=4)  # fmt: skip
    plain_log(ax, (1, 2, 3, 5, 7))


def _mark(ax, x: float, one: Critical, colour: str, marker: str) -> None:
    if one.kind == "fit":
        low, high = one.low or one.rate / OPEN, min(one.high, one.rate * OPEN)
        ax.plot([x, x], [low, high], color=colour, linewidth=2)
        for end, closed, arrow in ((low, one.low, "v"), (high, np.isfinite(one.high), "^")):
            if not closed:
                ax.plot([x], [end], marker=arrow, color=colour, markersize=4, linestyle="")
        ax.plot([x], [one.rate], marker=marker, color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.6, zorder=4)
    else:
        foot, tip = (one.low, one.low * OPEN) if one.kind == "above" else (one.high, one.high / OPEN)
        ax.plot([x, x], [foot, tip], color=colour, linewidth=1.8)
        ax.plot([x], [tip], marker="^" if one.kind == "above" else "v", color=colour, markersize=4, linestyle="")
        ax.plot([x], [foot], marker=marker, color=colour, markersize=5, markeredgecolor="white", zorder=4)


def _losses(ax, at, labels, places) -> None:
    for label in labels:
        mine = at[at["label"] == label]
        means, (colour, marker) = mine.groupby("depth")["heldout_loss"].mean(), scheme_look(mine["scheme"].iloc[0])
        ax.plot([places[label, depth] for depth in mine["depth"]], mine["heldout_loss"], linestyle="", marker=marker, color=colour,
                markersize=5, markeredgecolor="white", markeredgewidth=0.5, zorder=4)  # fmt: skip
        ax.plot([places[label, depth] for depth in means.index], means, color=colour, linewidth=1.4, alpha=0.8, zorder=3)
