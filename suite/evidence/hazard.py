"""How long healthy runs live below their edge: hazards, survival curves, and the critical rates of the longer horizon.

A run is healthy while its held-out loss, measured every so many steps, is below 0.45 c. The hazard is deaths of
healthy runs over healthy steps, up to step 1000 and after it; its interval is the exact one of a Poisson count
(Garwood, Biometrika 28, 1936), which takes the hazard as constant within a piece. Two schemes are compared piece by
piece: given the sum of two Poisson counts, one of them is binomial.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from suite.evidence.cells import Cell, cells, finished, name, runs_of
from suite.evidence.edges import PRIMARY, edges, judged
from suite.evidence.stats import LEVEL, Critical, critical
from suite.protocol import KNOWN
from suite.records.store import read
from suite.verdict.outcome import DEAD
from suite.verdict.signature import SIGNATURE_EARLY

HEALTHY = 0.45  # of c; the digits' best is about 0.32
LOOSER = 0.5  # of c: that the line is not what decides
PER = 1000  # healthy steps to which a hazard is given
CUT = 1000  # last step of the first piece. Chosen after the deaths were seen: none of anatomy's lies between 936 and 1553


# ---- which runs are healthy, and when

def healthy_spans(run, evals: pd.DataFrame, share: float = HEALTHY) -> list[tuple[int, int]]:
    """(first, last) steps behind each held-out loss below that share of c: to the next measurement, the crash or the
    horizon.

    run: a row of runs.csv, by attribute; evals: its held-out losses by step.
    """
    end = run.crash_step - 1 if run.outcome in DEAD else min(run.last_step, run.horizon)
    steps, well = evals["step"].to_numpy(), (evals["heldout_loss"] < share * run.constant_loss).to_numpy()
    inside = steps < end
    stops = [*steps[inside][1:], end]
    return [(step, stop) for step, stop, healthy in zip(steps[inside], stops, well[inside]) if healthy]


def healthy_steps(run, evals: pd.DataFrame, share: float = HEALTHY, until: float = np.inf) -> int:
    """How many steps of a run were healthy, of those up to step `until`."""
    return int(sum(min(stop, until) - min(step, until) for step, stop in healthy_spans(run, evals, share)))


def died_healthy(run, evals: pd.DataFrame, share: float = HEALTHY) -> bool:
    """Whether a run is dead and was healthy at the last measurement that lies before the event."""
    if run.outcome not in DEAD:
        return False
    before = evals["heldout_loss"][evals["step"] < run.crash_step - SIGNATURE_EARLY]
    return bool(len(before) and before.iloc[-1] < share * run.constant_loss)


def evals_of(folder: Path):
    """A function from a run id to the run's held-out losses by step."""
    table = read(folder, "evals")
    by_run = dict(iter(table.groupby("run_id")))
    return lambda run_id: by_run.get(run_id, table[:0])


def with_health(folder: Path, share: float = HEALTHY) -> pd.DataFrame:
    """The finished runs of a folder, in the table's order, with `healthy_steps`, `healthy_early` (of them up to CUT),
    `healthy_from` (the step of the first good measurement, nan if none) and `died_healthy`; healthy: below that share
    of c."""
    runs, evals = finished(runs_of(folder)).sort_index(), evals_of(folder)
    spans = {run.Index: (run, evals(run.run_id)) for run in runs.itertuples()}
    columns = {
        "healthy_steps": [healthy_steps(*at, share) for at in spans.values()],
        "healthy_early": [healthy_steps(*at, share, CUT) for at in spans.values()],
        "healthy_from": [next((step for step, _ in healthy_spans(*at, share)), np.nan) for at in spans.values()],
        "died_healthy": [died_healthy(*at, share) for at in spans.values()],
    }
    kinds = (int, int, float, bool)
    return runs.assign(**{name: np.array(values, kind) for (name, values), kind in zip(columns.items(), kinds)})


# ---- the hazard

@dataclass(frozen=True)
class Piece:
    """Healthy deaths and healthy steps between two steps."""

    deaths: int
    steps: int

    @property
    def hazard(self) -> tuple[float, float, float]:
        """(deaths in PER healthy steps, low, high); nan, 0 and inf where no step was healthy."""
        if not self.steps:
            return np.nan, 0.0, np.inf
        return tuple(PER * n / self.steps for n in (self.deaths, *poisson_interval(self.deaths)))

    def __str__(self) -> str:
        middle, low, high = self.hazard
        return f"{middle:.3f} [{low:.3f}, {high:.3f}]" if self.steps else "-"


@dataclass(frozen=True)
class Risk:
    """A cell at one rate, or several together: runs, the dead among them, healthy steps, those of them up to CUT, and
    the crash steps of the dead that were healthy, in order."""

    name: str
    depth: int
    lr: float
    runs: int
    dead: int
    steps: int
    early: int
    when: tuple[int, ...] = ()

    @property
    def pieces(self) -> tuple[Piece, Piece]:
        """Up to CUT, and after it."""
        soon = sum(bool(step <= CUT) for step in self.when)
        return Piece(soon, self.early), Piece(len(self.when) - soon, self.steps - self.early)

    def __str__(self) -> str:
        return "up to step {} {} and after it {}".format(CUT, *self.pieces)

    def __add__(self, other: Risk) -> Risk:
        counts = (getattr(self, what) + getattr(other, what) for what in ("runs", "dead", "steps", "early"))
        return Risk(self.name, self.depth, self.lr, *counts, tuple(sorted(self.when + other.when)))


