"""In which order things move at a death: every dead run against its own calm steps before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures.rows import caption, load_runs
from paper_figures.style import page, skip
from suite.evidence.deaths import CALM_UNTIL, LEAVES, STAYS, deaths
from suite.evidence.hazard import HEALTHY
from suite.verdict.signature import SIGNATURE_EARLY

NAME = "precursors"
TITLE = "What moves first at a death"
INPUTS = ("runs", "curves", "evals", "audit")
PROTOCOLS = ("anatomy", "anatomy64")
STATES = {"mean_dominated": "mean-dominated", "mean_free": "mean-free", "other": "other"}


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    found = [death for death in deaths(folder) if death["row"]["run_id"] in set(runs["run_id"])] if (folder / "audit").is_dir() else []
    found = [death for death in found if death["healthy"]] or found
    labels = dict(zip(runs["run_id"], runs["label"], strict=True))
    table = pd.DataFrame([death["left"] for death in found], index=[_name(death["row"], labels) for death in found])
    table = table.dropna(how="all")
    if table.empty:
        return skip(folder, NAME, "no dead run was audited at every step around its crash, with calm steps before")
    shown = runs[runs["run_id"].isin(death["row"]["run_id"] for death in found)]
    kind = f"healthy before (held-out loss below {HEALTHY:g} c)" if found[0]["healthy"] else "not healthy before"
    figure, body = page(11.5, 1.9 + 0.36 * len(table), TITLE, caption(
        shown, f"Runs that died and were {kind}. Cells: the step, counted from the crash step, at which a quantity left its calm range for "
        f"{STAYS} steps or more (negative: before the crash); a dash: not from {CALM_UNTIL} steps before to {SIGNATURE_EARLY} behind it. "
        f"Calm range: {LEAVES:g} scatters about the median of the logarithm over the steps of the window more than {CALM_UNTIL} before "
        "the crash, so what creeps over longer times does not show, and what is restless already is hard to leave. Audit quantities: "
        "median over the last quarter of the blocks. The crash step is the first from which the loss stays high, so its own departure "
        "is near 0. After the seed: the crash step and the state that came of it."))
    ax = body.subplots()
    columns, rows = np.arange(table.shape[1] + 1), np.arange(len(table) + 1)
    shade = ax.pcolormesh(columns, rows, table.to_numpy(float), cmap="RdBu", vmin=-CALM_UNTIL, vmax=CALM_UNTIL, edgecolors="white",
                          linewidth=1.5)  # fmt: skip
    for y, row in enumerate(table.to_numpy(float)):
        for x, value in enumerate(row):
            dark = value == value and abs(value) > 0.6 * CALM_UNTIL
            ax.text(x + 0.5, y + 0.5, f"{value:+.0f}" if value == value else "–", ha="center", va="center", fontsize=9,
                    color="white" if dark else "black")
    ax.set_xticks(np.arange(table.shape[1]) + 0.5, [name.replace("gradient", "grad.").replace(" ", "\n", 1) for name in table.columns],
                  fontsize=8.5)
    ax.set_yticks(np.arange(len(table)) + 0.5, table.index, fontsize=8.5)
    ax.invert_yaxis()
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    body.colorbar(shade, ax=ax, label="steps from the crash", fraction=0.03, pad=0.02)
    return figure


def _name(row: dict[str, str], labels: dict[str, str]) -> str:
    state = STATES.get(row["state"], row["state"])
    return f"{labels[row['run_id']]}, {row['depth']} blocks, {row['lr']}, seed {row['seed']}: {row['crash_step']}, {state}"
