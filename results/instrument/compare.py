"""Which search finds an edge with the fewest steps, and do its intervals hold the truth? By simulation, and by replay on results/frontier.

    PYTHONPATH=. python results/instrument/compare.py      writes simulation.csv and replay.csv beside itself, in some minutes

Designs: `grid`, the search before this one (all seeds at each rate of the edge); `updown`, one step of the lattice colder
after a lost run and hotter after a usable one (Dixon and Mood 1948; the median's biased coin is a fair one), whose own
interval is that of centred isotonic regression (Oron and Flournoy 2017; as in R's `cir`, with Wilson's bounds);
`information`, the rate with the most expected information on the edge per step of training; `targets`, the search of
suite/sweep/frontier.py; `targets, same seeds`: the same with the lowest seed that its rate has not had yet.

A simulated cell has its edge somewhere between the points 10 and 20; the limit of a run is the edge plus logistic noise
of scale 1 / slope, whose variance the seed has a share of, the same in both cells of a ratio. Cost is in lives: runs,
where one that is lost counts DEAD.

In the replay a design asks for a point and a seed. It is given the committed run of both; where there is none, a run of
another seed at that point that it has not had; where there is none left, a draw by the posterior of the whole cell.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from suite.protocol import FIRST, KNOWN, LAST, STEP, rate
from suite.sweep import frontier
from suite.sweep.frontier import MOST, PRECISION, START, TARGETS
from suite.verdict import posterior as p

HERE = Path(__file__).parent
DEAD = 0.47  # of a life: mean last step of the lost runs of results/frontier, 211, over 450
SLOPES, SHARES = (10, 20, 40), (0.0, 0.5)
X = np.log([rate(k) for k in range(FIRST, LAST + 1)])
TAILS = (0.025, 0.5, 0.975)


# ---- designs with a fresh seed in every run, many cells at once

@cache
def tables() -> tuple[np.ndarray, np.ndarray]:
    """(points, grid) chances, and (2, points, grid) log likelihoods of a usable and of a lost run."""
    chances = np.clip(frontier._chances().reshape(len(X), -1), 1e-6, 1 - 1e-6)
    log = np.stack([np.stack([p._of_seed(((float(x), bad),)).ravel() for x in X]) for bad in (False, True)])
    return chances.astype(np.float32), log.astype(np.float32)  # three digits are enough, in half the time


def normed(log: np.ndarray) -> np.ndarray:
    weights = np.exp(log - log.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def edge_of(weights: np.ndarray) -> np.ndarray:
    """(R, E) of the edge alone."""
    return weights.reshape(len(weights), len(p.EDGES), -1).sum(2)


def ends(marginal: np.ndarray) -> np.ndarray:
    """(R, 3) lower end, middle and upper end."""
    steps = np.cumsum(marginal, 1) - marginal / 2
    return np.stack([np.interp(TAILS, one, p.EDGES) for one in steps])


def targets(weights, chance, turn, last, lost):
    return np.abs(chance - TARGETS[turn % len(TARGETS)]).argmin(1)


def updown(weights, chance, turn, last, lost):
    return np.clip(last + np.where(lost, -1, 1), 0, len(X) - 1)


def information(weights, chance, turn, last, lost):
    def entropy(q):
        return -(q * np.log(np.clip(q, 1e-12, 1)) + (1 - q) * np.log(np.clip(1 - q, 1e-12, 1)))

    by_edge, gain = edge_of(weights), entropy(chance)
    full = weights.reshape(len(weights), len(p.EDGES), -1)
    near = np.flatnonzero(((chance > 0.02) & (chance < 0.98)).any(0))
    for k in near:
        given = np.einsum("res,es->re", full, tables()[0][k].reshape(len(p.EDGES), -1)) / np.maximum(by_edge, 1e-30)
        gain[:, k] -= (by_edge * entropy(np.clip(given, 0, 1))).sum(1)
    gain[:, np.setdiff1d(np.arange(len(X)), near)] = -1
    return (gain / (1 - (1 - DEAD) * chance)).argmax(1)


def fresh(rule: Callable, edge, noise, precision: float = PRECISION, batch: int = 2):
    """(end marginals (R, E), points (R, MOST) with -1 behind the last, lost (R, MOST)). edge: (R,); noise: (R, MOST) of the limits."""
    chances, likelihood = tables()
    cells = len(edge)
    usual = np.log(p.posterior([], [], []).ravel())
    log, live = np.tile(usual.astype(np.float32), (cells, 1)), np.ones(cells, dtype=bool)
    asked, lost, done = np.full((cells, MOST), -1), np.zeros((cells, MOST), dtype=bool), np.zeros((cells, len(p.EDGES)))
    for n in range(0, MOST + 1, batch):
        at = np.flatnonzero(live)
        weights = normed(log[at])
        done[at] = edge_of(weights)
        low, _, high = ends(done[at]).T
        on = ((high - low) / 2 > precision) & (n + batch <= MOST)
        live[at[~on]] = False
        at, weights = at[on], weights[on]
        if not len(at):
            break
        for i in range(batch):
            chance = weights @ chances.T
            if n == 0:
                k = np.full(len(at), min(LAST, START + 4 * i) - FIRST)
            else:
                k = rule(weights, chance, i if batch > 1 else n, asked[at, n - 1], lost[at, n - 1])
            asked[at, n + i], lost[at, n + i] = k, X[k] > edge[at] + noise[at, n + i]
            log[at] += likelihood[lost[at, n + i].astype(int), k]
            q = np.take_along_axis(chance, k[:, None], 1)
            if i + 1 < batch:
                expected = q * np.log(chances[k]) + (1 - q) * np.log(1 - chances[k])
                weights = normed(np.log(np.maximum(weights, 1e-30)) + expected)
    return done, asked, lost


# ---- the search before this one

def grid(lost: Callable[[int, int], bool]) -> list[tuple[int, int, bool]]:
    """(point, seed, lost) of all runs: every second point with three seeds from all usable to all lost with one more on
    each side, then every point of the edge with eight."""
    known: dict[tuple[int, int], bool] = {}

    def look(k: int, seeds: int) -> list[bool]:
        return [known.setdefault((k, seed), lost(k, seed)) if (k, seed) not in known else known[k, seed] for seed in range(seeds)]

    bottom = top = START
    whole: set[int] = set()
    while True:
        seen = {k: look(k, 8 if k in whole else 3) for k in sorted({*range(bottom, top + 1, 2), *whole})}
        cold = next((i for i, k in enumerate(seen) if any(seen[k])), len(seen)) - 1
        hot = next((i for i, k in enumerate(reversed(seen)) if not all(seen[k])), len(seen))
        low, high = [*seen][cold] if cold >= 0 else None, [*seen][len(seen) - hot] if hot else None
        if bottom > 0 and (low is None or low < bottom + 2):
            bottom -= 2
        elif top + 2 <= LAST and (high is None or high > top - 2):
            top += 2
        else:
            one, other = bottom if low is None else low, top if high is None else high
            about = {*range(min(one, other), max(one, other) + 1)}
            if len(about) > 10 or about <= whole:
                return [(k, seed, bad) for (k, seed), bad in known.items()]
            whole |= about


def isotonic(k, lost) -> tuple[float, float]:
    """The interval of the log rate at which half are lost, by centred isotonic regression with Wilson's bounds; open ends are infinite."""
    blocks = [[X[one], float(np.mean(lost[k == one])), int(np.sum(k == one))] for one in np.unique(k)]
    i = 0
    while i + 1 < len(blocks):
        (x, y, n), (x1, y1, n1) = blocks[i], blocks[i + 1]
        if y1 > y or y == y1 in (0.0, 1.0):
            i += 1
            continue
        blocks[i : i + 2] = [[(x * n + x1 * n1) / (n + n1), (y * n + y1 * n1) / (n + n1), n + n1]]
        i = max(0, i - 1)
    x, y, n = map(np.array, zip(*blocks))
    z = norm.ppf(0.975)
    middle, off = (y + z**2 / 2 / n) / (1 + z**2 / n), z * np.sqrt(y * (1 - y) / n + z**2 / 4 / n**2) / (1 + z**2 / n)
    upper, lower = np.minimum.accumulate((middle + off)[::-1])[::-1], np.maximum.accumulate(middle - off)  # as monotone as the truth
    return (float(np.interp(0.5, upper, x)) if upper[0] <= 0.5 else -np.inf,
            float(np.interp(0.5, lower, x)) if lower[-1] >= 0.5 else np.inf)  # fmt: skip


