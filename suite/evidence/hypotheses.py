"""The comparisons of results/hypotheses.csv, each judged by its own rule, with Holm over those of a protocol that can be judged.

A claim of a difference (higher, lower) holds where the adjusted p of no difference is below ALPHA and the sign is
right. A claim of equality (same, no worse) holds where both ends, or the worse one, lie within the margin by the
one-sided tests of Schuirmann (Journal of Pharmacokinetics and Biopharmaceutics 15, 1987). Each claim is refuted where
the 95 % interval of the difference lies beyond what it allows; else it is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm, sem
from scipy.stats import t as student

from suite.evidence.cells import Cell
from suite.evidence.cells import cells as by_cell
from suite.evidence.critical_rates import pool, pooled
from suite.evidence.edges import hypotheses, judged
from suite.evidence.markdown import table
from suite.evidence.measures import Estimate, Measures
from suite.evidence.stats import holm, ratio
from suite.evidence.words import called
from suite.verdict.outcome import DEAD

ALPHA = 0.05
EQUAL = "mean_dominated"  # state of a death that ends with all tokens equal
NORMAL = float(norm.ppf(0.975))
BEST = " (best)"  # of a scheme: its cell with the lowest best loss
BETTER = {"best_loss": -1, "window": 1, "lr50": 1, "equal_deaths": -1}  # the sign of a difference for the better


@dataclass(frozen=True)
class Difference:
    """scheme minus over, in the unit of its margin, with its standard error; freedom: of Student's t, inf for a normal."""

    value: float
    error: float
    freedom: float = np.inf
    text: str = ""

    def above(self, bound: float) -> float:
        """p of the hypothesis that the difference is at most `bound`."""
        return float(student.sf((self.value - bound) / self.error, self.freedom)) if self.error else float(self.value <= bound)

    def below(self, bound: float) -> float:
        """p of the hypothesis that the difference is at least `bound`."""
        return float(student.cdf((self.value - bound) / self.error, self.freedom)) if self.error else float(self.value >= bound)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        half = student.ppf(0.975, self.freedom) * self.error
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Judged:
    """A hypothesis with what was found. p: of its own test, adjusted: after Holm; None where it cannot be judged."""

    row: tuple
    found: Difference | None
    p: float | None
    verdict: str  # holds, refuted, open, not measured
    adjusted: float | None = None


def judge(results: Path, protocol: str) -> list[Judged]:
    """Every hypothesis of a protocol, in the order of the file."""
    cells = {(one.cell.label, one.cell.depth): one for one in pooled(results, protocol) if one.cell.arm == "controlled"}
    runs = by_cell(pool(results, protocol))
    rows = list(hypotheses(results, protocol).itertuples())
    pairs = [(_cell(cells, row.scheme, row.depth), _cell(cells, row.over, row.depth)) for row in rows]
    found = [_difference(row, *pair, runs) if all(pair) else None for row, pair in zip(rows, pairs)]
    p = [None if one is None else _p(row, one) for row, one in zip(rows, found)]
    adjusted = iter(holm([one for one in p if one is not None]))
    out = []
    for row, one, mine in zip(rows, found, p):
        after = None if mine is None else next(adjusted)
        out.append(Judged(row, one, mine, "not measured" if one is None else _verdict(row, one, after), after))
    return out


def _cell(cells: dict[tuple[str, int], Measures], label: str, depth: int) -> Measures | None:
    """A cell with its best loss measured by runs that chose no rate; None where there is none."""
    ready = {key: one for key, one in cells.items() if key[1] == depth and one.fresh}
    if label.endswith(BEST):
        mine = [one for one in ready.values() if one.cell.scheme == label.removesuffix(BEST)]
        return min(mine, key=lambda one: one.best_loss.value, default=None)
    return ready.get((label, depth))


