"""What schemes are ranked by at a depth: best loss, window and margin, which stay the same when a scheme rescales its learning rate.

The value of a run is its held-out loss, or c where it is not usable. The expected loss of a cell is the mean value at
each rate that was run, joined by straight lines over the logarithm of the rate. A rate is chosen by the seeds of the
search; the best loss is measured there with others (FRESH and on), since the lowest of several means is too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.stats import sem
from scipy.stats import t as student

from suite.evidence.cells import Cell, cells
from suite.evidence.edges import Edge, edge_of, of_search
from suite.evidence.jackknife import LEVEL, jackknife
from suite.evidence.stats import Critical
from suite.protocol import HOTTEST
from suite.verdict.best import FRESH, bottom
from suite.verdict.outcome import UNUSABLE

WITHIN = 1.05  # of the best loss of any scheme at that depth: what a window counts
COLDEST = 1.15e-3  # of the range of rates of the sensitivity: the coldest that every cell was run at; the hottest is the search's


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval. open: the sides, cold or hot, on which the rates that were run end too soon."""

    value: float
    low: float = np.nan
    high: float = np.nan
    open: str = ""

    def __str__(self) -> str:
        low, high = f"{self.low:.2f}", f"{self.high:.2f}"
        return f"{'at least ' if self.open else ''}{self.value:.2f}" + ("" if np.isnan(self.low) else f" [{low}, {high}]")


