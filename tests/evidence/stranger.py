"""What results/critical_rates.csv says, worked out by a stranger: from the tables and the README's text alone, with pandas and scipy.

    python tests/evidence/stranger.py [RESULTS]

prints every number that disagrees, and exits with status 1 if one does. Nothing of `suite` is imported.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

RESULTS = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "results")
FRESH, WITHIN, VALLEY, RANGE = 1000, 1.05, 1.1, (1.15e-3, 6e-2)
CELL = ["scheme", "arm", "params", "writers", "depth", "data"]


def runs_of(protocol):
    """The finished runs of the newest version, with the value of each and whether it is not usable."""
    runs = pd.read_csv(RESULTS / protocol / "runs.csv")
    runs = runs[(runs.status == "done") & (runs.outcome != "too_short") & (runs.protocol_version == runs.protocol_version.max())].copy()
    runs["bad"] = runs.outcome != "survived"
    runs["value"] = np.where(runs.bad, runs.constant_loss, runs.heldout_loss)
    runs["x"] = np.log2(runs.lr)
    return runs


def expected(runs):
    by = runs.groupby("x").value
    return by.mean().sort_index(), by.size().sort_index()


def valley(runs):
    """log2 of the rate of the lowest expected loss, by the search's runs."""
    means, n = expected(runs[runs.seed < FRESH])
    low = int(np.argmin(means.to_numpy()))
    near = [low]
    while near[0] > 0 and means.iloc[near[0] - 1] <= VALLEY * means.iloc[low]:
        near.insert(0, near[0] - 1)
    while near[-1] + 1 < len(means) and means.iloc[near[-1] + 1] <= VALLEY * means.iloc[low]:
        near.append(near[-1] + 1)
    x, y, w = means.index[near].to_numpy(), means.iloc[near].to_numpy(), n.iloc[near].to_numpy()
    if len(near) < 3:
        return float(means.index[low])
    # weighted least squares for y = a + b z + c z^2, z from the lowest mean
    z = x - means.index[low]
    basis = np.stack([np.ones_like(z), z, z**2], 1)
    _, b, c = np.linalg.solve(basis.T @ (basis * w[:, None]), basis.T @ (w * y))
    vertex = means.index[low] - b / (2 * c) if c > 0 else np.inf
    return float(vertex) if x[0] <= vertex <= x[-1] else float(means.index[low])


def best(runs):
    """(rate, values) of the fresh runs, or of the search's at the rate nearest to the valley."""
    fresh = runs[runs.seed >= FRESH]
    mine = fresh if len(fresh) else runs
    rate = mine.lr.iloc[(mine.x - valley(runs)).abs().argmin()]
    return rate, mine[mine.lr == rate].set_index("seed").value


def window(runs, level):
    """Octaves at or below a level, by a fine grid between the first and the last rate that was run."""
    means, _ = expected(runs)
    grid = np.linspace(means.index[0], means.index[-1], 200_001)
    return float((np.interp(grid, means.index, means) <= level).mean() * (grid[-1] - grid[0]))


def sensitivity(runs):
    means, _ = expected(runs)
    grid = np.linspace(*np.log2(RANGE), 20_001)
    return float(np.interp(grid, means.index, means).mean() - best(runs)[1].mean())


def jackknife(whole, without):
    moves = np.asarray(without) - whole
    square = (moves**2).sum()
    if not square:
        return whole, whole
    freedom = max(1.0, square**2 / (moves**4).sum())
    half = stats.t.ppf(0.975, freedom) * np.sqrt(square * (len(moves) - 1) / len(moves))
    return whole - half, whole + half