# ---- simulation

def limits(rng, cells: int, slope: float, share: float, seeds: int, parts=None):
    """(R, seeds) noise of the limits, and the seeds' parts, for a second cell."""
    parts = rng.logistic(size=(cells, seeds)) if parts is None else parts
    return (np.sqrt(share) * parts + np.sqrt(1 - share) * rng.logistic(size=(cells, seeds))) / slope, parts


def ratio_holds(one, other, truth) -> np.ndarray:
    """(R,) whether the 95 % interval of a ratio, of two marginals each, holds the true difference of the log edges."""
    step = p.EDGES[1] - p.EDGES[0]
    out = []
    for a, b, true in zip(one, other, truth):
        low, high = p.quantiles((np.arange(2 * len(a) - 1) - len(a) + 1) * step, np.convolve(a, b[::-1]), (TAILS[0], TAILS[2]))
        out.append(low <= true <= high)
    return np.array(out)


def row(design, slope, share, precision, edge, marginal, runs, dead, both=None, interval=None) -> dict:
    found, middle = ends(marginal) if interval is None else interval, ends(marginal)[:, 1]
    half = (found[:, -1] - found[:, 0]) / 2
    return {"design": design, "slope": slope, "share": share, "precision": precision, "cells": len(edge), "runs": np.mean(runs),
            "lives": np.mean(runs - (1 - DEAD) * dead), "half_width": np.median(half),
            "error": np.sqrt(np.mean((middle - edge) ** 2)),
            "coverage": np.mean((found[:, 0] <= edge) & (edge <= found[:, -1])), "ratio_coverage": both}  # fmt: skip


