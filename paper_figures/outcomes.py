"""What became of each run: a grid of scheme against depth, one panel per learning rate."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from paper_figures.rows import caption, load_runs
from paper_figures.style import OUTCOMES, legend, outcome_handles, outcome_patch, page, scheme_look, skip

NAME = "outcomes"
TITLE = "Outcome by scheme and depth"
INPUTS = ("runs",)
PROTOCOLS = None
PER_LINE = 12  # columns beside each other


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    if runs.empty:
        return skip(folder, NAME, "no run yet")
    labels, panels = runs["label"].drop_duplicates(), {lr: sorted(set(part["depth"])) for lr, part in runs.groupby("lr")}
    lines = lines_of(panels)
    columns = max(sum(len(panels[lr]) for lr in line) for line in lines)
    widest = max(len(label) for label in labels)
    width = max(6.5, 0.4 + 0.085 * widest + 0.1 * len(lines[0]) + 1.15 * columns)
    height = 1.0 + len(lines) * (0.65 + 0.52 * len(labels))
    figure, body = page(width, height, TITLE, caption(runs, note(runs)))
    grid = body.add_gridspec(len(lines), columns)
    for y, line in enumerate(lines):
        x = 0
        for lr in line:
            depths = panels[lr]
            ax = body.add_subplot(grid[y, x:x + len(depths)])
            draw_grid(ax, runs[runs["lr"] == lr], depths, runs.drop_duplicates("label"))
            ax.set_title(f"learning rate {lr:g}" if len(depths) > 1 else f"lr {lr:g}")
            ax.tick_params(labelleft=x == 0)
            x += len(depths)
    legend(body, outcome_handles(runs["result"]), width)
    return figure


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
            left = x - 0.48
            for result, n in sorted(Counter(cell["result"]).items(), key=lambda item: list(OUTCOMES).index(item[0])):
                part = 0.96 * n / len(cell)
                ax.add_patch(Rectangle((left, y - 0.46), part, 0.92, **outcome_patch(result)))
                left += part
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
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def cell_text(cell: pd.DataFrame) -> tuple[str, str]:
    """Two lines for the runs of a cell; shares are of the runs that have an outcome."""
    if cell.empty:
        return "not run", ""
    counts, done = Counter(cell["result"]), cell[cell["status"] == "done"]
    steps, loss = done["crash_step"].dropna(), done["final_loss"].median()
    detail = "" if pd.isna(loss) else f"loss {loss:.2f}"
    if len(steps):
        detail = f"step {steps.min()}" + (f"–{steps.max()}" if steps.max() > steps.min() else "")
    if len(cell) == 1:
        result = cell["result"].iloc[0]
        return OUTCOMES[result][0], detail
    failed = ", ".join(f"{n} {name}" for name, n in counts.items() if name in set(cell["status"]))
    if done.empty:
        return failed, ""
    kinds = set(done["result"])
    result = kinds.pop() if len(kinds) == 1 else "survived"
    return f"{counts[result]}/{len(done)} {OUTCOMES[result][0]}", failed or detail


def note(runs) -> str:
    """What the second line of a cell is."""
    many = runs.duplicated(["label", "depth", "lr"]).any()
    text = "In a cell: the step of the crash, or the final training loss (running median)."
    return text + " Cells of several runs are split by the shares of their outcomes; losses are medians." * bool(many)
