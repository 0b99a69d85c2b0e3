"""Not in the paper: how far gradients fade on their way back in runs that survive, and what loss they end with."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from paper_figures.audit import audit_of, deep, log_axis, medians, positive, uniform
from paper_figures.figure import figure, some
from paper_figures.runs import caption, load_runs
from paper_figures.style import legend, line_of, page, plain_log, scheme_handles, scheme_look

LAST = 8  # audited steps that a running median spans, and the end of a run


@figure("fading_gradients", "How far gradients fade on their way back, in runs that survive", ("runs", "audit"), ("anatomy", "anatomy64"))
def fading(folder: Path, title: str):
    runs = load_runs(folder)
    runs = runs[runs["outcome"] == "survived"]
    audit = audit_of(folder, runs).query("site == 'attn'")
    runs = some(runs[runs["run_id"].isin(audit["run_id"])], "no run that survived was audited")
    rows = {run_id: uniform(mine) for run_id, mine in audit.groupby("run_id")}
    alike = [of_last(mine)["tcs"].median() for mine in rows.values()]  # which tells this from the collapse
    fig, body = page(11.0, 3.9, title, caption(
        runs, "Runs that the crash rule calls survived, each run a line or mark; gradient: root mean square of the loss's "
        f"gradient with respect to attention's W_O. (a) median over the last {LAST} audited steps, by block; (b) median of the first "
        f"quarter of the blocks over that of the last quarter, running median of {LAST} audited steps; (c) its end against the last "
        f"held-out loss. Median TCS at the end: {min(alike):.2f} to {max(alike):.2f} (1 would be the collapse). Hollow marks: a variant "
        "of the scheme. Log axes leave gaps for exact zeros."))  # fmt: skip
    by_block, by_step, by_loss = body.subplots(1, 3)
    for row in runs.itertuples():
        mine, (colour, marker) = rows[row.run_id], scheme_look(row.scheme)
        profile = positive(of_last(mine).groupby("layer")["wo_grad"].median())
        course = positive(early_over_deep(mine, row.depth).rolling(LAST, center=True, min_periods=1).median())
        by_block.plot((profile.index + 0.5) / row.depth, profile, linewidth=1.4, **line_of(row))
        by_step.plot(course.index, course, linewidth=1.4, **line_of(row))
        by_loss.plot(early_over_deep(of_last(mine), row.depth).median(), row.heldout_loss, marker, markersize=7.5, color=colour,
                     markeredgewidth=1.4, markerfacecolor="none" if row.variant else colour, alpha=0.85)  # fmt: skip
    by_block.set_title("(a) W_O's gradient by block, at the end", loc="left")
    by_block.set_xlabel("block / depth")
    log_axis(by_block, "root mean square")
    by_step.set_title("(b) first quarter over last quarter", loc="left")
    by_step.set(xlabel="step", ylabel="ratio (log scale)")
    plain_log(by_step)
    by_loss.set_title("(c) where that ratio ended, and the loss", loc="left")
    by_loss.set(xlabel="ratio (log scale)", ylabel="held-out loss (last)")
    plain_log(by_loss, which="x")
    legend(body, scheme_handles(runs, markers=True))
    return fig


def of_last(rows) -> pd.DataFrame:
    """The rows of a run's last audited steps."""
    return rows[rows["step"].isin(sorted(rows["step"].unique())[-LAST:])]


def early_over_deep(rows, depth: int) -> pd.Series:
    """Median W_O gradient of the first quarter of the blocks over that of the last quarter, by step."""
    return medians(rows[rows["layer"] < 0.25 * depth], "wo_grad") / medians(deep(rows, depth), "wo_grad")