def simulate(name: str, rule: Callable, slope: float, share: float, cells: int, precision: float = PRECISION, batch: int = 2,
             seed: int = 0) -> list[dict]:  # fmt: skip
    """Rows of a design with fresh seeds: a cell, and its ratio to a second cell with the same seeds."""
    rng = np.random.default_rng([seed, slope, int(10 * share)])
    found, parts = [], None
    for _ in range(2):
        edge = np.log(rate(0)) + np.log(STEP) * rng.uniform(10, 20, cells)
        noise, parts = limits(rng, cells, slope, share, MOST, parts)
        found.append((edge, *fresh(rule, edge, noise, precision, batch)))
    (edge, marginal, asked, lost), (edge1, marginal1, *_) = found
    runs, dead = (asked >= 0).sum(1), lost.sum(1)
    both = ratio_holds(marginal, marginal1, edge - edge1).mean()
    rows = [row(name, slope, share, precision, edge, marginal, runs, dead, both)]
    if rule is updown:
        own = np.array([isotonic(k[k >= 0], bad[k >= 0]) for k, bad in zip(asked, lost)])
        rows.append(row(f"{name}, own interval", slope, share, precision, edge, marginal, runs, dead, None, own))
    return rows


def simulate_same(name: str, slope: float, share: float, cells: int, how: str, seed: int = 0) -> list[dict]:
    """One row of a design whose rates share their seeds: `grid`, or `targets` as `how` says."""
    rng = np.random.default_rng([seed, slope, int(10 * share)])
    edges = [np.log(rate(0)) + np.log(STEP) * rng.uniform(10, 20, cells) for _ in range(2)]
    marginals, counts = ([], []), []
    for i in range(cells):
        part = rng.logistic(size=MOST) * np.sqrt(share)
        for cell in range(2):
            def lost(k, of, cell=cell, part=part, i=i):
                return bool(X[k - FIRST] > edges[cell][i] + (part[of] + np.sqrt(1 - share) * rng.logistic()) / slope)

            runs = grid(lost) if how == "grid" else same_seeds(lost)
            weights = p.posterior([rate(k) for k, *_ in runs], [of for _, of, _ in runs], [bad for *_, bad in runs])
            marginals[cell].append(weights.sum(1))
            counts += [(len(runs), sum(bad for *_, bad in runs))] * (cell == 0)
    one, other = map(np.array, marginals)
    both = ratio_holds(one, other, edges[0] - edges[1]).mean()
    return [row(name, slope, share, PRECISION if how != "grid" else None, edges[0], one, *np.array(counts).T, both)]


