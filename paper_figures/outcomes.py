"""What became of each run: a grid of scheme against depth, one panel per learning rate; of a frontier, of scheme
against rate."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from paper_figures.figure import NotDrawn, figure, some
from paper_figures.runs import caption, load_runs
from paper_figures.style import OUTCOMES, bare, legend, outcome_handles, outcome_patch, page, scheme_look

PER_LINE = 12  # columns beside each other
COLUMN = 1.3  # inches
FEW = 3  # cells below which a grid says no more than its table


@figure("outcomes", "Outcome by scheme and depth", ("runs",))
def outcomes(folder: Path, title: str):
    runs = some(load_runs(folder), "no run yet")
    if len(runs.groupby(["label", "depth", "lr"])) < FEW and (runs["result"] == "survived").all():
        raise NotDrawn(f"fewer than {FEW} cells, and every run survived")
    labels, panels = runs["label"].drop_duplicates(), {lr: sorted(set(part["depth"])) for lr, part in runs.groupby("lr")}
    lines = lines_of(panels)
    columns = max(sum(len(panels[lr]) for lr in line) for line in lines)
    width = max(6.5, 0.4 + 0.085 * max(map(len, labels)) + 0.1 * len(lines[0]) + COLUMN * columns)
    note = "In a cell: the step of the crash, or the final training loss (running median)."
    if runs.duplicated(["label", "depth", "lr"]).any():
        note += (" Cells of several runs are split by the shares of their outcomes; steps are those at which the dead crashed, from the "
                 "first to the last; losses are medians.")
    fig, body = page(width, 1.0 + len(lines) * (0.65 + 0.52 * len(labels)), title, caption(runs, note))
    grid = body.add_gridspec(len(lines), columns)
    for y, line in enumerate(lines):
        x = 0
        for lr in line:
            ax = body.add_subplot(grid[y, x : x + len(panels[lr])])
            draw_grid(ax, runs[runs["lr"] == lr], panels[lr], runs.drop_duplicates("label"))
            ax.set_title(f"learning rate {lr:g}" if len(panels[lr]) > 1 else f"lr {lr:g}")
            ax.tick_params(labelleft=x == 0)
            x += len(panels[lr])
    legend(body, outcome_handles(runs["result"]))
    return fig


def lines_of(panels: dict[float, list[int]]) -> list[list[float]]:
    """Learning rates in order, broken into lines of at most PER_LINE columns."""
    lines, used = [[]], 0
    for lr, depths in panels.items():
        if lines[-1] and used + len(depths) > PER_LINE:
            lines, used = [*lines, []], 0
        lines[-1].append(lr)
        used += len(depths)
    return lines


def draw_grid(ax, runs, depths, rows) -> None:
    """Cells of label (`rows`: a run of each, from the top) and depth, each split by the shares of its outcomes."""
    for y, row in enumerate(rows.itertuples()):
        for x, depth in enumerate(depths):
            cell = runs[(runs["label"] == row.label) & (runs["depth"] == depth)]
            _box(ax, x, y, 0.96, 0.92, cell["result"])
            first, second = cell_text(cell)
            words = {"ha": "center", "color": "black" if len(cell) else "#888888",
                     "path_effects": [withStroke(linewidth=2, foreground="white", alpha=0.6)]}
            if not second:
                ax.text(x, y, first, va="center", fontsize=9, **words)
                continue
            ax.text(x, y - 0.03, first, va="bottom", fontsize=9, **words)
            ax.text(x, y + 0.06, second, va="top", fontsize=8, **words)
    ax.set(xlim=(-0.5, len(depths) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel="depth (blocks)")
    ax.set_xticks(range(len(depths)), [f"{depth}" for depth in depths])
    ax.set_yticks(range(len(rows)), list(rows["label"]))
    for tick, scheme in zip(ax.get_yticklabels(), rows["scheme"], strict=False):  # inner panels have none
        tick.set(color=scheme_look(scheme)[0], fontweight="bold")
    bare(ax)


def _box(ax, x: float, y: float, width: float, height: float, results) -> None:
    """A box about a point, split by the shares of the results."""
    left = x - width / 2
    for result, part in (width * results.value_counts(normalize=True)).reindex(list(OUTCOMES)).dropna().items():
        ax.add_patch(Rectangle((left, y - height / 2), part, height, **outcome_patch(result)))
        left += part


def cell_text(cell: pd.DataFrame) -> tuple[str, str]:
    """Two lines for the runs of a cell; shares are of the runs that have an outcome."""
    if cell.empty:
        return "not run", ""
    counts, done = Counter(cell["result"]), cell[cell["status"] == "done"]
    steps, loss = done["crash_step"].dropna(), done["final_loss"].median()
    detail = "" if pd.isna(loss) else f"loss {loss:.2f}"
    when = "" if steps.empty else f"{steps.min()}" + f"–{steps.max()}" * bool(steps.max() > steps.min())
    if when:
        detail = f"steps {when}" if len(steps) > 1 else f"step {when}"
    if len(cell) == 1:
        return OUTCOMES[cell["result"].iloc[0]][0], detail
    failed = ", ".join(f"{n} {name}" for name, n in counts.items() if name in set(cell["status"]))
    if done.empty:
        return failed, ""
    kinds = set(done["result"])
    if when and len(kinds) > 1:  # whose steps these are
        detail = f"{len(steps)} died at {when}"
    result = kinds.pop() if len(kinds) == 1 else "survived"
    return f"{counts[result]}/{len(done)} {OUTCOMES[result][0]}", failed or detail


@figure("fates", "What became of each run, by depth, scheme and learning rate", ("runs",), ("frontier", "frontier64"))
def outcomes_by_rate(folder: Path, title: str):
    runs = load_runs(folder)
    runs = some(runs[runs["status"] == "done"], "no run has an outcome")
    depths, labels, rates = sorted(set(runs["depth"])), list(dict.fromkeys(runs["label"])), sorted(set(runs["lr"]))
    note = "A box is a cell at one rate, split by the shares of its runs' outcomes; the number is how many runs."
    fig, body = page(9.0, 1.3 + 0.36 * len(labels) * len(depths) + 0.35 * len(depths), title, caption(runs, note))
    axes = body.subplots(len(depths), 1, sharex=True, squeeze=False)[:, 0]
    for ax, depth in zip(axes, depths, strict=True):
        for (label, lr), cell in runs[runs["depth"] == depth].groupby(["label", "lr"]):
            x, y = rates.index(lr), labels.index(label)
            _box(ax, x, y, 0.9, 0.84, cell["outcome"])
            ax.text(x, y, f"{len(cell)}", ha="center", va="center", fontsize=7)
        ax.set_yticks(range(len(labels)), labels)
        ax.set(xlim=(-0.6, len(rates) - 0.4), ylim=(len(labels) - 0.5, -0.5))
        ax.set_title(f"{depth} blocks", loc="left", fontsize=10)
        ax.tick_params(length=0)
        ax.grid(False)
    axes[-1].set_xticks(range(len(rates)), [f"{rate:.3g}" for rate in rates], rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes[-1].set_xlabel("learning rate")
    legend(body, outcome_handles(runs["outcome"]))
    return fig
