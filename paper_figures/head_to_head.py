"""Which detector finds a death as it happens, and which cries wolf: a point a detector, with exact intervals, on the same runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paper_figures.figure import figure, some
from paper_figures.runs import commits
from paper_figures.style import PALETTE, handle, legend, page
from suite.evidence.head_to_head import OURS, of, rows
from suite.evidence.online import LEAD, interval

WHAT = (("found", "died", "found, of runs that died", PALETTE[0], "o"),
        ("early", "died", f"alarm over {LEAD} steps too early, of runs that died", PALETTE[1], "s"),
        ("false_alarms", "lived", "false alarm, of runs that lived", PALETTE[3], "D"))  # fmt: skip


@figure("head-to-head", "Which detector finds a death, and which cries wolf", ("head_to_head",), ("detect",))
def head_to_head(folder: Path, title: str):
    table = some(of(rows(folder), OURS), "no detector was scored")
    words = (f"{table['died'].max()} runs that died and {table['lived'].max()} that lived, each trajectory once, shown row by row. A good "
             "detector has its circle at the right and the other marks at the left. Bars: exact 95 % intervals.")  # fmt: skip
    fig, body = page(8.5, 1.2 + 0.55 * len(table), title, f"{words}\n{commits(table['commit'])}")
    ax = body.subplots()
    places = np.arange(len(table))[::-1]
    for shift, (count, of_all, _, colour, mark) in zip((0.2, 0, -0.2), WHAT, strict=True):
        for place, row in zip(places, table.itertuples(), strict=True):
            k, n = getattr(row, count), getattr(row, of_all)
            low, high = interval(k, n)
            ax.plot([100 * low, 100 * high], [place + shift] * 2, color=colour, linewidth=1.5)
            ax.plot(100 * k / n, place + shift, mark, color=colour, markersize=5)
    ax.set_yticks(places, [name.replace(" (", "\n(") for name in table.index])
    ax.set(xlim=(-2, 102), xlabel="% of runs")
    ax.grid(False, axis="y")
    legend(body, [handle(label, linestyle="", marker=mark, color=colour, markersize=5) for _, _, label, colour, mark in WHAT])
    return fig