def same_seeds(lost: Callable[[int, int], bool]) -> list[tuple[int, int, bool]]:
    """`targets` with the lowest seed that a point has not had."""
    runs: list[tuple[int, int, bool]] = []
    while True:
        weights = p.posterior([rate(k) for k, *_ in runs], [of for _, of, _ in runs], [bad for *_, bad in runs])
        low, _, high = ends(weights.sum(1)[None])[0]
        if (high - low) / 2 <= PRECISION or len(runs) >= MOST:
            return runs
        for k in frontier._round(weights, bool(runs), 2):
            of = sum(run[0] == k for run in runs)
            runs.append((k, of, lost(k, of)))


def simulation(cells: int = 60, few: int = 16, slopes=SLOPES) -> pd.DataFrame:
    """few: cells of the designs that share seeds, and of `information`, which are not done at once or are slow."""
    rows = []
    for slope in slopes:
        for share in SHARES:
            rows += simulate_same("grid", slope, share, few, "grid")
            width = rows[-1]["half_width"]
            rows += simulate("targets", targets, slope, share, cells)
            rows += simulate("targets", targets, slope, share, cells, round(width, 3))
            if share:  # what a seed does is all that tells these designs apart from `targets`
                rows += simulate_same("targets, same seeds", slope, share, few, "targets")
                continue
            rows += simulate("targets, 8 a round", targets, slope, share, cells, batch=8)
            rows += simulate("updown", updown, slope, share, cells, batch=1)
            rows += simulate("information", information, slope, share, few)
            print(pd.DataFrame(rows).tail(6).round(3).to_string(), flush=True)
    return pd.DataFrame(rows)


# ---- replay

def committed() -> dict[tuple[str, int], pd.DataFrame]:
    runs = pd.read_csv(HERE.parent / "frontier" / "runs.csv", usecols=["scheme", "depth", "lr", "seed", "outcome", "last_step", "cpu_isa"])
    runs = runs[runs["cpu_isa"] == "AVX512"]  # the 1,053 of the first search; what came later was trained on AVX2
    runs = runs[runs["lr"].isin(list(KNOWN))]
    runs = runs.assign(k=runs["lr"].map(KNOWN), bad=runs["outcome"] != "survived")
    return dict(iter(runs.groupby(["scheme", "depth"])))


