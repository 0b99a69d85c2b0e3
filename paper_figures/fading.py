"""Not in the paper: how far gradients fade on their way back in runs that survive, and what loss they end with."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from paper_figures.audit import audit_of, deep, log_axis, medians, positive, uniform
from paper_figures.figure import NotDrawn, figure
from paper_figures.runs import caption, load_runs
from paper_figures.style import legend, line_of, page, plain_log, scheme_handles, scheme_look

LAST = 8  # audited steps that a running median spans, and the end of a run
FEW = 4  # runs below which quartiles say nothing
TITLES = ("(b) first quarter over last quarter", "(c) where it ended, and the loss")


@figure("fading_gradients", "How far gradients fade on their way back, in runs that survive", ("runs", "audit"), ("anatomy", "anatomy64"))
def fading(folder: Path, title: str):
    """A line of panels for each depth; a scheme's runs as their median and quartiles."""
    runs = load_runs(folder)
    runs = runs[runs["outcome"] == "survived"]
    audit = audit_of(folder, runs).query("site == 'attn'")
    runs = runs[runs["run_id"].isin(audit["run_id"])]
    if len(runs) < FEW:
        raise NotDrawn(f"fewer than {FEW} runs that survived were audited")
    rows = {run_id: uniform(mine) for run_id, mine in audit.groupby("run_id")}
    alike = [of_last(mine)["tcs"].median() for mine in rows.values()]  # which tells this from the collapse
    depths = sorted(set(runs["depth"]))
    fig, body = page(11.0, 0.8 + 3.0 * len(depths), title, caption(
        runs, "Runs that the crash rule calls survived; gradient: root mean square of the loss's gradient with respect to attention's W_O. "
        f"Lines: median over runs, bands: quartiles, of {FEW} runs or more. (a) median over a run's last {LAST} audited steps, "
        f"by block; (b) median of the first quarter of the blocks over that of the last quarter, running median of {LAST} audited steps; "
        f"(c) its end against the last held-out loss, a mark for each run. Median TCS at the end: {min(alike):.2f} to {max(alike):.2f} (1 "
        "would be the collapse). Hollow marks: a variant of the scheme. Log axes leave gaps for exact zeros."))  # fmt: skip
    axes = body.subplots(len(depths), 3, squeeze=False, sharex="col", sharey="col")
    for line, depth in zip(axes, depths, strict=True):
        here = runs[runs["depth"] == depth]
        for _, mine in here.groupby("label", sort=False):
            _draw(*line, mine, rows)
        many = "\n".join(f"{label}: {n} runs" for label, n in here.groupby("label", sort=False).size().items())
        for ax, said in zip(line, (f"(a) {depth} blocks: gradient by block, at the end", *TITLES)):
            ax.set_title(said, loc="left")
        line[2].text(0.98, 0.97, many, transform=line[2].transAxes, fontsize=8.5, ha="right", va="top", linespacing=1.4)
        log_axis(line[0], "root mean square")
        line[1].set_ylabel("ratio (log scale)")
        line[2].set_ylabel("held-out loss (last)")
        plain_log(line[1])
        plain_log(line[2], which="x")
    for ax, said in zip(axes[-1], ("block / depth", "step", "ratio (log scale)")):
        ax.set_xlabel(said)
    legend(body, scheme_handles(runs, markers=True))
    return fig


def _draw(by_block, by_step, by_loss, runs, rows) -> None:
    """The runs of one scheme at one depth."""
    row = next(runs.itertuples())
    (colour, marker), depth = scheme_look(row.scheme), row.depth
    profiles = pd.DataFrame({name: of_last(rows[name]).groupby("layer")["wo_grad"].median() for name in runs["run_id"]})
    courses = pd.DataFrame({name: early_over_deep(rows[name], depth).rolling(LAST, center=True, min_periods=1).median()
                            for name in runs["run_id"]})  # fmt: skip
    for ax, table, x in ((by_block, profiles, (profiles.index + 0.5) / depth), (by_step, courses, courses.index)):
        low, middle, high = (positive(table.quantile(share, axis=1)) for share in (0.25, 0.5, 0.75))
        ax.plot(x, middle, linewidth=1.6, **line_of(row))
        if len(runs) >= FEW:
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    ends = [early_over_deep(of_last(rows[name]), depth).median() for name in runs["run_id"]]
    by_loss.plot(ends, runs["heldout_loss"], marker, linestyle="", markersize=7, color=colour, markeredgewidth=1.3,
                 markerfacecolor="none" if row.variant else colour, alpha=0.85)  # fmt: skip


def of_last(rows) -> pd.DataFrame:
    """The rows of a run's last audited steps."""
    return rows[rows["step"].isin(sorted(rows["step"].unique())[-LAST:])]


def early_over_deep(rows, depth: int) -> pd.Series:
    """Median W_O gradient of the first quarter of the blocks over that of the last quarter, by step."""
    return medians(rows[rows["layer"] < 0.25 * depth], "wo_grad") / medians(deep(rows, depth), "wo_grad")