def _difference(row, one: Measures, other: Measures, runs: dict[Cell, pd.DataFrame]) -> Difference | None:
    """None where an interval is open or nothing died."""
    if row.quantity == "best_loss":
        return loss_difference(one.best_values, other.best_values)
    if row.quantity == "window":
        return _window_difference(one.window, other.window)
    if row.quantity == "lr50":
        mine, theirs = (judged(runs[each.cell]) for each in (one, other))
        found = ratio(mine, theirs)
        if found.ratio is None or not 0 < found.low < found.high < np.inf:
            return None
        error = (np.log(found.high) - np.log(found.low)) / 2 / NORMAL
        return Difference(float(np.log(found.ratio)), error, text=f"{found.ratio:.2f} [{found.low:.2f}, {found.high:.2f}] times")
    return share_difference(*(equal_deaths(runs[each.cell]) for each in (one, other)))


def loss_difference(one: pd.Series, other: pd.Series) -> Difference | None:
    """Of best losses by seed, in pairs, as a share of `other`'s mean; None for fewer than three pairs."""
    seeds = one.index.intersection(other.index)
    if len(seeds) < 3:
        return None
    scale = other[seeds].mean()
    apart = (one[seeds] - other[seeds]) / scale
    found = Difference(float(apart.mean()), float(sem(apart)), len(seeds) - 1)
    low, high = found.interval
    return Difference(found.value, found.error, found.freedom, f"{found.value:+.1%} [{low:+.1%}, {high:+.1%}], {len(seeds)} pairs")


def _window_difference(one: Estimate, other: Estimate) -> Difference | None:
    """In octaves, the cells as independent; None where a window is open or has no interval."""
    halves = np.array([one.high - one.value, other.high - other.value])
    if one.open or other.open or not np.isfinite(halves).all():
        return None
    found = Difference(one.value - other.value, float(np.hypot(*halves)) / NORMAL)
    low, high = found.interval
    return Difference(found.value, found.error, text=f"{found.value:+.2f} [{low:+.2f}, {high:+.2f}] octaves")


def share_difference(one: tuple[int, int], other: tuple[int, int]) -> Difference | None:
    """Of two shares k of n, by Agresti and Caffo (The American Statistician 54, 2000); None where an n is 0."""
    if not (one[1] and other[1]):
        return None
    (p, n), (q, m) = (((k + 1) / (count + 2), count + 2) for k, count in (one, other))
    words = " against ".join(f"{k} of {count}" for k, count in (one, other))
    return Difference(p - q, float(np.sqrt(p * (1 - p) / n + q * (1 - q) / m)), text=words)


def equal_deaths(runs: pd.DataFrame) -> tuple[int, int]:
    """(deaths that end with all tokens equal, deaths)."""
    dead = runs[runs["outcome"].isin(DEAD)]
    return int((dead["state"] == EQUAL).sum()), len(dead)


def _p(row, found: Difference) -> float:
    """Of the test whose rejection makes the claim hold."""
    if row.claim == "same":
        return max(found.above(-row.margin), found.below(row.margin))
    if row.claim == "no worse":
        return found.above(-row.margin) if BETTER[row.quantity] > 0 else found.below(row.margin)
    return min(1.0, 2 * (found.above(0.0) if row.claim == "higher" else found.below(0.0)))


def _verdict(row, found: Difference, p: float) -> str:
    if p < ALPHA:
        return "holds"
    low, high = found.interval
    worse = {"higher": high < 0, "lower": low > 0, "same": low > row.margin or high < -row.margin,
             "no worse": high < -row.margin if BETTER[row.quantity] > 0 else low > row.margin}  # fmt: skip
    return "refuted" if worse[row.claim] else "open"


WORDS = {"best_loss": "best loss", "window": "window", "lr50": "LR50", "equal_deaths": "deaths with equal tokens"}


def hypotheses_table(found: Sequence[Judged]) -> str:
    """Markdown: a row a hypothesis."""
    rows = []
    for one in found:
        row = one.row
        margin = f"{row.margin:g} octave" if row.quantity == "window" else f"{row.margin:.0%}"
        within = "" if pd.isna(row.margin) else f" within {margin}"
        than = "as" if row.claim == "same" else "than"
        claim = f"{WORDS[row.quantity]} of {called(row.scheme)} {row.claim} {than} {called(row.over)}'s{within}"
        p = "" if one.adjusted is None else f"{one.adjusted:.2g}"
        rows.append([claim, one.found.text if one.found else "", p, one.verdict])
    return table(["claim", "found", "p (Holm)", "verdict"], rows)
