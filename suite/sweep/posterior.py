"""What runs of a cell say of its edge: a posterior on a grid over the edge, the slope and the share of the seed.

The limit of a run, in the logarithm of the rate, is the edge plus logistic noise of scale 1 / slope; a run hotter than
its limit is unusable. The share of the noise's variance that all runs of a seed have in common is unknown too, so that
cells with the same seeds at every rate, with a fresh seed in every run, or with some of each are treated alike. A
posterior is finite where the rates separate the usable from the rest, and stays what it is wherever a search that
looked at the outcomes was stopped; how often its intervals hold the truth is measured in results/instrument.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from suite.protocol import COLDEST, FIRST, LAST, STEP

FINE = 6  # points of the grid between two of the lattice: 2.3 % of the rate, a third of the precision that is asked for
BEYOND = 3  # points of the lattice beyond both of its ends: an edge may lie there, and is then said to lie beyond what was tested
EDGES = np.log(COLDEST) + np.log(STEP) * np.arange((FIRST - BEYOND) * FINE, (LAST + BEYOND) * FINE + 1) / FINE  # (E,) log rates
SLOPES = np.geomspace(5, 80, 8)  # logits per e-fold of the rate: 8 to 60 in results/frontier; evenly in the logarithm
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


def posterior(lr, seed, bad) -> np.ndarray:
    """(E, slopes x shares), summing to 1, from rates, seeds and whether each run is unusable; all are alike before the first run."""
    from scipy.special import log_expit

    x, seed, bad = np.log(np.asarray(lr, dtype=float)), np.asarray(seed), np.asarray(bad, dtype=bool)
    total = np.zeros((len(EDGES), len(SLOPES), len(SHARES)))
    terms = {}
    for one in np.unique(seed):
        of_seed = 0.0
        for pair in zip(x[seed == one], bad[seed == one]):
            if pair not in terms:
                terms[pair] = log_expit(_logits(pair[:1])[0] * (1 if pair[1] else -1))
            of_seed = of_seed + terms[pair]
        top = of_seed.max(-1)
        total += top + np.log(np.exp(of_seed - top[..., None]).mean(-1))
    weights = np.exp(total - total.max()).reshape(len(EDGES), -1)
    return weights / weights.sum()


@cache
def _standard(share: float) -> tuple[float, ...]:
    """By SHARES, how many scales from the edge that share of the runs is unusable."""
    from scipy.optimize import brentq
    from scipy.special import expit

    return tuple(brentq(lambda z, rho=rho: expit((z - np.sqrt(rho) * _seeds()) / np.sqrt(1 - rho)).mean() - share, -20, 20) for rho in SHARES)


def levels(share: float = 0.5) -> np.ndarray:
    """(E, slopes x shares): the log rate at which that share of the runs is unusable."""
    off = (np.array(_standard(share)) / SLOPES[:, None]).reshape(-1)
    return EDGES[:, None] + (0.0 if share == 0.5 else off)


def quantiles(values, weights, q) -> np.ndarray:
    """Of weighted values of any shape, at the shares q; between two values on the line through the middles of their steps."""
    at, weights = np.unique(values, return_inverse=True)[0], np.bincount(np.unique(values, return_inverse=True)[1].ravel(), np.ravel(weights))
    return np.interp(q, np.cumsum(weights) - weights / 2, at)
