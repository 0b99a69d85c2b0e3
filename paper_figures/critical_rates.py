"""What schemes are ranked by at each depth: best loss, window, margin, and the edges beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paper_figures.figure import figure, some
from paper_figures.runs import caption, load_runs
from paper_figures.style import page, plain_log, scheme_look
from suite.evidence.cells import Cell
from suite.evidence.measures import Estimate, Measures, measures
from suite.evidence.ranking import placed
from suite.evidence.stats import Critical

ROW, GAP = 0.23, 1.3  # inches a scheme; rows between two depths
WIDEST = 1.7  # times the largest window or margin: a longer bar leaves its panel
OPEN = 1.25  # length of an arrow on a logarithmic axis, as a factor; on another a tenth of the axis


@figure("critical_rates", "How well, and over how many learning rates, can each scheme be trained?", ("runs",), ("frontier", "frontier64"))
def critical_rates(folder: Path, title: str):
    runs = load_runs(folder)
    runs = some(runs[(runs["variant"] == 0) & (runs["status"] == "done")], "no run has an outcome")
    labels = {Cell(*key): label for *key, label in runs[[*Cell._fields, "label"]].itertuples(index=False)}
    drawn, ticks, y, found = [], [], 0.0, measures(runs)
    for depth in sorted(set(runs["depth"])):
        mine = placed([one for one in found if one.cell.depth == depth])
        for i, (one, (best, _)) in enumerate(mine):
            drawn.append((y + i, one))
            ticks.append((y + i, labels[one.cell] + " =" * (best == 1)))
        y += len(mine) + GAP
    horizon = drawn[0][1].edge.horizon
    words = (
        "Dots: estimates, bars: 95 % intervals, cut off where they are long; an arrow: the rates that were run do not reach "
        "further. Schemes of a depth stand from the best loss down; = beside a name: not told apart from the best (pairs of "
        "seeds, Holm). Best loss: mean held-out loss at the best rate, by seeds that did not choose it. Window: octaves of rate "
        "with an expected loss within 5 % of the depth's best. Margin: octaves from the best rate to LR10. Right: "
        f"LR10@{horizon} (hollow) and LR50@{horizon} (filled), at which a tenth and half of the runs are not usable; x: the best "
        "rate. These move with the scale of a scheme's branch and rank no schemes of unequal scale."
    )
    fig, body = page(9.6, ROW * y + 0.9, title, caption(runs, words))
    panels = body.subplots(1, 4, sharey=True, width_ratios=(3, 3, 3, 4))
    for ax, heading in zip(panels, ("best loss", "window (octaves)", "margin (octaves)", "learning rate"), strict=True):
        ax.set(title=heading, ylim=(y - GAP - 0.2, -1.4))
        ax.grid(visible=False, axis="y")
    for at, one in drawn:
        for ax, number in zip(panels, (one.best_loss, one.window, one.margin)):
            _estimate(ax, at, number, one)
        _edges(panels[3], at, one)
    low, high = panels[3].dataLim.intervalx
    plain_log(panels[3], (1, 2, 5) if high > 5 * low else range(1, 10), which="x")  # of a narrow axis three multiples would be none
    for ax, name in zip(panels[1:3], ("window", "margin")):
        ax.set_xlim(0, WIDEST * max(getattr(one, name).value for _, one in drawn))
    panels[0].set_yticks(*zip(*ticks))
    tops = {one.cell.depth: at - 0.75 for at, one in reversed(drawn)}
    for depth, top in tops.items():
        panels[0].text(0, top, f"{depth} blocks", transform=panels[0].get_yaxis_transform(), ha="left", va="center", fontweight="bold",
                       fontsize=9)  # fmt: skip
        for ax in panels:
            ax.axhline(top - 0.4, color="#bbbbbb", linewidth=0.6)
    return fig


def _estimate(ax, y: float, number: Estimate, one: Measures) -> None:
    colour, marker = scheme_look(one.cell.scheme)
    if np.isfinite([number.low, number.high]).all():
        ax.plot([number.low, number.high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
    if np.isfinite(number.value):
        ax.plot(number.value, y, marker=marker, color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.5, zorder=4)
    if number.open:
        ax.annotate("", (number.value, y), (14, 0), textcoords="offset points", arrowprops={"arrowstyle": "<-", "color": colour})


def _edges(ax, y: float, one: Measures) -> None:
    colour, marker = scheme_look(one.cell.scheme)
    ax.plot(one.valley.value, y, marker="x", color=colour, markersize=5, markeredgewidth=1.4)
    for shift, edge, face in ((-0.16, one.edge.lr10, "white"), (0.16, one.edge.lr50, colour)):
        low, high = _ends(edge)
        ax.plot([low, high], [y + shift] * 2, color=colour, linewidth=1.4, solid_capstyle="butt")
        ax.plot(edge.middle, y + shift, marker=marker, color=colour, markerfacecolor=face, markersize=5, markeredgewidth=0.9, zorder=4)


def _ends(edge: Critical) -> tuple[float, float]:
    """The bar of an edge; an open end is an arrow's length away."""
    return edge.low or edge.middle / OPEN, edge.high if np.isfinite(edge.high) else edge.middle * OPEN
