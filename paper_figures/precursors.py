"""In which order things move at a collapse: every collapsed run against its own calm steps just before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures.audit_rows import AROUND, EVENT, audit_of, deep, medians
from paper_figures.rows import caption, load_runs
from paper_figures.style import page, skip
from suite.records.tables import read

NAME = "precursors"
TITLE = "What moves first at a collapse"
INPUTS = ("runs", "curves", "audit")
PROTOCOLS = ("anatomy", "anatomy64")
LEAVES = 4.0  # scatters from the calm median that count as leaving; a normal series does so once in 16,000 steps
STAYS = 3  # steps in a row that it must be outside, so that a stray step or two is no precursor
AUDITED = {  # column -> (site, title)
    "g_mean": ("attn", "g_mean\nW_O"), "g_ctr": ("attn", "g_ctr\nW_O"), "amplification": ("attn", "A\nW_O"),
    "tcs": ("attn", "1 - TCS"), "rho": ("attn", "rho"), "r_tr": ("attn", "r_tr"), "mu_eff": ("attn", "mu_eff"),
    "q_grad": ("attn", "Q\ngradient"), "update_rms": ("attn", "update\nrms"),
}  # fmt: skip


def leaves(values: pd.Series, crash: int) -> float:
    """The step, counted from `crash`, at which a positive series (by step) leaves its calm range; nan if it does not by EVENT steps after.

    Calm are the steps of the dense window up to EVENT + 1 before the crash. The range is LEAVES scatters (1.4826 times the median
    absolute deviation) about the median of the logarithm; the last STAYS steps of the window cannot be judged.
    """
    series = np.log(values[values > 0])
    calm = series[(series.index >= crash - AROUND) & (series.index < crash - EVENT)]
    late = series[(series.index >= crash - EVENT) & (series.index < crash + EVENT + STAYS)]
    if len(calm) < 5:
        return float("nan")
    scatter = 1.4826 * (calm - calm.median()).abs().median()
    outside = (late - calm.median()).abs() > LEAVES * scatter
    for step in outside.index[outside & (outside.index <= crash + EVENT)]:
        if outside.loc[step : step + STAYS - 1].sum() == STAYS:
            return float(step - crash)
    return float("nan")


def departures(folder: Path, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a collapsed run with a dense window before its crash, one column a metric: `leaves`."""
    crashed = runs[(runs["outcome"] == "collapsed") & (runs["crash_step"] > AROUND)]
    rows = {}
    for run in crashed.itertuples():
        mine = runs[runs["run_id"] == run.run_id]
        audit = audit_of(folder, mine, run.scheme, run.depth)
        window = audit[audit["window"]]
        if window.empty:
            continue
        curve = read(folder, "curves", run.scheme, run.depth)
        curve = curve[curve["run_id"] == run.run_id].set_index("step")
        crash = int(run.crash_step)
        values = {"loss": leaves(curve["loss"], crash), "gradient\nnorm": leaves(curve["grad_norm"], crash)}
        for metric, (site, title) in AUDITED.items():
            series = medians(deep(window[window["site"] == site], run.depth), metric)
            values[title] = leaves(1 - series if metric == "tcs" else series, crash)
        rows[f"{run.label}, {run.depth} blocks, lr {run.lr:g}, seed {run.seed}: step {crash}"] = values
    return pd.DataFrame.from_dict(rows, orient="index")


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    table = departures(folder, runs) if (folder / "audit").is_dir() else pd.DataFrame()
    if table.empty:
        return skip(folder, NAME, "no collapsed run was audited at every step before its crash")
    crashed = runs[(runs["outcome"] == "collapsed") & (runs["crash_step"] > AROUND)]
    figure, body = page(11.0, 1.5 + 0.36 * len(table), TITLE, caption(
        crashed, "Cells: the step, counted from the crash step, at which a quantity left its calm range for "
        f"{STAYS} steps or more (negative: before the crash); a dash: not within {EVENT} steps of it. Calm range: {LEAVES:g} scatters "
        "about the median of the logarithm over "
        f"steps {AROUND} to {EVENT + 1} before the crash, so what creeps over longer times does not show, and what is restless already is "
        "hard to leave. Audit quantities: median over the last quarter of the blocks, attention site. The crash step is the first from "
        "which the loss stays high, so its own departure is near 0."))
    ax = body.subplots()
    columns, rows = np.arange(table.shape[1] + 1), np.arange(len(table) + 1)
    shade = ax.pcolormesh(columns, rows, table.to_numpy(float), cmap="RdBu", vmin=-EVENT, vmax=EVENT, edgecolors="white", linewidth=1.5)
    for y, row in enumerate(table.to_numpy(float)):
        for x, value in enumerate(row):
            dark = value == value and abs(value) > 0.6 * EVENT
            ax.text(x + 0.5, y + 0.5, f"{value:+.0f}" if value == value else "–", ha="center", va="center", fontsize=9,
                    color="white" if dark else "black")
    ax.set_xticks(np.arange(table.shape[1]) + 0.5, table.columns, fontsize=8.5)
    ax.set_yticks(np.arange(len(table)) + 0.5, table.index, fontsize=8.5)
    ax.invert_yaxis()
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)
    body.colorbar(shade, ax=ax, label="steps from the crash", fraction=0.03, pad=0.02)
    return figure