def poisson_interval(n: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact two-sided interval of the mean of a Poisson count n; for 0 it is [0, 3.69] at 95 %."""
    from scipy.stats import chi2

    tail = (1 - level) / 2
    return (float(chi2.ppf(tail, 2 * n) / 2) if n else 0.0), float(chi2.ppf(1 - tail, 2 * n + 2) / 2)


def hazard_ratio(one: Piece, other: Piece, level: float = LEVEL) -> tuple[float, float, float] | None:
    """(ratio, low, high) of two hazards, exact given the sum of their healthy deaths (Przyborowski and Wilenski,
    Biometrika 31, 1940).

    None where neither has a healthy death, or one no healthy step; inf where `other` has no death.
    """
    from scipy.stats import binomtest

    both = one.deaths + other.deaths
    if not both or not one.steps or not other.steps:
        return None
    share = binomtest(one.deaths, both).proportion_ci(level, method="exact")
    odds = (p / (1 - p) if p < 1 else np.inf for p in (one.deaths / both, float(share.low), float(share.high)))
    return tuple(each * other.steps / one.steps for each in odds)


def risks(runs: pd.DataFrame) -> list[Risk]:
    """One entry for each cell and rate of runs `with_health`, in the order of cells, rates from cold to hot."""
    def risk(cell: Cell, lr: float, at: pd.DataFrame) -> Risk:
        counts = len(at), at["outcome"].isin(DEAD).sum(), at["healthy_steps"].sum(), at["healthy_early"].sum()
        when = sorted(map(int, at.loc[at["died_healthy"], "crash_step"]))
        return Risk(name(cell.scheme, cell.params), cell.depth, lr, *map(int, counts), tuple(when))

    return [risk(cell, lr, at) for cell, mine in cells(runs).items() for lr, at in mine.groupby("lr")]


# ---- survival

def kaplan_meier(entry, end, died, level: float = LEVEL) -> pd.DataFrame:
    """By step of a death: `at_risk`, `deaths`, `survival`, `low`, `high`, of runs that are watched from `entry` on (left truncation).

    entry, end, died: (N,) the step after which a run is at risk, its last step, and whether it died at it. At risk at a
    step are those with entry < step <= end. The interval is Greenwood's of log(-log), as scipy.stats.ecdf has it, which
    knows no late entry; nan where the curve is 1 or 0.
    """
    from scipy.stats import norm

    entry, end, died = np.asarray(entry, float), np.asarray(end, float), np.asarray(died, bool)
    steps = np.unique(end[died])
    n = np.array([((entry < step) & (step <= end)).sum() for step in steps], int)
    d = np.array([(died & (end == step)).sum() for step in steps], int)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.cumprod(1 - d / n)
        spread = np.sqrt(np.cumsum(d / (n * (n - d)))) / np.log(left) * norm.ppf((1 + level) / 2)
        low, high = (left ** np.exp(sign * spread) for sign in (-1, 1))
    known = (left > 0) & (left < 1)
    table = {"at_risk": n, "deaths": d, "survival": left, "low": np.where(known, low, np.nan), "high": np.where(known, high, np.nan)}
    return pd.DataFrame(table, index=pd.Index(steps, name="step"))


def watched(runs: pd.DataFrame) -> pd.DataFrame:
    """`entry`, `end` and `died` of those of runs `with_health` that ever were healthy: from then on, to a death of any kind."""
    known = runs[runs["healthy_from"].notna()]
    died = known["outcome"].isin(DEAD)
    end = known["crash_step"].where(died, known["horizon"]).astype(float)
    return pd.DataFrame({"entry": known["healthy_from"], "end": end, "died": died})


# ---- critical rates

def rates_below(frontier: pd.DataFrame) -> dict[tuple[str, int], tuple[float, ...]]:
    """(scheme, depth) -> the two hottest rates of the lattice below LR50, hot first, for the schemes of the primary
    comparison.

    The rule by which the anatomy's rates are chosen.
    """
    out = {}
    for edge in edges(frontier):
        if edge.cell.label in PRIMARY:
            out[edge.cell.scheme, edge.cell.depth] = tuple(sorted((lr for lr in KNOWN if lr < edge.lr50.middle), reverse=True)[:2])
    return out


def longer(frontier: pd.DataFrame, long: pd.DataFrame) -> dict[Cell, tuple[Critical, Critical, tuple[float, int, int] | None]]:
    """Cell -> (LR50 by the frontier's horizon, LR50 by the longer one, a bound of this from above).

    A run that is dead by the short horizon is dead by the long one, but what became of one that lived then is not
    known. So the frontier adds those rates, all hotter than the long runs', at which all of its runs are dead. The
    bound is (rate, dead, runs) of the coldest hotter rate at which half or more are dead by the short horizon
    already; None where there is none.
    """
    short, out = cells(frontier), {}
    for cell, mine in cells(long).items():
        if cell in short:
            hotter = [(lr, at, int(at["outcome"].isin(DEAD).sum())) for lr, at in short[cell].groupby("lr") if lr > mine["lr"].max()]
            known = pd.concat([mine, *(at for _, at, dead in hotter if dead == len(at))])
            bound = next(((lr, dead, len(at)) for lr, at, dead in hotter if 2 * dead >= len(at)), None)
            out[cell] = critical(*judged(short[cell])), critical(*judged(known)), bound
    return out
