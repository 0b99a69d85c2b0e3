"""Which runs a cell still needs: for its edge, for the losses on its cold side, and for its loss at its best rate.

A cell is a scheme at a depth; all rates lie on one lattice. The edge, where half of the runs are no longer usable, is
looked for with a fresh seed in every run, at the rates at which about a third and about three quarters of the runs
should be unusable by the posterior of what is known: the colder of the two keeps the slope, and with it LR10, in view,
and the hotter is cheap, since runs that die end early. A pure function of what is known: a search that was stopped
in a round of the edge goes on to the same runs; one that was stopped later may take a round of the edge more or less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from suite.protocol import FIRST, KNOWN, LAST, rate
from suite.verdict.best import FRESH, best_point
from suite.verdict.posterior import EDGES, chances, falls, posterior, quantiles, upward

START = 12  # the point of 5.35e-3: at 100 blocks near the edge of plain and MV-Split, as first runs had shown
TARGETS = (0.35, 0.75)  # of the runs unusable; of those tried in results/instrument/simulation.csv that with the fewest steps
PRECISION = 0.07  # half-width of the edge's interval in the log rate: half a step of the lattice
MOST = 60  # runs of an edge: the slope of 10, the flattest of results/frontier, takes 49 in the mean
FIRST_SEEDS = 3  # of a rate on the cold side
ANCHOR, STRIDE = 10, 3  # the cold side is looked at at these points, from the edge downwards
WORSE = 1.1  # times the lowest mean loss: there the cold side ends
ABOVE, HOT = (3, 6), 2  # points above the edge among which so many runs must be known, to notice a cell that lives again
OPEN = 0.95  # of the posterior beyond the lattice: there the search for an edge ends
RUNS = 50  # of a cell, in whole lives: 26 for its edge (results/instrument/replay.csv), some 16 beside it, 8 at its best rate
PATCH = 2  # of the runs that MS was measured on
MS = 1.1  # a block and step of one worker: all seconds of results/frontier/throughput.csv over the blocks and steps of its runs
RESERVED = range(FRESH, FRESH + 8)  # seeds that no search ever has: the loss at the best rate is theirs


class Seen(NamedTuple):
    """A finished run: its point on the lattice, its seed, whether it is usable, and its value (c where it is not)."""

    k: int
    seed: int
    usable: bool
    value: float


class Next(NamedTuple):
    """The (point, seed) pairs to train next, none at the end; and in words what is known of the edge."""

    pairs: list[tuple[int, int]]
    edge: str


@cache
def _chances() -> np.ndarray:
    """(points, E, slopes x shares) of all points of the lattice."""
    return chances(np.log(list(KNOWN)))


def wanted(runs: Sequence[Seen], precision: float = PRECISION, batch: int = 2) -> Next:
    """What one cell lacks. batch: runs of a round while the edge is looked for.

    A pair that broke (out of memory, an error) is asked for again as long as it is not known; whoever trains must stop
    there.
    """
    mine = [run for run in runs if run.seed < RESERVED.start]
    pairs, edge, words = _edge(mine, precision, batch)
    if not pairs:
        pairs = _hot(mine, edge) or _cold(mine, edge) or _best(runs)
    return Next(pairs, words)


def _edge(runs: Sequence[Seen], precision: float, batch: int) -> tuple[list[tuple[int, int]], float, str]:
    """(pairs, the edge as a place on the lattice, words). A round has the first `batch` seeds that are not all used and
    rests on the runs of all others, so that where it was stopped changes nothing."""
    used = {run.seed for run in runs}
    seeds = next(r for r in (range(i, i + batch) for i in range(0, RESERVED.start, batch)) if not used.issuperset(r))
    before = [run for run in runs if run.seed not in seeds]
    lr, seed, bad = upward([rate(run.k) for run in before], [run.seed for run in before], [not run.usable for run in before])
    weights = posterior(lr, seed, bad)
    low, middle, high = quantiles(EDGES, weights.sum(1), (0.025, 0.5, 0.975))
    k, off, count = _place(middle), (high - low) / 2, len(before)
    end = ""
    if low > np.log(rate(LAST)) - precision or _beyond(weights, np.log(rate(LAST)) < EDGES):
        k, end = LAST + 1.0, f"hotter than {rate(LAST):g}"
    elif _beyond(weights, np.log(rate(FIRST)) > EDGES):
        hotter = [(k, 0) for k in range(START, LAST + 1, ANCHOR // 2)]  # what has not learnt in the cold may in the heat
        if pairs := [pair for pair in hotter if not any(run.k == pair[0] for run in runs)][:batch]:
            return pairs, k, ""
        k, end = FIRST - 1.0, f"colder than {rate(FIRST):g}, or it never learns"
    elif before and off <= precision:
        end = f"{np.exp(middle):.2e}, within {off:.1%}"
    elif count >= MOST:
        end = f"{np.exp(middle):.2e}, within {off:.1%} only: {count} runs"
    if strange := falls(lr, bad):
        end += f"{', ' * bool(end)}not monotone at {', '.join(f'{lr:g}' for lr in strange)}"
    if end and (off <= precision or count >= MOST or not FIRST <= k <= LAST):
        return [], k, end
    return [(at, seed) for at, seed in zip(_round(weights, bool(before), batch), seeds) if seed not in used], k, end


def _place(log_rate: float) -> float:
    """Where on the lattice a rate lies, between its points too."""
    return float(np.interp(log_rate, np.log(list(KNOWN)), list(KNOWN.values())))


def _beyond(weights: np.ndarray, there: np.ndarray) -> bool:
    return float(weights[there].sum()) > OPEN


def _round(weights: np.ndarray, begun: bool, batch: int) -> list[int]:
    """Points of the lattice for a round of runs, hot and cold in turn; each as if those before it had ended as expected."""
    if not begun:
        return [min(LAST, START + 4 * i) for i in range(batch)]
    out, weights = [], weights.copy()
    for i in range(batch):
        chance = np.einsum("keg,eg->k", _chances(), weights)
        at = int(np.abs(chance - TARGETS[i % len(TARGETS)]).argmin())
        out.append(list(KNOWN.values())[at])
        p = np.clip(_chances()[at], 1e-12, 1 - 1e-12)
        weights *= p ** chance[at] * (1 - p) ** (1 - chance[at])
        weights /= weights.sum()
    return out


def _lacking(runs: Sequence[Seen], k: int, seeds: Sequence[int]) -> list[tuple[int, int]]:
    known = {(run.k, run.seed) for run in runs}
    return [(k, seed) for seed in seeds if (k, seed) not in known]


def _hot(runs: Sequence[Seen], edge: float) -> list[tuple[int, int]]:
    """Two runs above the edge, where all should be unusable."""
    near = [run for run in runs if edge + ABOVE[0] <= run.k <= edge + ABOVE[1]]
    at = round(edge + sum(ABOVE) / 2)
    return _lacking(runs, at, range(HOT)) if len(near) < HOT and FIRST <= at <= LAST else []


def _cold(runs: Sequence[Seen], edge: float) -> list[tuple[int, int]]:
    """Every STRIDE-th point below the edge with three runs beside it, down to where the loss is WORSE than its lowest.

    One point without a usable run is not the end: below a hole a cell lives again.
    """
    losses = by_point(runs)
    means = {k: np.mean(values) for k, values in losses.items()}
    lowest = min(means.values())
    best = min(k for k in means if means[k] == lowest)
    lost = False
    for k in range(ANCHOR + (LAST - ANCHOR) // STRIDE * STRIDE, FIRST - 1, -STRIDE):
        beside = [value for near in (k - 1, k, k + 1) for value in losses.get(near, ())]
        if k < edge - 1 and len(beside) < FIRST_SEEDS:
            return _lacking(runs, k, range(FIRST_SEEDS))
        if k < min(best, edge) and len(beside) >= FIRST_SEEDS and np.mean(beside) >= WORSE * lowest:
            if lost or any(run.usable for run in runs if abs(run.k - k) <= 1):
                break
            lost = True
    return []


def _best(runs: Sequence[Seen]) -> list[tuple[int, int]]:
    """The reserved seeds at the best rate, unless no run was usable."""
    mine = [run for run in runs if run.seed < RESERVED.start]
    return _lacking(runs, best_point(by_point(mine)), RESERVED) if any(run.usable for run in mine) else []


def by_point(runs: Sequence[Seen]) -> Mapping[int, list[float]]:
    """The values of the runs at each point."""
    out = defaultdict(list)
    for run in runs:
        out[run.k].append(run.value)
    return out


def core_hours(depth: int, length: int, patch: int = PATCH) -> float:
    """About what the search of one cell costs on a processor core like ours; the time of a block is taken to grow with its image tokens."""
    return RUNS * depth * length * (PATCH / patch) ** 2 * MS / 3.6e6
