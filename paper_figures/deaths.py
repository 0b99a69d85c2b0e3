"""The deaths of the anatomy: when each run was healthy and where it died, and in which order things move at a death."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures.figure import NotDrawn, figure, some
from paper_figures.runs import caption, load_runs
from paper_figures.style import NEUTRAL, bare, handle, legend, line_of, page, scheme_handles
from suite.evidence import deaths
from suite.evidence.deaths import CALM_UNTIL, LEAVES, STAYS
from suite.evidence.hazard import HEALTHY, died_healthy, evals_of, healthy_spans
from suite.verdict.outcome import DEAD
from suite.verdict.signature import SIGNATURE_EARLY

ROW, GAP = 0.09, 1.6  # inches a run, rows between cells
STATES = {"mean_dominated": "mean-dominated", "mean_free": "mean-free", "other": "other"}
MARKS = {"died healthy": {"marker": "X", "markersize": 7}, "died, not healthy": {"marker": "x", "markersize": 6}}


@figure("lives", "Which runs die below the edge, and when", ("runs", "evals"), ("anatomy", "anatomy64"))
def lives(folder: Path, title: str):
    """Every run as a line from its first step to its death or its horizon."""
    runs = load_runs(folder)
    runs = some(runs[runs["status"] == "done"], "no run is done")
    if runs["protocol_version"].iloc[0] < 4:
        raise NotDrawn("these runs are not of the rates below the edge")
    evals, cells = evals_of(folder), list(runs.groupby(["depth", "order", "label", "lr"], sort=True))
    fig, body = page(9.5, 1.5 + ROW * (len(runs) + GAP * len(cells)), title, caption(
        runs, f"A line is a run, seeds from top to bottom; thick where its held-out loss is below {HEALTHY:g} c (healthy), thin elsewhere. "
        "It ends where the run died, or at the horizon. n: runs of the cell."))  # fmt: skip
    ax, y, ticks = body.subplots(), 0.0, {}
    for (depth, _, label, lr), cell in cells:
        ticks[y + (len(cell) - 1) / 2] = f"{label}, {depth} blocks, {lr:g} (n = {len(cell)})"
        for run in cell.sort_values("seed").itertuples():
            _life(ax, y, run, evals(run.run_id))
            y += 1
        y += GAP
    ax.set_yticks(list(ticks), list(ticks.values()), fontsize=8.5)
    ax.set(xlabel="step", xlim=(0, float(runs["horizon"].max())), ylim=(y - GAP, -1))
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    marks = [handle(name, linestyle="", color=NEUTRAL, **look) for name, look in MARKS.items()]
    legend(body, scheme_handles(runs, markers=False) + marks)
    return fig


def _life(ax, y: float, run, evals) -> None:
    """One run's line: thin, with a thick part while it was healthy."""
    line, dead = line_of(run), run.outcome in DEAD
    end = float(run.crash_step if dead else run.horizon)
    ax.plot([0, end], [y, y], linewidth=0.7, alpha=0.6, **line)
    for span in healthy_spans(run, evals):
        ax.plot(span, [y, y], linewidth=3.0, **line)
    if dead:
        ax.plot(end, y, "X" if died_healthy(run, evals) else "x", color="black", markersize=5, zorder=3, clip_on=False)


@figure("precursors", "What moves first at a death", ("runs", "curves", "evals", "audit"), ("anatomy", "anatomy64"))
def precursors(folder: Path, title: str):
    """Every dead run against its own calm steps before."""
    runs = load_runs(folder).set_index("run_id", drop=False)
    found = deaths.deaths(folder) if (folder / "audit").is_dir() else []
    found = [death for death in found if death.run.died_healthy] or found
    table = pd.DataFrame([death.left for death in found], index=[_name(death.run, runs["label"]) for death in found]).dropna(how="all")
    some(table, "no dead run was audited at every step around its crash, with calm steps before")
    shown = runs[runs["run_id"].isin(death.run.run_id for death in found)]
    kind = f"healthy before (held-out loss below {HEALTHY:g} c)" if found[0].run.died_healthy else "not healthy before"
    fig, body = page(11.5, 1.9 + 0.36 * len(table), title, caption(
        shown, f"Runs that died and were {kind}. Cells: the step, counted from the crash step, at which a quantity left its calm range for "
        f"{STAYS} steps or more (negative: before the crash; ≤-{CALM_UNTIL}: outside at the first step that is looked at, or earlier); "
        f"a dash: not from {CALM_UNTIL} steps before to {SIGNATURE_EARLY} behind it. "
        f"Calm range: {LEAVES:g} scatters about the median of the logarithm over the steps of the window more than {CALM_UNTIL} before "
        "the crash, so what creeps over longer times does not show, and what is restless already is hard to leave. Audit quantities: "
        "median over the last quarter of the blocks. The crash step is the first from which the loss stays high, so its own departure "
        "is near 0. After the seed: the crash step and the state that came of it."))  # fmt: skip
    ax, values = body.subplots(), table.to_numpy(float)
    (rows, columns), limit = values.shape, CALM_UNTIL
    shade = ax.pcolormesh(np.arange(columns + 1), np.arange(rows + 1), values, cmap="RdBu", vmin=-limit, vmax=limit, edgecolors="white",
                          linewidth=1.5)  # fmt: skip
    for (y, x), value in np.ndenumerate(values):
        ax.text(x + 0.5, y + 0.5, _left(value), ha="center", va="center", fontsize=9,
                color="white" if abs(value) > 0.6 * limit else "black")  # fmt: skip
    names = [name.replace("gradient", "grad.").replace(" ", "\n", 1) for name in table.columns]
    ax.set_xticks(np.arange(columns) + 0.5, names, fontsize=8.5)
    ax.set_yticks(np.arange(rows) + 0.5, table.index, fontsize=8.5)
    ax.invert_yaxis()
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    bare(ax)
    body.colorbar(shade, ax=ax, label="steps from the crash", fraction=0.03, pad=0.02)
    return fig


def _left(value: float) -> str:
    """The step at which a quantity left its range, in a cell's words."""
    return "–" if value != value else ("≤" if value <= -CALM_UNTIL else "") + f"{value:+.0f}"


def _name(run, labels) -> str:
    state = STATES.get(run.state, run.state)
    return f"{labels[run.run_id]}, {run.depth} blocks, {run.lr:g}, seed {run.seed}: {run.crash_step}, {state}"
