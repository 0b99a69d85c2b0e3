"""Figure 6 of the paper: the mean and the centered part of the writer gradients along training, by scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures.audit import CRASH_LINE, SITES, audit_of, crash_line_handle, dissected_or_none, log_axis, positive, uniform
from paper_figures.figure import figure, some
from paper_figures.runs import caption, crash_of, load_runs, main_lr
from paper_figures.style import legend, line_of, page, scheme_handles, scheme_look

METRICS = {"g_mean": "mean part, g_mean", "g_ctr": "centered part, g_ctr"}
SMOOTH = 5  # audited steps in the running median: the stride sees single batches, whose gradients scatter a lot
FLOOR = 1e-6  # values below are cut off, so that extinct gradients do not flatten the rest


@figure("fig06_gradient_modes", "Figure 6: mean and centered part of the writer gradients along training", ("runs", "audit"),
        ("anatomy", "anatomy64"))  # fmt: skip
def gradient_modes(folder: Path, title: str):
    runs = load_runs(folder)
    audit = audit_of(folder, runs)
    shown = runs[runs["run_id"].isin(audit.loc[~audit["window"], "run_id"])]
    shown = one_run_each(some(shown, "no run was audited"), dissected_or_none(folder, runs))
    bands = {(run_id, site, metric): band(rows, metric, end(row)) for row in shown.itertuples()
             for (run_id, site), rows in audit[audit["run_id"] == row.run_id].groupby(["run_id", "site"]) for metric in METRICS}
    fig, body = page(10.0, 7.2, title, caption(
        shown, f"One run per scheme. Line: median over depth at the audited steps, itself a running median of {SMOOTH} "
        "that stops at a crash; band: quartiles over depth, likewise smoothed. "
        f"Log axes, cut off below {FLOOR:g}; gaps for exact zeros.", _levels(shown, bands),
        "The paper prints no numbers; it finds that LayerScale shrinks both parts, and that MV-Split bounds the mean "
        "part and keeps a larger centered part."))  # fmt: skip
    axes = body.subplots(2, 2, sharex=True, sharey="row")
    for line, site in zip(axes, SITES, strict=True):
        for ax, metric in zip(line, METRICS, strict=True):
            for row in shown.itertuples():
                _band(ax, row, bands[row.run_id, site, metric])
            log_axis(ax, "Frobenius norm")
            ax.set_title(f"{SITES[site]}: {METRICS[metric]}")
        line[0].set_ylim(bottom=max(FLOOR, line[0].get_ylim()[0]))
        line[1].set_ylabel("")
    for ax in axes[1]:
        ax.set_xlabel("step")
    legend(body, scheme_handles(shown, markers=False) + [crash_line_handle()] * bool(shown["crashed"].any()))
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


def band(rows, metric: str, crash: float) -> pd.DataFrame:
    """Quartiles over depth by step (columns 0.25, 0.5, 0.75), each a running median that stops at the crash."""
    quartiles = uniform(rows).groupby("step")[metric].quantile([0.25, 0.5, 0.75]).unstack()
    quartiles = quartiles[quartiles[0.75] > 0]  # the first step of a zero final projection has no gradient at all
    parts = (quartiles[quartiles.index < crash], quartiles[quartiles.index >= crash])
    smooth = [part.rolling(SMOOTH, center=True, min_periods=1).median() for part in parts if len(part)]
    return pd.concat(smooth) if smooth else quartiles


def _band(ax, row, quartiles) -> None:
    colour = scheme_look(row.scheme)[0]
    low, middle, high = (positive(quartiles[q]) for q in (0.25, 0.5, 0.75))
    ax.fill_between(quartiles.index, low.clip(lower=FLOOR / 100), high, color=colour, alpha=0.15, linewidth=0)
    ax.plot(middle.index, middle, linewidth=1.4, **line_of(row))
    if end(row) < np.inf:
        ax.axvline(row.crash_step, **CRASH_LINE | {"color": colour})


def _levels(shown, bands) -> str:
    """The typical level of each run while it was alive, for attention W_O."""
    words = []
    for row in shown.itertuples():
        pair = []
        for metric in METRICS:
            middle = bands[row.run_id, "attn", metric][0.5]
            pair.append(f"{middle[middle.index < end(row)].median():.2g}")
        words.append(f"{row.label} {' / '.join(pair)}")
    return f"Median over depth and steps before any crash, attention W_O, g_mean / g_ctr: {'; '.join(words)}."
