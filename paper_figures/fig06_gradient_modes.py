"""Figure 6 of the paper: the mean and the centered part of the writer gradients along training, by scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures.audit import CRASH_LINE, SITES, audit_of, crash_line_handle, dissected_or_none, log_axis, uniform
from paper_figures.figure import figure, some
from paper_figures.runs import caption, crash_of, load_runs, main_lr
from paper_figures.style import legend, line_of, page, scheme_handles, scheme_look

METRICS = {"g_mean": "mean part, g_mean", "g_ctr": "centered part, g_ctr"}
FLOOR = 1e-6  # values below stand on this edge, so that extinct gradients do not flatten the rest


@figure("fig06_gradient_modes", "Figure 6: mean and centered part of the writer gradients along training", ("runs", "audit"),
        ("anatomy", "anatomy64"))  # fmt: skip
def gradient_modes(folder: Path, title: str):
    runs = load_runs(folder)
    audit = audit_of(folder, runs)
    shown = runs[runs["run_id"].isin(audit.loc[~audit["window"], "run_id"])]
    shown = one_run_each(some(shown, "no run was audited"), dissected_or_none(folder, runs))
    bands = {(run_id, site, metric): band(rows, metric) for row in shown.itertuples()
             for (run_id, site), rows in audit[audit["run_id"] == row.run_id].groupby(["run_id", "site"]) for metric in METRICS}
    fig, body = page(10.0, 7.2, f"{title.partition(':')[0]}{_seen(shown, bands)}", caption(
        shown, "One run per scheme. A mark is an audited step: the median over depth, of one batch; band: quartiles over depth. Nothing is "
        f"drawn between the last mark before a crash and the first behind it. Log axes; values below {FLOOR:g} stand on the lower edge.",
        _levels(shown, bands),
        "The paper prints no numbers; it finds that LayerScale shrinks both parts, and that MV-Split bounds the mean "
        "part and keeps a larger centered part."))  # fmt: skip
    axes = body.subplots(2, 2, sharex=True, sharey="row")
    for line, site in zip(axes, SITES, strict=True):
        for ax, metric in zip(line, METRICS, strict=True):
            for row in shown.itertuples():
                _band(ax, row, bands[row.run_id, site, metric])
            log_axis(ax, "Frobenius norm")
            ax.set_title(f"{SITES[site]}: {METRICS[metric]}")
        line[0].set_ylim(bottom=max(0.7 * FLOOR, line[0].get_ylim()[0]))
        line[1].set_ylabel("")
    for ax in axes[1]:
        ax.set_xlabel("step")
    legend(body, scheme_handles(shown, markers=True) + [crash_line_handle()] * bool(shown["crashed"].any()))
    return fig


def one_run_each(runs, dissected_run) -> pd.DataFrame:
    """The run that stands for each scheme and variant: at the dissected run's depth and learning rate, and its seed."""
    lr, depth = (dissected_run.lr, dissected_run.depth) if dissected_run else (main_lr(runs), runs["depth"].max())
    seed = dissected_run.seed if dissected_run else runs["seed"].min()
    here = runs[(runs["lr"] == lr) & (runs["depth"] == depth)]
    first = here.assign(rank=here["seed"].ne(seed)).sort_values(["rank", "seed"], kind="stable")
    return first.drop_duplicates("label").sort_index()


def end(row) -> float:
    """The step until which a run was usable."""
    return np.inf if crash_of(row) is None else crash_of(row)


def band(rows, metric: str) -> pd.DataFrame:
    """Quartiles over depth by audited step (columns 0.25, 0.5, 0.75)."""
    quartiles = uniform(rows).groupby("step")[metric].quantile([0.25, 0.5, 0.75]).unstack()
    return quartiles[quartiles.index > 1]  # the first step of a zero final projection has no gradient at all


def _band(ax, row, quartiles) -> None:
    """The marks of a run with their quartiles, those before its crash and those behind it apart."""
    (colour, marker), shown = scheme_look(row.scheme), quartiles.clip(lower=FLOOR)
    for part in (shown[shown.index < end(row)], shown[shown.index >= end(row)]):
        ax.fill_between(part.index, part[0.25], part[0.75], color=colour, alpha=0.13, linewidth=0)
        ax.plot(part.index, part[0.5], linewidth=1.0, marker=marker, markersize=3.5, markeredgewidth=0, **line_of(row))
    if end(row) < np.inf:
        ax.axvline(row.crash_step, **CRASH_LINE | {"color": colour})


def _level(row, bands, site: str, metric: str) -> float:
    """The typical level of a run while it was alive: the median over depth and steps."""
    middle = bands[row.run_id, site, metric][0.5]
    return float(middle[middle.index < end(row)].median())


def _seen(shown, bands) -> str:
    """What the picture shows, for its title: MV-Split against plain, held against what the paper finds."""
    first = {row.scheme: row for row in shown[::-1].itertuples()}  # of a scheme its main variant
    if not {"plain", "mvsplit"} <= set(first):
        return ": mean and centered part of the writer gradients along training"
    smaller, larger = ([_level(first["mvsplit"], bands, site, metric) < _level(first["plain"], bands, site, metric) for site in SITES]
                       for metric in METRICS)
    larger = [not lower for lower in larger]
    return f": MV-Split's mean part is {_both(smaller)}smaller than plain's, its centered part {_both(larger)}larger"


def _both(holds: list[bool]) -> str:
    return "" if all(holds) else "not " if not any(holds) else "at one writer "


def _levels(shown, bands) -> str:
    """The levels of attention W_O in numbers."""
    words = [f"{row.label} {' / '.join(f'{_level(row, bands, next(iter(SITES)), metric):.2g}' for metric in METRICS)}"
             for row in shown.itertuples()]
    return f"Median over depth and steps before any crash, attention W_O, g_mean / g_ctr: {'; '.join(words)}."
