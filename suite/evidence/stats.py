"""Critical learning rates: where half of the runs die, from a penalised logistic fit of death against the log of the
rate.

One cell is a scheme at a depth: runs at several rates, a few seeds each. The fit is Firth's (Biometrika 80, 1993):
the likelihood times the root of the determinant of its information, finite also where the outcomes are nearly
separated. Seeds, not runs, are resampled for an interval, since runs of one seed share their data and noise. Where
the rates separate the living from the dead a fit would only measure its prior: there the two rates at the edge are
the answer, with the runs behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

DRAWS = 2000  # bootstrap samples: the ends of a 95 % interval then rest on 50 each
LEVEL = 0.95
STEPS, LONGEST = 200, 2.0  # of the fit, in units of the scaled coefficients: a full step may overshoot where cells are nearly separated
LEAST, ROUGH = 1e-10, 1e-6  # the step at which a fit is at its end; of a bootstrap's, of which quantiles are printed with three digits


@dataclass(frozen=True)
class Critical:
    """LR50 of a cell. kind: "fit" (rate with its interval low..high), "bracket" (it lies between low, where all live,
    and high, where all die), "above" (fewer than half die up to low, the hottest rate tested; high is inf) or "below"
    (more than half die from high on, the coldest; low is 0). An end of a fit's interval that the tested rates do not
    reach is inf or 0.

    n: runs of the cell; n_low, n_high: runs at the two rates of a bracket, or at the one rate of "above" and "below",
    and died_there the dead among these; seeds: different ones; falls: rates at which fewer died than at a colder one,
    where a cell is not monotone.
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

    def __str__(self) -> str:
        if self.kind == "fit":
            return f"{self.rate:.2e} [{f'{self.low:.2e}' if self.low else '0'}, {self.high:.2e}]"
        return {"bracket": f"in ({self.low:.2e}, {self.high:.2e})", "above": f"> {self.low:.2e}", "below": f"< {self.high:.2e}"}[self.kind]


