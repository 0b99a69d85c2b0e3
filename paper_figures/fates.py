"""What became of the runs of a frontier: at each depth, by scheme and learning rate, the shares that lived, stuck and died."""

from __future__ import annotations

from pathlib import Path

from matplotlib.patches import Rectangle

from paper_figures.rows import caption, load_runs
from paper_figures.style import OUTCOMES, legend, outcome_handles, outcome_patch, page, skip

NAME = "fates"
TITLE = "What became of each run, by depth, scheme and learning rate"
INPUTS = ("runs",)
PROTOCOLS = ("frontier", "frontier64")
WIDTH, ROW = 9.0, 0.36  # inches
WIDE = 0.9  # of the step between two rates


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    runs = runs[runs["status"] == "done"]
    if runs.empty:
        return skip(folder, NAME, "no run has an outcome")
    depths, labels, rates = sorted(set(runs["depth"])), list(dict.fromkeys(runs["label"])), sorted(set(runs["lr"]))
    note = "A box is a cell at one rate, split by the shares of its runs' outcomes; the number is how many runs."
    figure, body = page(WIDTH, 1.3 + ROW * len(labels) * len(depths) + 0.35 * len(depths), TITLE, caption(runs, note))
    axes = body.subplots(len(depths), 1, sharex=True, squeeze=False)[:, 0]
    for ax, depth in zip(axes, depths, strict=True):
        _panel(ax, runs[runs["depth"] == depth], labels, rates)
        ax.set_title(f"{depth} blocks", loc="left", fontsize=10)
    axes[-1].set_xticks(range(len(rates)), [f"{rate:.3g}" for rate in rates], rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes[-1].set_xlabel("learning rate")
    legend(body, outcome_handles(runs["outcome"]), WIDTH)
    return figure


def _panel(ax, runs, labels, rates) -> None:
    for (label, lr), cell in runs.groupby(["label", "lr"]):
        x, y = rates.index(lr) - WIDE / 2, labels.index(label)
        for outcome in OUTCOMES:
            share = (cell["outcome"] == outcome).mean()
            if share:
                ax.add_patch(Rectangle((x, y - 0.42), WIDE * share, 0.84, **outcome_patch(outcome)))
                x += WIDE * share
        ax.text(rates.index(lr), y, str(len(cell)), ha="center", va="center", fontsize=7)
    ax.set_yticks(range(len(labels)), labels)
    ax.set(xlim=(-0.6, len(rates) - 0.4), ylim=(len(labels) - 0.5, -0.5))
    ax.tick_params(length=0)
    ax.grid(False)
