"""What runs of a cell say of its edge: a posterior on a grid over the edge, the slope and the share of the seed.

The limit of a run, in the logarithm of the rate, is the edge plus logistic noise of scale 1 / slope; a run hotter than
its limit is unusable. The share of the noise's variance that all runs of a seed have in common is unknown too, so that
cells with the same seeds at every rate, with a fresh seed in every run, or with some of each are treated alike. A
posterior is finite where the rates separate the usable from the rest, and stays what it is wherever a search that
looked at the outcomes was stopped; how often its intervals hold the truth is measured in results/instrument.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cache, lru_cache

import numpy as np

from suite.protocol import COLDEST, FIRST, LAST, STEP

FINE = 6  # points of the grid between two of the lattice: 2.3 % of the rate, a third of the precision that is asked for
BEYOND = 3  # points of the lattice beyond both of its ends: an edge may lie there, and is then said to lie beyond what was tested
EDGES = np.log(COLDEST) + np.log(STEP) * np.arange((FIRST - BEYOND) * FINE, (LAST + BEYOND) * FINE + 1) / FINE  # (E,) log rates
SLOPES = np.geomspace(2.5, 80, 11)  # logits per e-fold of the rate
USUAL, SPREAD = 17.0, 0.65  # of slopes before the first run, lognormal: results/frontier's 15 have median 20, 10 to 46, standard
# deviation .42 of their logarithms; flatter and wider than these, so that intervals cover .93 at slope 10 too (results/instrument)
SHARES = np.array([0.0, 0.3, 0.6])  # of the variance, that the seed explains; about 0 in results/frontier
PLACES = 9  # at which the part of a seed is summed


def _seeds() -> np.ndarray:
    """(PLACES,) equally likely parts of a seed, of the logistic's variance."""
    p = (np.arange(PLACES) + 0.5) / PLACES
    u = np.log(p / (1 - p))
    return u * np.sqrt(np.pi**2 / 3 / np.mean(u**2))


def _logits(x) -> np.ndarray:
    """(N, E, slopes, shares, PLACES): of a run at log rate x being unusable."""
    far = (np.asarray(x, dtype=float)[:, None] - EDGES)[..., None, None, None] * SLOPES[:, None, None]
    return (far - np.sqrt(SHARES)[:, None] * _seeds()) / np.sqrt(1 - SHARES)[:, None]


def chances(x) -> np.ndarray:
    """(N, E, slopes x shares): the chance that a run at log rate x (N,) with a seed never seen is unusable."""
    from scipy.special import expit

    return np.stack([expit(_logits([one])).mean(-1).reshape(len(EDGES), -1) for one in x])


def _by_seed(x, seed, bad) -> list[tuple[tuple[float, bool], ...]]:
    """The (log rate, unusable) of the runs of each seed."""
    out = defaultdict(list)
    for one, *run in zip(seed.tolist(), x.tolist(), bad.tolist()):
        out[one].append(tuple(run))
    return [tuple(sorted(of)) for of in out.values()]


@lru_cache(maxsize=64)  # 640 KB each: both outcomes at the rates of two cells
def _of_run(x: float, bad: bool) -> np.ndarray:
    """(E, slopes, shares, PLACES) log likelihood of a run at log rate x."""
    from scipy.special import log_expit

    return log_expit(_logits([x])[0] * (1 if bad else -1))


@lru_cache(maxsize=1000)  # 70 KB each: a search asks again for those of all its earlier runs
def _of_seed(runs: tuple[tuple[float, bool], ...]) -> np.ndarray:
    """(E, slopes, shares) log likelihood of the runs of one seed."""
    by_place = sum(_of_run(*run) for run in runs)
    top = by_place.max(-1)
    return top + np.log(np.exp(by_place - top[..., None]).mean(-1))


def posterior(lr, seed, bad) -> np.ndarray:
    """(E, slopes x shares), summing to 1, from rates, seeds and whether each run is unusable (N,).

    Before the first run all edges and shares are alike.
    """
    x, seed, bad = np.log(np.asarray(lr, dtype=float)), np.asarray(seed), np.asarray(bad, dtype=bool)
    usual = -0.5 * (np.log(SLOPES / USUAL) / SPREAD) ** 2
    total = np.zeros((len(EDGES), len(SLOPES), len(SHARES))) + usual[:, None]
    for pattern, times in Counter(_by_seed(x, seed, bad)).items():
        total += times * _of_seed(pattern)
    weights = np.exp(total - total.max()).reshape(len(EDGES), -1)
    return weights / weights.sum()


@cache
def _standard(share: float) -> tuple[float, ...]:
    """By SHARES, how many scales from the edge that share of the runs is unusable."""
    from scipy.optimize import brentq
    from scipy.special import expit

    def lost(z: float, of_seed: float) -> float:
        return expit((z - np.sqrt(of_seed) * _seeds()) / np.sqrt(1 - of_seed)).mean() - share

    return tuple(brentq(lost, -20, 20, args=(of_seed,)) for of_seed in SHARES)


def levels(share: float = 0.5) -> np.ndarray:
    """(E, slopes x shares): the log rate at which that share of the runs is unusable."""
    off = (np.array(_standard(share)) / SLOPES[:, None]).reshape(-1)
    return EDGES[:, None] + (0.0 if share == 0.5 else off)


def quantiles(values, weights, q) -> np.ndarray:
    """Of weighted values of any shape, at the shares q; between two values on the line through the middles of their steps."""
    at, where = np.unique(np.broadcast_to(values, np.shape(weights)), return_inverse=True)
    weights = np.bincount(where.ravel(), np.ravel(weights))
    return np.interp(q, np.cumsum(weights) - weights / 2, at)


def falls(lr, bad, level: float = 0.05) -> tuple[float, ...]:
    """Rates at which fewer runs are unusable than at some colder one, by more than chance (Fisher's exact test): no edge parts them."""
    from scipy.stats import fisher_exact

    rates, at = np.unique(np.asarray(lr, dtype=float), return_inverse=True)
    n, k = np.bincount(at), np.bincount(at, weights=np.asarray(bad, dtype=float)).astype(int)

    def less(i: int, j: int) -> bool:
        return k[i] * n[j] < k[j] * n[i] and fisher_exact([[k[i], n[i] - k[i]], [k[j], n[j] - k[j]]], "less").pvalue < level

    return tuple(float(rates[i]) for i in range(len(rates)) if any(less(i, j) for j in range(i)))


def upward(lr, seed, bad):
    """(lr, seed, bad) from the coldest rate at which half of the runs are usable: colder ones that have not learnt in
    time say nothing about heat."""
    lr, seed, bad = np.asarray(lr, dtype=float), np.asarray(seed), np.asarray(bad, dtype=bool)
    rates, at = np.unique(lr, return_inverse=True)
    alive = rates[2 * np.bincount(at, weights=bad) <= np.bincount(at)] if len(lr) else rates
    keep = lr >= alive[0] if len(alive) else np.ones(len(lr), dtype=bool)
    return lr[keep], seed[keep], bad[keep]
