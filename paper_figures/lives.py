"""Every run of the anatomy as a line from its first step to its death or its horizon: when it was healthy, and where it died."""

from __future__ import annotations

from pathlib import Path

from matplotlib.lines import Line2D

from paper_figures.rows import caption, load_runs
from paper_figures.style import NEUTRAL, legend, line_of, page, scheme_handles, skip
from suite.evidence.hazard import HEALTHY, died_healthy, healthy_spans
from suite.records.tables import RowsByRun, Store
from suite.verdict.outcomes import DEAD

NAME = "lives"
TITLE = "Which runs die below the edge, and when"
INPUTS = ("runs", "evals")
PROTOCOLS = ("anatomy", "anatomy64")
WIDTH, ROW, GAP = 9.5, 0.09, 1.6  # inches, inches a run, rows between cells


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    runs = runs[runs["status"] == "done"]
    if runs.empty:
        return skip(folder, NAME, "no run is done")
    if runs["protocol_version"].iloc[0] < 4:
        return skip(folder, NAME, "these runs are not of the rates below the edge")
    parts, rows = RowsByRun(folder), {row["run_id"]: row for row in Store(folder).runs()}
    cells = list(runs.groupby(["depth", "order", "label", "lr"], sort=True))
    figure, body = page(WIDTH, 1.5 + ROW * (len(runs) + GAP * len(cells)), TITLE, caption(
        runs, f"A line is a run, seeds from top to bottom; thick where its held-out loss is below {HEALTHY:g} c (healthy), thin elsewhere. "
        "It ends where the run died, or at the horizon. n: runs of the cell."))
    ax, y, ticks = body.subplots(), 0.0, []
    for (depth, _, label, lr), cell in cells:
        first = y
        for run in cell.sort_values("seed").itertuples():
            row = rows[run.run_id]
            evals = parts.rows("evals", row)
            _life(ax, y, run, healthy_spans(row, evals), died_healthy(row, evals))
            y += 1
        ticks.append(((first + y - 1) / 2, f"{label}, {depth} blocks, {lr:g} (n = {len(cell)})"))
        y += GAP
    ax.set_yticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=8.5)
    ax.set(xlabel="step", xlim=(0, float(runs["horizon"].max())), ylim=(y - GAP, -1))
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    marks = {"died healthy": {"marker": "X", "markersize": 7}, "died, not healthy": {"marker": "x", "markersize": 6}}
    handles = [Line2D([], [], linestyle="", color=NEUTRAL, label=name, **look) for name, look in marks.items()]
    legend(body, scheme_handles(runs, markers=False) + handles, WIDTH)
    return figure


def _life(ax, y: float, run, spans, died_well: bool) -> None:
    """One run's line: thin, with a thick part while it was healthy."""
    line, dead = line_of(run), run.outcome in DEAD
    end = float(run.crash_step if dead else run.horizon)
    ax.plot([0, end], [y, y], linewidth=0.7, alpha=0.6, **line)
    for span in spans:
        ax.plot(span, [y, y], linewidth=3.0, **line)
    if dead:
        ax.plot(end, y, "X" if died_well else "x", color="black", markersize=5, zorder=3, clip_on=False)
