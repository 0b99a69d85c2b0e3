"""Not in the paper: how far gradients fade on their way back in runs that survive, and what loss they end with."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from paper_figures.audit_rows import audit_of, deep, log_axis, medians, positive, uniform
from paper_figures.rows import caption, load_runs
from paper_figures.style import legend, line_of, page, plain_log, scheme_handles, scheme_look, skip

NAME = "fading_gradients"
TITLE = "How far gradients fade on their way back, in runs that survive"
INPUTS = ("runs", "audit")
PROTOCOLS = ("anatomy", "anatomy64")
WIDTH, HEIGHT = 11.0, 3.9
LAST = 8  # audited steps that a running median spans, and the end of a run


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    runs = runs[runs["outcome"] == "survived"]
    audit = audit_of(folder, runs)
    audit = audit[audit["site"] == "attn"]
    runs = runs[runs["run_id"].isin(audit["run_id"])]
    if runs.empty:
        return skip(folder, NAME, "no run that survived was audited")
    of_run = dict(iter(audit.groupby("run_id")))
    rows = {row.run_id: uniform(of_run[row.run_id]) for row in runs.itertuples()}
    ends = {row.run_id: at_end(rows[row.run_id], row.depth) for row in runs.itertuples()}
    figure, body = page(WIDTH, HEIGHT, TITLE, caption(
        runs, "Runs that the crash rule calls survived, each run a line or mark; gradient: root mean square of the loss's "
        f"gradient with respect to attention's W_O. (a) median over the last {LAST} audited steps, by block; (b) median of the first "
        f"quarter of the blocks over that of the last quarter, running median of {LAST} audited steps; (c) its end against the last "
        f"held-out loss. {_similar(rows)} Hollow marks: a variant of the scheme. Log axes leave gaps for exact zeros."))
    axes = body.subplots(1, 3)
    for row in runs.itertuples():
        colour, marker = scheme_look(row.scheme)
        profile = positive(of_last(rows[row.run_id]).groupby("layer")["wo_grad"].median())
        course = positive(early_over_deep(rows[row.run_id], row.depth).rolling(LAST, center=True, min_periods=1).median())
        axes[0].plot((profile.index + 0.5) / row.depth, profile, linewidth=1.4, **line_of(row))
        axes[1].plot(course.index, course, linewidth=1.4, **line_of(row))
        axes[2].plot(ends[row.run_id], row.heldout_loss, marker, markersize=7.5, color=colour, markeredgewidth=1.4,
                     markerfacecolor="none" if row.variant else colour, alpha=0.85)
    _label(axes)
    legend(body, scheme_handles(runs, markers=True), WIDTH)
    return figure


def _label(axes) -> None:
    axes[0].set_title("(a) W_O's gradient by block, at the end", loc="left")
    axes[0].set_xlabel("block / depth")
    log_axis(axes[0], "root mean square")
    axes[1].set_title("(b) first quarter over last quarter", loc="left")
    axes[1].set_xlabel("step")
    axes[1].set_ylabel("ratio (log scale)")
    plain_log(axes[1])
    axes[2].set_title("(c) where that ratio ended, and the loss", loc="left")
    axes[2].set_ylabel("held-out loss (last)")
    axes[2].set_xlabel("ratio (log scale)")
    plain_log(axes[2], which="x")


def _similar(rows) -> str:
    """How alike the tokens are, which tells this from the collapse."""
    ends = [of_last(part)["tcs"].median() for part in rows.values()]
    return f"Median TCS at the end: {min(ends):.2f} to {max(ends):.2f} (1 would be the collapse)."


def of_last(rows) -> pd.DataFrame:
    """The rows of a run's last audited steps."""
    return rows[rows["step"].isin(sorted(rows["step"].unique())[-LAST:])]


def early_over_deep(rows, depth: int) -> pd.Series:
    """Median W_O gradient of the first quarter of the blocks over that of the last quarter, by step."""
    return medians(rows[rows["layer"] < 0.25 * depth], "wo_grad") / medians(deep(rows, depth), "wo_grad")


def at_end(rows, depth: int) -> float:
    """The median of that ratio over the last audited steps."""
    return float(early_over_deep(of_last(rows), depth).median())
