"""Critical learning rates: where half of the runs die, from a penalised logistic fit of death against the log of the rate.

One cell is a scheme at a depth: runs at several rates, a few seeds each. The fit is Firth's (Biometrika 80, 1993): the likelihood times
the root of the determinant of its information, finite also where the outcomes are nearly separated. Seeds, not runs, are
resampled for an interval, since runs of one seed share their data and noise. Where the rates separate the living from the dead a
fit would only measure its prior: there the two rates at the edge are the answer, with the runs behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000  # bootstrap samples: the ends of a 95 % interval then rest on 50 each
LEVEL = 0.95
STEPS, LONGEST = 200, 2.0  # of the fit, in units of the scaled coefficients: a full step may overshoot where cells are nearly separated


@dataclass(frozen=True)
class Critical:
    """LR50 of a cell. kind: "fit" (rate with its interval low..high), "bracket" (it lies between low, where all live, and high, where all
    die), "above" (all live up to low; high is inf) or "below" (all die from high on; low is 0).

    n: runs of the cell; n_low, n_high: runs at the two rates of a bracket; seeds: different ones; falls: rates at which fewer died than
    at a colder one, where a cell is not monotone.
    """

    kind: str
    rate: float | None
    low: float
    high: float
    n: int
    seeds: int
    n_low: int = 0
    n_high: int = 0
    falls: tuple[float, ...] = ()

    def __str__(self) -> str:
        if self.kind == "fit":
            return f"{self.rate:.2e} [{self.low:.2e}, {self.high:.2e}]"
        return {"bracket": f"in ({self.low:.2e}, {self.high:.2e})", "above": f"> {self.low:.2e}", "below": f"< {self.high:.2e}"}[self.kind]


def firth(x, y, weights=None, penalty: float = 1.0) -> tuple[float, float]:
    """(intercept, slope) that maximise log likelihood + penalty/2 log det information of P(y) = 1/(1 + exp(-a - b x)).

    x, y, weights: (N,); y is 0 or 1, weights count runs. penalty 1 is Firth's, 0 maximum likelihood (which must exist then).
    """
    from scipy.special import expit, log_expit

    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=float)
    center = np.average(x, weights=w)
    scale = np.sqrt(np.average((x - center) ** 2, weights=w)) or 1.0
    design, beta = np.stack([np.ones_like(x), (x - center) / scale], 1), np.zeros(2)

    def parts(beta):
        """(penalised log likelihood, probabilities, weighted design, information)."""
        eta = design @ beta
        p = expit(eta)
        weighted = design * (w * p * expit(-eta))[:, None]
        information = design.T @ weighted
        value = np.sum(w * (y * log_expit(eta) + (1 - y) * log_expit(-eta)))
        return value + penalty / 2 * np.linalg.slogdet(information)[1], p, weighted, information

    best, p, weighted, information = parts(beta)
    for _ in range(STEPS):  # Fisher scoring on Firth's modified score, with steps halved until they climb
        inverse = np.linalg.pinv(information)
        leverage = np.einsum("ij,jk,ik->i", weighted, inverse, design)
        move = inverse @ (design.T @ (w * (y - p) + penalty * leverage * (0.5 - p)))
        move *= min(1.0, LONGEST / np.abs(move).max(initial=1e-300))
        while (new := parts(beta + move))[0] < best and np.abs(move).max() > 1e-12:
            move = move / 2
        beta = beta + move
        best, p, weighted, information = new
        if np.abs(move).max() < 1e-10:
            break
    return beta[0] - beta[1] * center / scale, beta[1] / scale


def _shares(lr, dead):
    """Rates in order, with the runs and the dead at each."""
    rates, at = np.unique(lr, return_inverse=True)
    return rates, np.bincount(at), np.bincount(at, weights=dead)


def _lr50(lr, dead) -> float:
    rates, n, died = _shares(lr, dead)
    x = np.log(np.concatenate([rates, rates]))
    y, w = np.repeat([1.0, 0.0], len(rates)), np.concatenate([died, n - died])
    a, b = firth(x[w > 0], y[w > 0], w[w > 0])
    return float(np.exp(-a / b)) if b > 0 else np.nan


def critical(lr: Sequence[float], seed: Sequence[int], dead: Sequence[bool], draws: int = DRAWS) -> Critical:
    """LR50 of the runs of one cell. Raises ValueError where there is no run."""
    lr, seed, dead = np.asarray(lr, dtype=float), np.asarray(seed), np.asarray(dead, dtype=bool)
    if not len(lr):
        raise ValueError("no runs to fit a critical rate to")
    rates, n, died = _shares(lr, dead)
    share = died / n
    falls = tuple(float(r) for i, r in enumerate(rates) if i and share[i] < share[:i].max())
    known = {"n": len(lr), "seeds": len(np.unique(seed)), "falls": falls}
    if not dead.any():
        return Critical("above", None, float(rates[-1]), np.inf, n_low=int(n[-1]), **known)
    if dead.all():
        return Critical("below", None, 0.0, float(rates[0]), n_high=int(n[0]), **known)
    if lr[~dead].max() < lr[dead].min():
        low, high = np.flatnonzero(share == 0)[-1], np.flatnonzero(share == 1)[0]
        return Critical("bracket", None, float(rates[low]), float(rates[high]), n_low=int(n[low]), n_high=int(n[high]), **known)
    low, high = np.quantile(bootstrap([(lr, seed, dead)], draws)[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Critical("fit", _lr50(lr, dead), float(low), float(high), **known)


def bootstrap(cells, draws: int = DRAWS) -> np.ndarray:
    """(cells, draws) LR50s under resampled seeds, one draw of seeds for all cells. A draw that has no rising fit counts as its edge."""
    seeds = np.unique(np.concatenate([seed for _, seed, _ in cells]))
    random, out = np.random.default_rng(0), np.empty((len(cells), draws))
    known: dict[tuple, float] = {}
    for j in range(draws):
        drawn = random.choice(len(seeds), len(seeds))
        times = np.bincount(drawn, minlength=len(seeds))
        for i, (lr, seed, dead) in enumerate(cells):
            rows = np.repeat(np.arange(len(lr)), times[np.searchsorted(seeds, seed)])
            key = (i, tuple(times))
            if key not in known:
                known[key] = _edge(lr[rows], dead[rows])
            out[i, j] = known[key]
    return out


def _edge(lr, dead) -> float:
    """LR50 of a resampled cell, also where it has lost its living or its dead."""
    if not len(lr):
        return np.nan
    if not dead.any():
        return float(lr.max())
    if dead.all():
        return float(lr.min())
    rate = _lr50(lr, dead)
    return float(np.clip(rate, lr.min(), lr.max())) if np.isfinite(rate) else float(np.median(lr))


def ratio(one, other, draws: int = DRAWS) -> tuple[float | None, float, float]:
    """(ratio, low, high) of LR50 of `one` over `other`, each (lr, seed, dead): of two fits with a paired interval, else bounds."""
    a, b = critical(*one, draws=2), critical(*other, draws=2)
    if a.kind == b.kind == "fit":
        cells = [tuple(np.asarray(part) for part in cell) for cell in (one, other)]
        samples = bootstrap(cells, draws)
        low, high = np.quantile(samples[0] / samples[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return a.rate / b.rate, float(low), float(high)
    a, b = critical(*one, draws=draws), critical(*other, draws=draws)
    return None, a.low / b.high if np.isfinite(b.high) else 0.0, a.high / b.low if b.low else np.inf


def upward(lr, seed, bad):
    """(lr, seed, bad) from the coldest rate where all live on: colder runs that have not learnt in time say nothing about heat."""
    lr, seed, bad = np.asarray(lr, dtype=float), np.asarray(seed), np.asarray(bad, dtype=bool)
    rates, n, died = _shares(lr, bad)
    alive = rates[died == 0]
    keep = lr >= (alive[0] if len(alive) else rates[0])
    return lr[keep], seed[keep], bad[keep]
