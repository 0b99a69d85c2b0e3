"""What the figures of the audit share: the rows of whole sequences, the run to dissect, and log scales with zeros."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from paper_figures.figure import NotDrawn
from paper_figures.runs import main_lr
from paper_figures.style import NEUTRAL, handle
from suite.evidence.hazard import died_healthy, evals_of
from suite.records.store import read

AROUND = 30  # steps on either side of the crash that figures show; the dense window begins 60 before (suite/training/trainer.py)
EVENT = 10  # the event is looked for in this many steps around the crash; `before` is what the window holds before them
SITES = {"attn": "attention W_O", "ffn": "FFN W_2"}
CRASH_LINE = {"color": NEUTRAL, "linestyle": (0, (4, 2)), "linewidth": 1.2, "zorder": 1.5}
BLOCKS = LinearSegmentedColormap.from_list("blocks", mpl.colormaps["viridis_r"](np.linspace(0.12, 1, 256)))
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def crash_line_handle(label: str = "crash"):
    """The legend entry of a vertical line at a crash."""
    return handle(label, **CRASH_LINE)


# ---- rows

def audit_of(folder: Path, runs, scheme: str | None = None, depth: int | None = None) -> pd.DataFrame:
    """Audit rows over all tokens (segment "all") of these runs; infinities become NaN."""
    audit = read(folder, "audit", scheme, depth)
    audit = audit[(audit["segment"] == "all") & audit["run_id"].isin(runs["run_id"])]
    return audit.drop(columns="segment").replace([np.inf, -np.inf], np.nan)


def uniform(rows) -> pd.DataFrame:
    """One run's rows at the uniform stride, also where a dense window took their place, of the layers that all have.

    (A run audited at full depth shows all layers at every fourth stride only, which would sway a median.)
    """
    stride = math.gcd(*(int(step) for step in rows.loc[~rows["window"], "step"] if step > 1))
    kept = rows[~rows["window"] | ((rows["step"] % stride == 0) if stride > 0 else False)]
    return kept[kept["layer"].isin(anchors(kept))]


def anchors(rows) -> list[int]:
    """The layers that every audited step has."""
    steps = rows.groupby("layer")["step"].nunique()
    return sorted(int(layer) for layer in steps.index[steps == steps.max()])


def deep(rows, depth: int) -> pd.DataFrame:
    """The rows of the last quarter of the depth, as the paper's trace has it."""
    return rows[rows["layer"] >= 0.75 * depth]


def medians(rows, metric: str) -> pd.Series:
    """Median over the layers of a metric, by step."""
    return rows.groupby("step")[metric].median()


# ---- the run to dissect

class Event(NamedTuple):
    """A crash audited at every step around it. step: where the deep median of g_mean of attention W_O is largest."""

    run: tuple
    window: pd.DataFrame
    crash: int
    step: int

    def factor(self, rows, metric: str) -> float:
        """Deep median at the event over its median before; nan where nothing was there before."""
        series = medians(rows, metric)
        usual = series[before(series.index, self.crash)].median()
        return float(series[self.step] / usual) if usual > 0 else float("nan")


def dissected(folder: Path, runs) -> Event:
    """A collapsed plain run that has a dense window on both sides of its crash: one that was healthy before if there
    is any, at the learning rate that most runs share (there the other schemes stand beside it), else the lowest; the
    first seed. Raises NotDrawn."""
    plain = runs[(runs["scheme"] == "plain") & (runs["outcome"] == "collapsed") & runs["crash_step"].notna()]
    audit, evals = audit_of(folder, plain, "plain"), evals_of(folder)
    ill = [not died_healthy(run, evals(run.run_id)) for run in plain.itertuples()]
    plain = plain.assign(lonely=plain["lr"] != main_lr(runs), ill=ill)
    for run in plain.sort_values(["ill", "lonely", "lr", "seed", "depth", "run_id"]).itertuples():
        window, crash = audit[(audit["run_id"] == run.run_id) & audit["window"]], int(run.crash_step)
        if len(window) and window["step"].min() < crash - EVENT and window["step"].max() > crash:
            near = window[(window["site"] == "attn") & ((window["step"] - crash).abs() <= EVENT)]
            return Event(run, window, crash, int(medians(deep(near, run.depth), "g_mean").idxmax()))
    raise NotDrawn("no collapsed plain run was audited at every step around its crash")


def dissected_or_none(folder: Path, runs):
    """The dissected run, or None."""
    try:
        return dissected(folder, runs).run
    except NotDrawn:
        return None


def before(steps, crash: int) -> np.ndarray:
    """Which steps lie before the event."""
    return np.asarray(steps) < crash - EVENT


def name_of(run) -> str:
    """One run in words for a caption."""
    return f"{run.label}, depth {run.depth}, learning rate {run.lr:g}, seed {run.seed}, run {run.run_id}"


# ---- axes

def positive(values):
    """Values for a log axis: what is not above 0 becomes a gap."""
    return pd.Series(values).where(lambda value: value > 0)


def log_axis(ax, label: str) -> None:
    """A logarithmic y axis with few, plain labels (the project's style does not parse mathematics)."""
    ax.set(yscale="log", ylabel=f"{label} (log scale)")
    ax.yaxis.set_major_locator(LogLocator(numticks=7))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(np.log10(value), 0)))
    ax.yaxis.set_minor_formatter(NullFormatter())


def power(exponent: float, digits: int = 1) -> str:
    """A power of ten in plain text: 10 with a raised integer, or 10^-8.7."""
    return f"10{f'{exponent:.0f}'.translate(RAISED)}" if digits == 0 else f"10^{exponent:.{digits}f}"


def heat(ax, rows):
    """Token cosine similarity by step and block, each audited block standing for those nearest to it; and its table."""
    table = rows.pivot(index="layer", columns="step", values="tcs")
    ax.grid(False)
    ax.set_ylabel("block")
    mesh = ax.pcolormesh(edges(table.columns), edges(table.index), table, cmap="magma", vmin=0, vmax=1, rasterized=True)
    return mesh, table


def edges(centres) -> np.ndarray:
    """Borders of heat-map cells around increasing centres; the outer cells are symmetric."""
    centres = np.asarray(centres, float)
    if len(centres) == 1:
        return centres[0] + np.array([-0.5, 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
