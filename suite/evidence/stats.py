"""Critical rates: where a share of the runs of a cell is no longer usable, with its interval.

One cell is a scheme at a depth: runs at several rates, of seeds that it may share with its other rates or not. What is
known of its edge is the posterior of suite/verdict/posterior.py, the same that the search stops by; the simulations of
results/instrument count how often its intervals hold the truth, search included: a bootstrap and a jackknife over
seeds, which it replaces, held it less often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from suite.evidence.jackknife import LEVEL
from suite.protocol import STEP
from suite.verdict.posterior import EDGES, falls, levels, posterior, quantiles, upward

__all__ = ["LEVEL", "Critical", "Ratio", "critical", "holm", "ratio", "upward"]

TAILS = (1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2
NEAR = STEP**0.5  # a rate this close to the hottest or the coldest that was tested lies there: no run tells them apart


@dataclass(frozen=True)
class Critical:
    """A critical rate of a cell. kind: "fit" (rate with its interval low..high), "above" (hotter than any rate tested:
    rate None, high inf, low the interval's lower end) or "below" (colder than any: low 0, high the upper end).

    An end of a fit's interval that the tested rates do not reach is inf or 0. n: runs of the cell; n_low, died_there: of
    "above" those at the hottest rate and the unusable among them; n_high, died_there: of "below" those at the coldest;
    seeds: different ones; falls: rates at which fewer runs are unusable than at a colder one, where a cell is not
    monotone.
    """

    kind: str
    rate: float | None
    low: float
    high: float
    n: int
    seeds: int
    n_low: int = 0
    n_high: int = 0
    died_there: int = 0
    falls: tuple[float, ...] = ()

    @property
    def middle(self) -> float:
        """The rate, or where there is none the end that is known."""
        return self.rate or (self.low if self.kind == "above" else self.high)

    def __str__(self) -> str:
        if self.kind == "fit":
            return f"{self.rate:.2e} [{f'{self.low:.2e}' if self.low else '0'}, {self.high:.2e}]"
        return f"> {self.low:.2e}" if self.kind == "above" else f"< {self.high:.2e}"


class Ratio(NamedTuple):
    """Of two critical rates: None where one is not known; its 95 % interval; and p, two-sided, of a ratio of 1."""

    ratio: float | None
    low: float
    high: float
    p: float


def critical(lr: Sequence[float], seed: Sequence[int], bad: Sequence[bool], share: float = 0.5) -> Critical:
    """The rate at which that share of the runs of one cell is bad. Raises ValueError where there is no run."""
    return _critical(tuple(lr), tuple(seed), tuple(bad), share)


@cache  # a report asks for a cell's rate in its own row and in each ratio
def _posterior(lr: tuple, seed: tuple, bad: tuple) -> np.ndarray:
    return posterior(lr, seed, bad)


@cache
def _critical(lr: tuple, seed: tuple, bad: tuple, share: float) -> Critical:
    if not lr:
        raise ValueError("no runs to fit a critical rate to")
    coldest, hottest = min(lr), max(lr)
    known = {"n": len(lr), "seeds": len(set(seed)), "falls": falls(lr, bad)}
    low, rate, high = map(float, np.exp(quantiles(levels(share), _posterior(lr, seed, bad), TAILS)))
    if not any(bad) or rate > hottest * NEAR:
        there = [b for one, b in zip(lr, bad) if one == hottest]
        return Critical("above", None, min(low, hottest), np.inf, n_low=len(there), died_there=int(sum(there)), **known)
    if all(bad) or rate < coldest / NEAR:
        there = [b for one, b in zip(lr, bad) if one == coldest]
        return Critical("below", None, 0.0, max(high, coldest), n_high=len(there), died_there=int(sum(there)), **known)
    return Critical("fit", rate, 0.0 if low < coldest else low, np.inf if high > hottest else high, **known)


def ratio(one, other) -> Ratio:
    """LR50 of `one` over `other`, each (lr, seed, bad).

    The cells count as independent, which is right or wide where they share their seeds: in results/frontier what a seed
    does in one cell and in another is correlated by .09 in the mean of 105 pairs of cells.
    """
    one, other = (tuple(map(tuple, cell)) for cell in (one, other))
    a, b = critical(*one), critical(*other)
    first, second = (_posterior(*cell).sum(1) for cell in (one, other))
    apart = np.convolve(first, second[::-1])  # of the difference of the two logarithms
    values = (np.arange(len(apart)) - len(EDGES) + 1) * (EDGES[1] - EDGES[0])
    low, _, high = map(float, np.exp(quantiles(values, apart, TAILS)))
    same = apart[len(EDGES) - 1] / 2
    p = min(1.0, 2 * float(min(apart[: len(EDGES) - 1].sum(), apart[len(EDGES) :].sum()) + same))
    return Ratio(a.rate / b.rate if a.kind == b.kind == "fit" else None, 0.0 if a.low == 0 or b.high == np.inf else low,
                 np.inf if a.high == np.inf or b.low == 0 else high, p)  # fmt: skip


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order, out, worst = np.argsort(p), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out
