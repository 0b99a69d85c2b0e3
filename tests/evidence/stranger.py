"""What results/critical_rates.csv says, worked out by a stranger: from the tables and docs/rules.md alone, with pandas and scipy.

    python tests/evidence/stranger.py [RESULTS]

prints every number that disagrees, and exits with status 1 if one does. Nothing of `suite` is imported.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

RESULTS = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "results")
FRESH, WITHIN, VALLEY, RANGE = 1000, 1.05, 1.1, (1.15e-3, 6e-2)
BESIDE = {"scale": ["scale", "frontier"], "controls": ["controls", "frontier"]}  # whose cells set the level of a window
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
    grid = np.linspace(means.index[0], means.index[-1], 20_001)
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


def upward(runs):
    """From the coldest rate on at which half of the runs are usable."""
    lost = runs.groupby("lr").bad.mean()
    return runs[runs.lr >= lost.index[lost <= 0.5].min()] if (lost <= 0.5).any() else runs


def critical(runs, share):
    """(low, middle, high) of the rate at which a share of the runs is bad, by brute force on another grid than the suite's.

    A run at log rate x is bad with chance F((x - edge) slope), F logistic; of the variance of its limit a share rho is its seed's.
    Edges are alike beforehand, rho is 0, .3 or .6, slopes are lognormal about 17 with a spread of .65.
    """
    edges = np.linspace(np.log(runs.lr.min()) - 0.7, np.log(runs.lr.max()) + 0.7, 240)
    slopes = np.geomspace(2.5, 80, 12)
    p = (np.arange(15) + 0.5) / 15
    part = np.log(p / (1 - p))
    part *= np.sqrt(np.pi**2 / 3 / np.mean(part**2))
    of_seeds = Counter(tuple(sorted(zip(one.lr, one.bad))) for _, one in runs.groupby("seed"))
    logs, levels = [], []
    for rho in (0.0, 0.3, 0.6):
        total = np.tile(-0.5 * (np.log(slopes / 17) / 0.65) ** 2, (len(edges), 1))
        for of_seed, times in of_seeds.items():
            of_place = np.zeros((len(edges), len(slopes), len(part)))
            for lr, bad in of_seed:
                z = ((np.log(lr) - edges)[:, None, None] * slopes[:, None] - np.sqrt(rho) * part) / np.sqrt(1 - rho)
                of_place -= np.logaddexp(0, -z if bad else z)
            top = of_place.max(-1, keepdims=True)
            total += times * (top[..., 0] + np.log(np.exp(of_place - top).mean(-1)))
        logs.append(total)
        z = np.linspace(-20, 20, 20_001)
        lost = np.mean([1 / (1 + np.exp(-(z - np.sqrt(rho) * one) / np.sqrt(1 - rho))) for one in part], axis=0)
        levels.append(edges[:, None] + np.interp(share, lost, z) / slopes)
    weight = np.exp(np.array(logs) - np.max(logs)).ravel()
    level = np.array(levels).ravel()
    order = np.argsort(level)
    return np.exp(np.interp([0.025, 0.5, 0.975], np.cumsum(weight[order]) / weight.sum(), level[order]))


def levels(place):
    """The level of the window at a depth: by all runs, and by seed without its runs."""
    def level(runs):
        cells = [one for _, one in runs.groupby(CELL) if one[one.seed < FRESH].seed.nunique() > 1]
        ready = [one for one in cells if (one.seed >= FRESH).any()] or cells
        return WITHIN * min(best(one)[1].mean() for one in ready)

    return level(place), {seed: level(place[place.seed != seed]) for seed in sorted(set(place.seed))}


def row(cell, level, without):
    """The numbers of one cell. level, without: as `levels` gives them."""
    search = cell[cell.seed < FRESH]
    parts = {seed: cell[cell.seed != seed] for seed in without}
    windows = window(cell, level), [window(parts[seed], without[seed]) for seed in without]
    valleys = valley(cell), [valley(part) for part in parts.values()]
    rate, values = best(cell)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    out = {"best_lr": rate, "best_loss": values.mean(), "best_loss_low": values.mean() - half, "best_loss_high": values.mean() + half,
           "fresh": int((cell.seed >= FRESH).sum()), "runs": len(search), "seeds": search.seed.nunique(),
           "window": windows[0], "valley_lr": 2 ** valleys[0], "sensitivity": sensitivity(cell)}  # fmt: skip
    low, high = jackknife(*windows)
    out |= {"window_low": max(0.0, low), "window_high": high}
    low_valley, high_valley = jackknife(*valleys)
    out |= {"valley_lr_low": 2**low_valley, "valley_lr_high": 2**high_valley}
    for name, share in (("lr50", 0.5), ("lr10", 0.1)):
        out |= dict(zip((f"{name}_low", name, f"{name}_high"), critical(upward(search), share)))
    middle, low, high = (np.log2(out[name]) for name in ("lr10", "lr10_low", "lr10_high"))
    margin = middle - valleys[0]
    out |= {"margin": margin, "margin_low": margin - np.hypot(middle - low, high_valley - valleys[0]),
            "margin_high": margin + np.hypot(high - middle, valleys[0] - low_valley)}  # fmt: skip
    dead = search[search.outcome.isin(["collapsed", "degraded", "nonfinite", "survived"])]
    out["dead_runs"] = len(dead)
    return out


def agrees(name, said, found):
    """Edges come from another grid, two hundredths of the rate apart at most; the ends of intervals stretch what is rounded."""
    if pd.isna(said) or (name.startswith("lr") and not 0 < said < np.inf):
        return True  # an open end
    end = name.endswith(("_low", "_high"))
    if name.startswith("lr"):
        return abs(np.log(found / said)) < (0.03 if end else 0.02 if name == "lr10" else 0.01)
    if "margin" in name:
        return abs(found - said) < 0.04
    return abs(found - said) < (5e-3 if end else 1e-3) * max(1.0, abs(said))


def main():
    told = pd.read_csv(RESULTS / "critical_rates.csv")
    wrong = 0
    for protocol, of_protocol in told.groupby("protocol"):
        runs = pd.concat([runs_of(name) for name in BESIDE.get(protocol, [protocol])], ignore_index=True)
        known = {key: levels(place) for key, place in runs.groupby(["depth", "data"])}
        for one in of_protocol.itertuples():
            cell = runs[(runs[CELL] == [getattr(one, name) for name in CELL]).all(axis=1)]
            for name, found in row(cell, *known[one.depth, one.data]).items():
                if not agrees(name, said := getattr(one, name), found):
                    wrong += 1
                    print(f"{protocol} {one.scheme} {one.params} {one.depth}: {name} is {said:.5g}, the runs give {found:.5g}")
    print(f"{len(told)} rows of critical_rates.csv, {wrong} numbers differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