def firth(x, y, weights=None, penalty: float = 1.0, least: float = LEAST):
    """(intercept, slope) that maximise log likelihood + penalty/2 log det information of P(y) = 1/(1 + exp(-a - b x)).

    x: (N,); y, weights: (..., N); y is 0 or 1 (or a share), weights count runs. Leading axes are fits of their own,
    done at once; floats where there are none. penalty 1 is Firth's, 0 maximum likelihood (which must exist then);
    least: as LEAST. At least two x need a weight.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = np.broadcast_to(np.ones_like(y) if weights is None else np.asarray(weights, dtype=float), y.shape)
    center, scale = x.mean(), x.std() or 1.0
    a, b = _fit((x - center) / scale, n.reshape(-1, len(x)), (n * y).reshape(-1, len(x)), penalty, least).T
    a, b = (a - b * center / scale).reshape(y.shape[:-1]), (b / scale).reshape(y.shape[:-1])
    return (float(a), float(b)) if y.ndim == 1 else (a, b)


def _fit(z, n, died, penalty, least) -> np.ndarray:
    """(F, 2) coefficients of F fits by Fisher scoring on Firth's modified score, with steps halved until they climb.
    n, died: (F, N)."""
    from scipy.special import expit, log_expit

    def parts(beta, n, died):
        """(penalised log likelihood, probabilities, weights, the inverse information's three entries)."""
        eta = beta[:, :1] + beta[:, 1:] * z
        p = expit(eta)
        w = n * p * expit(-eta)
        s0, s1, s2 = w.sum(1), w @ z, w @ z**2
        det = np.maximum(s0 * s2 - s1**2, 1e-300)
        value = (died * log_expit(eta) + (n - died) * log_expit(-eta)).sum(1)
        return value + penalty / 2 * np.log(det), p, w, (s2 / det, -s1 / det, s0 / det)

    out, at = np.zeros((len(n), 2)), np.arange(len(n))  # at: the fits that still move
    for _ in range(STEPS):
        beta, n_, died_ = out[at], n[at], died[at]
        best, p, w, (i00, i01, i11) = parts(beta, n_, died_)
        leverage = w * (i00[:, None] + 2 * i01[:, None] * z + i11[:, None] * z**2)
        pull = died_ - n_ * p + penalty * leverage * (0.5 - p)
        u0, u1 = pull.sum(1), pull @ z
        move = np.stack([i00 * u0 + i01 * u1, i01 * u0 + i11 * u1], 1)
        move *= np.minimum(1.0, LONGEST / np.maximum(np.abs(move).max(1), 1e-300))[:, None]
        while (falls := (parts(beta + move, n_, died_)[0] < best) & (np.abs(move).max(1) > 1e-12)).any():
            move[falls] /= 2
        out[at] = beta + move
        at = at[np.abs(move).max(1) >= least]
        if not len(at):
            break
    return out


def _shares(lr, dead):
    """Rates in order, with the runs and the dead at each."""
    rates, at = np.unique(lr, return_inverse=True)
    return rates, np.bincount(at), np.bincount(at, weights=dead)


def _lr50(rates, n, died, least: float = LEAST) -> np.ndarray:
    """(F,) rates at which half die, of F cells over the same rates; nan where a fit falls. n, died: (F, R)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        a, b = firth(np.log(rates), np.where(n > 0, died / n, 0.0), n, least=least)
        return np.where(b > 0, np.exp(-a / b), np.nan)


def critical(lr: Sequence[float], seed: Sequence[int], dead: Sequence[bool], draws: int = DRAWS) -> Critical:
    """LR50 of the runs of one cell. Raises ValueError where there is no run."""
    return _critical(tuple(lr), tuple(seed), tuple(dead), draws)


@cache  # a report asks for a cell's rate in its own row and in each ratio
def _critical(lr: tuple, seed: tuple, dead: tuple, draws: int) -> Critical:
    lr, seed, dead = np.asarray(lr, dtype=float), np.asarray(seed), np.asarray(dead, dtype=bool)
    if not len(lr):
        raise ValueError("no runs to fit a critical rate to")
    rates, n, died = _shares(lr, dead)
    share = died / n
    falls = tuple(float(r) for i, r in enumerate(rates) if i and share[i] < share[:i].max())
    known = {"n": len(lr), "seeds": len(np.unique(seed)), "falls": falls}
    if dead.any() and not dead.all() and lr[~dead].max() < lr[dead].min():
        low, high = np.flatnonzero(share == 0)[-1], np.flatnonzero(share == 1)[0]
        return Critical("bracket", None, float(rates[low]), float(rates[high]), n_low=int(n[low]), n_high=int(n[high]), **known)
    rate = np.inf if not dead.any() else 0.0 if dead.all() else float(_lr50(rates, n[None], died[None])[0])
    if not rate <= rates[-1]:  # nan too: the fit does not rise
        return Critical("above", None, float(rates[-1]), np.inf, n_low=int(n[-1]), died_there=int(died[-1]), **known)
    if rate < rates[0]:
        return Critical("below", None, 0.0, float(rates[0]), n_high=int(n[0]), died_there=int(died[0]), **known)
    low, high = np.nanquantile(bootstrap([(lr, seed, dead)], draws)[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Critical("fit", rate, 0.0 if low <= rates[0] else float(low), np.inf if high >= rates[-1] else float(high), **known)


def bootstrap(cells, draws: int = DRAWS) -> np.ndarray:
    """(cells, draws) LR50s under resampled seeds, one draw of seeds for all cells. A draw that has no rising fit
    counts as its edge."""
    seeds = np.unique(np.concatenate([seed for _, seed, _ in cells]))
    random = np.random.default_rng(0)
    times = np.stack([np.bincount(random.choice(len(seeds), len(seeds)), minlength=len(seeds)) for _ in range(draws)])
    return np.stack([_resampled(times, np.searchsorted(seeds, seed), lr, dead) for lr, seed, dead in cells])


def _resampled(times, seed, lr, dead) -> np.ndarray:
    """(draws,) LR50 of a cell where run i counts times[:, seed[i]] times, also where a draw has lost its living or
    its dead."""
    rates, at = np.unique(lr, return_inverse=True)
    runs, died = np.zeros((times.shape[1], len(rates))), np.zeros((times.shape[1], len(rates)))
    np.add.at(runs, (seed, at), 1)
    np.add.at(died, (seed, at), dead)
    drawn, where = np.unique(times, axis=0, return_inverse=True)  # many draws are alike
    n, died = drawn @ runs, drawn @ died
    there = n > 0
    coldest, hottest = rates[there.argmax(1)], rates[len(rates) - 1 - there[:, ::-1].argmax(1)]
    empty, none, every, one = ~there.any(1), ~died.any(1), (died == n).all(1), coldest == hottest
    out = np.select([empty, none | one, every], [np.nan, hottest, coldest])
    if (fitted := ~(empty | none | every | one)).any():
        found = _lr50(rates, n[fitted], died[fitted], ROUGH)
        falls = np.isnan(found)
        found = np.clip(found, coldest[fitted], hottest[fitted])
        found[falls] = [np.median(np.repeat(rates, of.astype(int))) for of in n[fitted][falls]]
        out[fitted] = found
    return out[where.ravel()]


def ratio(one, other, draws: int = DRAWS) -> tuple[float | None, float, float]:
    """(ratio, low, high) of LR50 of `one` over `other`, each (lr, seed, dead): of two fits with a paired interval,
    else bounds."""
    a, b = critical(*one, draws=draws), critical(*other, draws=draws)
    if a.kind == b.kind == "fit":
        cells = [tuple(np.asarray(part) for part in cell) for cell in (one, other)]
        samples = bootstrap(cells, draws)
        low, high = np.nanquantile(samples[0] / samples[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        low = 0.0 if a.low == 0 or np.isinf(b.high) else float(low)  # where the rates tested do not reach an end
        return a.rate / b.rate, low, np.inf if np.isinf(a.high) or b.low == 0 else float(high)
    return None, a.low / b.high if np.isfinite(b.high) else 0.0, a.high / b.low if b.low else np.inf


def upward(lr, seed, bad):
    """(lr, seed, bad) from the coldest rate where all live on: colder runs that have not learnt in time say nothing
    about heat."""
    lr, seed, bad = np.asarray(lr, dtype=float), np.asarray(seed), np.asarray(bad, dtype=bool)
    rates, n, died = _shares(lr, bad)
    alive = rates[died == 0]
    keep = lr >= (alive[0] if len(alive) else rates[0])
    return lr[keep], seed[keep], bad[keep]


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm, Scand. J. Stat. 6, 1979)."""
    order, out, worst = np.argsort(p), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out
