"""Best loss, window and edge against the scale of the branch at the start, with and without the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paper_figures.figure import figure, some
from paper_figures.runs import caption, load_runs
from paper_figures.style import OTHERS, handle, legend, page, plain_log, scheme_look
from suite.evidence.critical_rates import pooled
from suite.evidence.families import FAMILIES, family, start
from suite.evidence.measures import Measures

LOOKS = {"fixed gain": (OTHERS[1], "o"), "fixed gain, centered": (OTHERS[2], "s"), "LayerScale": scheme_look("layerscale"),
         "MV-Split": scheme_look("mvsplit")}  # fmt: skip
SPREAD = 0.035  # of a decade between the families at one scale, so that their bars do not hide each other


@figure("branch_scale", "The size of the branch, or the split?", ("runs",), ("scale",))
def branch_scale(folder: Path, title: str):
    runs = load_runs(folder)
    found = [one for one in pooled(folder.parent, folder.name) if one.fresh and family(one.cell)]
    depth = max((one.cell.depth for one in some(found, "no cell has a best loss")), default=0)
    words = (
        f"{depth} blocks, 16 image tokens, 400 steps. At a scale of 1 the fixed gain is plain. Fixed: the gain stays as it starts; "
        "LayerScale and MV-Split learn theirs. Centered: the mean of the tokens is taken out of the branch. Best loss: mean held-out loss "
        "of eight seeds at each cell's best rate. Window: octaves of rate with an expected loss within 5 % of the best of all. LR50: half "
        "of the runs are not usable; it moves with the scale by itself. Bars: 95 % intervals. Cells of the frontier are drawn too."
    )
    fig, body = page(9.6, 4.4, title, caption(runs, words))
    panels = body.subplots(1, 3)
    for ax, name in zip(panels, ("best loss", "window (octaves)", "LR50"), strict=True):
        ax.set(title=name, xlim=(0.007, 1.5), xlabel="scale of the branch at the start")
        plain_log(ax, (1, 3), which="x")
    drawn = []
    for shift, name in zip((-1.5, -0.5, 0.5, 1.5), FAMILIES):
        mine = [one for one in found if one.cell.depth == depth and family(one.cell) == name]
        mine = sorted(((start(one.cell), one) for one in mine), key=lambda pair: pair[0])
        if mine:
            drawn.append(name)
            _draw(panels, [scale for scale, _ in mine], [one for _, one in mine], 10 ** (shift * SPREAD), LOOKS[name])
    panels[1].set_ylim(bottom=0)
    plain_log(panels[2], (1, 1.5, 2, 3, 5, 7))
    legend(body, [handle(name, color=LOOKS[name][0], marker=LOOKS[name][1], linestyle="-") for name in drawn])
    return fig


def _draw(panels, scales: list[float], cells: list[Measures], shift: float, look: tuple[str, str]) -> None:
    colour, marker = look
    x = np.array(scales) * shift
    lr50 = [one.edge.lr50 for one in cells]
    sides = (
        [(one.best_loss.value, one.best_loss.low, one.best_loss.high) for one in cells],
        [(one.window.value, one.window.low, one.window.high) for one in cells],
        [(edge.middle, edge.low or edge.middle, edge.high if np.isfinite(edge.high) else edge.middle) for edge in lr50],
    )
    for ax, numbers in zip(panels, sides):
        value, low, high = np.array(numbers, dtype=float).T
        ax.errorbar(x, value, yerr=np.clip([value - low, high - value], 0, None), color=colour, marker=marker, markersize=5, linewidth=1,
                    elinewidth=1.2, markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
