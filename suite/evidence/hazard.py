"""How often healthy runs die below their edge, and the critical rates of the longer horizon, from the anatomy's runs.

A run is healthy while its held-out loss, measured every so many steps, is below 0.45 c. The hazard is deaths of healthy runs over
healthy steps; its interval is the exact one of a Poisson count (Garwood, Biometrika 28, 1936), which takes the hazard as constant. Two
schemes are compared at a rate and a depth that both have: given the sum of two Poisson counts, one of them is binomial.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from suite.evidence.edges import PRIMARY, cells, edges, judged
from suite.evidence.stats import LEVEL, Critical, critical
from suite.protocol import KNOWN
from suite.records.tables import RowsByRun, Store
from suite.verdict.outcomes import DEAD
from suite.verdict.signature import SIGNATURE_EARLY

HEALTHY = 0.45  # of c; issue 15: the digits' best is about 0.32
LOOSER = 0.5  # of c: that the line is not what decides
PER = 1000  # healthy steps to which a hazard is given

Rows = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Risk:
    """A cell at one rate: runs, the dead among them, the dead that were healthy, healthy steps, and the crash steps of the dead that were
    healthy, in order."""

    scheme: str
    params: str
    depth: int
    lr: float
    runs: int
    dead: int
    healthy_dead: int
    healthy_steps: int
    when: tuple[int, ...] = ()

    @property
    def hazard(self) -> tuple[float, float, float]:
        """(healthy deaths in PER healthy steps, low, high); nan, 0 and inf where no step was healthy."""
        low, high = poisson_interval(self.healthy_dead)
        return tuple(PER * n / self.healthy_steps if self.healthy_steps else bare for n, bare in
                     ((self.healthy_dead, float("nan")), (low, 0.0), (high, float("inf"))))  # fmt: skip


def poisson_interval(n: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact two-sided interval of the mean of a Poisson count n; for 0 it is [0, 3.69] at 95 %."""
    from scipy.stats import chi2

    tail = (1 - level) / 2
    return (float(chi2.ppf(tail, 2 * n) / 2) if n else 0.0), float(chi2.ppf(1 - tail, 2 * n + 2) / 2)


def hazard_ratio(one: Risk, other: Risk, level: float = LEVEL) -> tuple[float, float, float] | None:
    """(ratio, low, high) of two hazards, exact given the sum of their healthy deaths (Przyborowski and Wilenski, Biometrika 31, 1940).

    None where neither has a healthy death, or one no healthy step; inf where `other` has no death.
    """
    from scipy.stats import binomtest

    both = one.healthy_dead + other.healthy_dead
    if not both or not one.healthy_steps or not other.healthy_steps:
        return None
    share = binomtest(one.healthy_dead, both).proportion_ci(level, method="exact")
    odds = (p / (1 - p) if p < 1 else float("inf") for p in (one.healthy_dead / both, float(share.low), float(share.high)))
    return tuple(each * other.healthy_steps / one.healthy_steps for each in odds)


def healthy_spans(row: dict[str, str], evals: Rows, share: float = HEALTHY) -> Iterator[tuple[int, int]]:
    """(first, last) steps of a run behind a held-out loss below that share of c, from each measurement to the next, the crash or the
    horizon.

    `evals` are the run's held-out losses by step.
    """
    end = int(row["crash_step"] or 0) - 1 if row["outcome"] in DEAD else min(int(row["last_step"]), int(row["horizon"]))
    at = [(int(line["step"]), _well(row, line, share)) for line in evals if int(line["step"]) < end]
    stops = [*(step for step, _ in at), end][1:]
    return ((step, stop) for (step, well), stop in zip(at, stops, strict=True) if well)


def healthy_steps(row: dict[str, str], evals: Rows, share: float = HEALTHY) -> int:
    """How many steps of a run were healthy."""
    return sum(stop - step for step, stop in healthy_spans(row, evals, share))


def died_healthy(row: dict[str, str], evals: Rows, share: float = HEALTHY) -> bool:
    """Whether a run is dead and was healthy at the last measurement that lies before the event."""
    if row["outcome"] not in DEAD:
        return False
    before = [line for line in evals if int(line["step"]) < int(row["crash_step"]) - SIGNATURE_EARLY]
    return bool(before) and _well(row, before[-1], share)


def healthy_deaths(folder: Path) -> set[str]:
    """The run ids of a folder's healthy deaths."""
    parts = RowsByRun(folder)
    return {row["run_id"] for row in Store(folder).runs() if row["status"] == "done" and died_healthy(row, parts.rows("evals", row))}


def _well(row: dict[str, str], line: dict[str, str], share: float) -> bool:
    return float(line["heldout_loss"] or "nan") < share * float(row["constant_loss"])


def risks(rows: Iterable[dict[str, str]], parts: RowsByRun, share: float = HEALTHY) -> list[Risk]:
    """One entry for each cell and rate, the schemes in the project's order, rates from cold to hot; healthy: below that share of c."""
    out = []
    for cell, mine in cells(rows).items():
        at = defaultdict(list)
        for row in mine:
            at[float(row["lr"])].append((row, parts.rows("evals", row)))
        for lr, runs in sorted(at.items()):
            when = tuple(sorted(int(row["crash_step"]) for row, lines in runs if died_healthy(row, lines, share)))
            out.append(Risk(
                cell[0], cell[2], int(cell[-1]), lr, len(runs), sum(row["outcome"] in DEAD for row, _ in runs), len(when),
                sum(healthy_steps(*run, share) for run in runs), when,
            ))  # fmt: skip
    return out


def rates_below(frontier: Rows) -> dict[tuple[str, int], tuple[float, ...]]:
    """(scheme, depth) -> the two hottest rates of the lattice below LR50u, hot first, for the schemes of the primary comparison.

    The rule by which the anatomy's rates are chosen. Where there is no fit, the edge is taken in the middle of its bracket.
    """
    out = {}
    for edge in edges(frontier):
        if edge.scheme in PRIMARY and edge.cell[1] == "controlled":
            middle = edge.lr50u.rate or (edge.lr50u.low * edge.lr50u.high) ** 0.5
            out[edge.scheme, edge.depth] = tuple(sorted((lr for lr in KNOWN if lr < middle), reverse=True)[:2])
    return out


def longer(frontier: Rows, long: Rows) -> dict[tuple[str, ...], tuple[Critical, Critical, tuple[float, int, int] | None]]:
    """Cell -> (LR50 by the frontier's horizon, LR50 by the longer one, a bound of this from above).

    A run that is dead by the short horizon is dead by the long one, but what became of one that lived then is not known. So the
    frontier adds those rates, all hotter than the long runs', at which all of its runs are dead. The bound is (rate, dead, runs) of the
    coldest hotter rate at which half or more are dead by the short horizon already; None where there is none.
    """
    short, out = cells(frontier), {}
    for cell, mine in cells(long).items():
        if cell not in short:
            continue
        at = defaultdict(list)
        for row in short[cell]:
            at[float(row["lr"])].append(row)
        hottest = max(float(row["lr"]) for row in mine)
        dead = {lr: sum(row["outcome"] in DEAD for row in runs) for lr, runs in at.items()}
        sure = [row for lr, runs in at.items() if lr > hottest and dead[lr] == len(runs) for row in runs]
        half = min((lr for lr, runs in at.items() if lr > hottest and 2 * dead[lr] >= len(runs)), default=None)
        bound = half and (half, dead[half], len(at[half]))
        out[cell] = critical(*judged(short[cell])), critical(*judged([*mine, *sure])), bound
    return out
