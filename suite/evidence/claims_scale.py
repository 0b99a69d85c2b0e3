"""The paper's claim that its split protects, and not the smaller branch: schemes with and without a split, of equal scale."""

from __future__ import annotations

import numpy as np
import pandas as pd

from suite.evidence.cells import Cell
from suite.evidence.claim import Claim, Part
from suite.evidence.claims_schemes import BETTER
from suite.evidence.claims_tables import Tables
from suite.evidence.edges import judged
from suite.evidence.families import FAMILIES, family, start
from suite.evidence.measures import Measures
from suite.evidence.ranking import paired
from suite.evidence.stats import ratio
from suite.evidence.verdicts import Rule, Seen, mean

STEP = Rule(1.15, 1.0, 1 / 1.15, "1.15: a step of the lattice of rates; no hotter; a step colder")
SLOWER = Rule(0.01, 0.0, -0.01, "one in a hundred of the loss; no slower; one in a hundred faster")
FIXED, _, LEARNED, SPLIT = FAMILIES
DEPTH = 100


def claims(tables: Tables) -> list[Claim]:
    known = {(family(one.cell), start(one.cell)): one for one in tables.scale if one.cell.depth == DEPTH and family(one.cell)}
    return [_split(tables, known), _small(tables, known)]


def _split(tables: Tables, known: dict[tuple[str, float | None], Measures]) -> Claim:
    scales = sorted({scale for _, scale in known if scale}, reverse=True)
    pairs = {s: (known[LEARNED, s], known[SPLIT, s]) for s in scales if {(LEARNED, s), (SPLIT, s)} <= known.keys()}
    edges = {s: _edges(tables.scale_runs, split, gain) for s, (gain, split) in pairs.items()}
    parts = [
        Part("best loss of LayerScale over MV-Split's from the same start, less 1, mean over the starts", _losses(pairs), BETTER),
        Part("LR50 of MV-Split over plain's, both from 1",
             _edges(tables.scale_runs, known.get((SPLIT, 1.0)), known.get((FIXED, 1.0))), STEP),
        *(Part(f"LR50 of MV-Split over LayerScale's, both from {scale:g}", found, STEP) for scale, found in edges.items()),
    ]  # fmt: skip
    return Claim(
        "It is the split, not the scale", "What protects is that the mean and the rest are joined by gates of their own, not that the "
        "branch is small.", "Eq. 40 to 42, App. E", "no number", tuple(parts), ("scale/runs.csv", "frontier/runs.csv"),
        needs="LayerScale from 1; other depths, longer training, and more seeds: an edge here is known within 15 %",
        note="A smaller branch also takes smaller steps, so edges at different scales cannot be compared. These are of one scale each.",
    )  # fmt: skip


def _small(tables: Tables, known: dict[tuple[str, float | None], Measures]) -> Claim:
    small, plain = known.get((FIXED, 0.1)), known.get((FIXED, 1.0))
    both = small and plain
    untuned = (small.loss_at(plain.best_lr) or np.nan) / plain.loss_at(plain.best_lr) - 1 if both else np.nan
    return Claim(
        "A small gain buys stability with slower learning", "A scalar or per-channel gain, which makes mean and rest smaller alike, is "
        "stable but learns slower.", "Eq. 40 to 42, App. E", "no number", (
            Part("LR50 of a fixed gain of .1 over plain's", _edges(tables.scale_runs, small, plain), STEP),
            Part("best loss of a fixed gain of .1 over plain's, each at its own best rate, less 1",
                 mean(paired(small, plain), "pairs of seeds") if both else Seen(), SLOWER),
        ), ("scale/runs.csv", "frontier/runs.csv"), needs="other depths, and longer training",
        note=f"At plain's best rate its loss is {untuned:+.1%} from plain's (some three seeds each)." if both else "",
    )  # fmt: skip


def _losses(pairs: dict[float, tuple[Measures, Measures]]) -> Seen:
    """By seed the mean over the starts; seeds are the independent ones."""
    if not pairs:
        return Seen()
    apart = pd.concat([paired(*pair) for pair in pairs.values()], axis=1)
    return mean(apart.dropna().mean(axis=1), "seeds")


def _edges(runs: dict[Cell, pd.DataFrame], one: Measures | None, over: Measures | None) -> Seen:
    if not (one and over):
        return Seen()
    found = ratio(judged(runs[one.cell]), judged(runs[over.cell]))
    return Seen(found.ratio, found.low, found.high, f"n = {one.edge.lr50.n} and {over.edge.lr50.n} runs") if found.ratio else Seen()