class Oracle:
    """A committed cell that answers a design, and counts what the answers cost."""

    def __init__(self, runs: pd.DataFrame, rng) -> None:
        self.rng, self.steps, self.drawn = rng, 0, 0
        self.left = {k: at.set_index("seed")[["bad", "last_step"]].sample(frac=1, random_state=rng) for k, at in runs.groupby("k")}
        self.dead = runs.loc[runs["bad"], "last_step"].mean()
        weights = p.posterior(*p.upward(runs["lr"], runs["seed"], runs["bad"]))
        self.edge, self.chance = p.quantiles(p.EDGES, weights.sum(1), TAILS), np.einsum("keg,eg->k", frontier._chances(), weights)

    def __call__(self, k: int, seed: int) -> bool:
        left = self.left.get(k)
        if left is None or left.empty:
            bad = bool(self.rng.random() < self.chance[k - FIRST])
            self.steps, self.drawn = self.steps + (self.dead if bad else 450), self.drawn + 1
            return bad
        taken = seed if seed in left.index else left.index[0]
        bad, steps = left.loc[taken]
        self.left[k], self.steps = left.drop(taken), self.steps + steps
        return bool(bad)


def by_targets(oracle: Oracle, precision: float) -> list[tuple[int, int, bool]]:
    seen: list[frontier.Seen] = []
    while pairs := frontier._edge(seen, precision, 2)[0]:
        seen += [frontier.Seen(k, seed, not oracle(k, seed), 0.0) for k, seed in pairs]
    return [(run.k, run.seed, not run.usable) for run in seen]


def by_updown(oracle: Oracle, precision: float) -> list[tuple[int, int, bool]]:
    runs, k = [], START
    while len(runs) < MOST:
        runs.append((k, len(runs), oracle(k, len(runs))))
        k = int(np.clip(k + (-1 if runs[-1][2] else 1), FIRST, LAST))
        low, _, high = ends(p.posterior([rate(one) for one, *_ in runs], range(len(runs)), [bad for *_, bad in runs]).sum(1)[None])[0]
        if (high - low) / 2 <= precision:
            break
    return runs


def replay(times: int = 4, only: tuple[tuple[str, int], ...] = ()) -> pd.DataFrame:
    """A row for each design and cell, means over `times` orders of the runs; and `committed`, what was trained."""
    rows = []
    for (scheme, depth), runs in committed().items():
        if only and (scheme, depth) not in only:
            continue
        full = Oracle(runs, np.random.default_rng(0))
        known = {"scheme": scheme, "depth": depth, "precision": None}
        rows.append(known | {"design": "committed", "runs": len(runs), "block_steps": depth * runs["last_step"].sum(),
                             "half_width": (full.edge[2] - full.edge[0]) / 2, "error": 0.0, "drawn": 0})  # fmt: skip
        width = rows[-1]["half_width"]
        for design, search in (("grid", lambda oracle, _: grid(oracle)), ("targets", by_targets), ("updown", by_updown)):
            for precision in (PRECISION,) if design != "targets" else (PRECISION, round(width, 3)):
                made = []
                for i in range(times):
                    oracle = Oracle(runs, np.random.default_rng([i, depth]))
                    asked = search(oracle, precision)
                    lr, seed, bad = p.upward([rate(k) for k, *_ in asked], [of for _, of, _ in asked], [b for *_, b in asked])
                    low, middle, high = p.quantiles(p.EDGES, p.posterior(lr, seed, bad).sum(1), TAILS)
                    made.append((len(asked), depth * oracle.steps, (high - low) / 2, abs(middle - full.edge[1]), oracle.drawn))
                    if design == "grid":
                        break  # it asks for what is there
                means = dict(zip(("runs", "block_steps", "half_width", "error", "drawn"), np.mean(made, 0)))
                rows.append(known | {"design": design, "precision": None if design == "grid" else precision} | means)
    return pd.DataFrame(rows)[["design", "scheme", "depth", "precision", "runs", "block_steps", "half_width", "error", "drawn"]]


if __name__ == "__main__":
    for name, table in (("replay", replay), ("simulation", simulation)):
        made = table()
        made.to_csv(HERE / f"{name}.csv", index=False, float_format="%.5g")
        print(made.groupby("design").mean(numeric_only=True).round(4))