@dataclass(frozen=True)
class Sample:
    """The runs of a cell as arrays, each (N,): log2 of the rate, seed, value, whether it is not usable."""

    x: np.ndarray
    seed: np.ndarray
    value: np.ndarray
    bad: np.ndarray

    @classmethod
    def of(cls, runs: pd.DataFrame) -> Sample:
        bad = runs["outcome"].isin(UNUSABLE)
        value = runs["heldout_loss"].mask(bad, runs["constant_loss"])
        return cls(np.log2(runs["lr"].to_numpy()), runs["seed"].to_numpy(), value.to_numpy(), bad.to_numpy())

    def where(self, keep: np.ndarray) -> Sample:
        """The runs that a (N,) mask keeps."""
        return Sample(self.x[keep], self.seed[keep], self.value[keep], self.bad[keep])

    @cached_property
    def search(self) -> Sample:
        """The runs that rates are chosen by."""
        return self.where(self.seed < FRESH)

    @cached_property
    def fresh(self) -> Sample:
        """The runs that the best loss is measured by."""
        return self.where(self.seed >= FRESH)

    @cached_property
    def expected(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """((R,) log2 of the rates from cold to hot, (R,) mean values, (R,) runs)."""
        x, at, n = np.unique(self.x, return_inverse=True, return_counts=True)
        return x, np.bincount(at, weights=self.value) / n, n

    @cached_property
    def valley(self) -> float:
        """log2 of the rate at which the search's runs learn best."""
        return bottom(*self.search.expected)

    @cached_property
    def best(self) -> tuple[float, np.ndarray]:
        """(log2 of the rate, (n,) values there): of the fresh runs, or of the search's at the rate nearest to the valley's."""
        mine = self.fresh if len(self.fresh.x) else self.search
        rate = mine.x[np.abs(mine.x - self.valley).argmin()]
        return float(rate), mine.value[mine.x == rate]


def octaves_below(x: np.ndarray, means: np.ndarray, level: float) -> tuple[float, str]:
    """(octaves over which an expected loss is at most `level`, the sides on which the rates end sooner than it does).

    x: (R,) log2 of the rates, ascending; means: (R,).
    """
    low, high = np.minimum(means[:-1], means[1:]), np.maximum(means[:-1], means[1:])
    share = np.clip((level - low) / np.where(high > low, high - low, 1.0), 0.0, 1.0)
    share[(high == low) & (low <= level)] = 1.0
    ends = " and ".join(side for side, end in (("cold", 0), ("hot", -1)) if means[end] <= level)
    return float((share * np.diff(x)).sum()), ends


def sensitivity(sample: Sample) -> float:
    """Mean loss above the best over a fixed range of log rates, c at most (Wortsman et al. 2023, arXiv:2309.14322, section 2.2).

    Beyond the rates that were run the expected loss is taken to be that of the nearest.
    """
    x, means, _ = sample.expected
    grid = np.linspace(np.log2(COLDEST), np.log2(HOTTEST), 1000)
    return float(np.interp(grid, x, means).mean() - sample.best[1].mean())


@dataclass(frozen=True)
class Measures:
    """A cell's numbers. best_lr: where the best loss was measured; valley: the rate that the search's runs point at.

    fresh: the runs behind the best loss that chose no rate; where there are none, the search's own stand in, and the
    loss is too low. best_values: theirs by seed, for comparisons in pairs. runs, seeds: of the search. expected: the
    log2 of its rates, ascending, and the mean values there.
    """

    edge: Edge
    best_lr: float
    best_values: pd.Series
    fresh: int
    best_loss: Estimate
    valley: Estimate
    window: Estimate
    margin: Estimate
    sensitivity: float
    runs: int
    seeds: int
    expected: tuple[np.ndarray, np.ndarray]

    @property
    def cell(self) -> Cell:
        return self.edge.cell

    def loss_at(self, lr: float) -> float | None:
        """The expected loss at a rate; None beyond the rates that were run."""
        x, means = self.expected
        at = np.log2(lr)
        return float(np.interp(at, x, means)) if x[0] <= at <= x[-1] else None


def measures(runs: pd.DataFrame) -> list[Measures]:
    """The numbers of every cell whose search has two seeds or more, in order. Raises ValueError where runs of a cell have different
    horizons."""
    found = {cell: (mine, Sample.of(mine)) for cell, mine in cells(runs).items() if of_search(mine)["seed"].nunique() > 1}
    out = {}
    for place in dict.fromkeys((cell.depth, cell.data) for cell in found):
        side = {cell: both for cell, both in found.items() if (cell.depth, cell.data) == place}
        samples = [sample for _, sample in side.values()]
        whole = _numbers(samples)
        seeds = np.unique(np.concatenate([sample.seed for sample in samples]))
        without = np.stack([_numbers([sample.where(sample.seed != seed) for sample in samples]) for seed in seeds])
        for i, (cell, (mine, sample)) in enumerate(side.items()):
            ends = [jackknife(whole[i, j], without[:, i, j]) for j in range(whole.shape[1])]
            out[cell] = _measured(edge_of(cell, mine), sample, mine, whole[i], ends, _level(samples))
    return [out[cell] for cell in found]


def _level(samples: Sequence[Sample]) -> float:
    """The loss up to which a window counts, of all cells at a depth; of those whose best loss is measured, if there are any."""
    ready = [sample for sample in samples if len(sample.fresh.x)] or samples
    return WITHIN * min(sample.best[1].mean() for sample in ready)


def _numbers(samples: Sequence[Sample]) -> np.ndarray:
    """(cells, 2): log2 of the valley's rate and window of each cell at one depth."""
    level = _level(samples)
    return np.array([(one.valley, octaves_below(*one.expected[:2], level)[0]) for one in samples])


def _measured(edge: Edge, sample: Sample, runs: pd.DataFrame, numbers: np.ndarray, ends: list, level: float) -> Measures:
    valley, window = numbers
    x, values = sample.best
    at = runs[(np.log2(runs["lr"]) == x) & ((runs["seed"] >= FRESH) == bool(len(sample.fresh.x)))]
    spread = student.ppf((1 + LEVEL) / 2, len(values) - 1) * sem(values) if len(values) > 1 else np.nan
    return Measures(
        edge, float(at["lr"].iloc[0]), pd.Series(values, at["seed"].to_numpy()), len(sample.fresh.x) and len(values),
        Estimate(values.mean(), values.mean() - spread, values.mean() + spread),
        Estimate(2.0**valley, *(2.0**end for end in ends[0])),
        Estimate(window, max(0.0, ends[1][0]), ends[1][1], octaves_below(*sample.expected[:2], level)[1]),
        _margin(edge.lr10, valley, ends[0]), sensitivity(sample), len(sample.search.x), len(np.unique(sample.search.seed)),
        sample.search.expected[:2],
    )  # fmt: skip


def _margin(lr10: Critical, valley: float, ends: tuple[float, float]) -> Estimate:
    """Octaves from the valley to LR10; the distances to their ends, which rest on other runs, are added in squares."""
    open_side = {"above": "hot", "below": "cold"}.get(lr10.kind, "")
    middle, low, high = np.log2([lr10.middle, lr10.low or np.nan, lr10.high])
    return Estimate(middle - valley, middle - valley - np.hypot(middle - low, ends[1] - valley),
                    middle - valley + np.hypot(high - middle, valley - ends[0]), open_side)  # fmt: skip
