"""The paper's claim that its split protects, and not the smaller branch: schemes with and without a split, of equal scale."""

from __future__ import annotations

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
FIXED, CENTERED, LEARNED, SPLIT = FAMILIES
DEPTH = 100


def claims(tables: Tables) -> list[Claim]:
    return [_split(tables)]


def _split(tables: Tables) -> Claim:
    known = {(family(one.cell), start(one.cell)): one for one in tables.scale if one.cell.depth == DEPTH and family(one.cell)}
    scales = sorted({scale for _, scale in known if scale}, reverse=True)

    def both(one: str, over: str) -> dict[float, tuple[Measures, Measures]]:
        return {s: (known[one, s], known[over, s]) for s in scales if {(one, s), (over, s)} <= known.keys()}

    parts = [Part(f"best loss of LayerScale over MV-Split's from the same start, less 1, over {DEPTH} blocks and {len(pairs)} starts",
                  _losses(pairs), BETTER) for pairs in [both(LEARNED, SPLIT)] if pairs]  # fmt: skip
    same = ((SPLIT, LEARNED, "MV-Split over LayerScale's"), (CENTERED, FIXED, "a centered fixed gain over the gain's alone"))
    for one, over, words in same:
        parts += [Part(f"LR50 of {words}, both from {scale:g}", _edges(tables.scale_runs, *pair), STEP)
                  for scale, pair in both(one, over).items()]  # fmt: skip
    if {(FIXED, 1.0), (FIXED, 0.1)} <= known.keys():
        small, plain = known[FIXED, 0.1], known[FIXED, 1.0]
        parts += [Part("LR50 of a fixed gain of .1 over plain's", _edges(tables.scale_runs, small, plain), STEP),
                  Part("best loss of a fixed gain of .1 over plain's, less 1", mean(paired(small, plain), "pairs of seeds"), SLOWER)]
    return Claim(
        "It is the split, not the scale", "What protects is that the mean and the rest are joined by gates of their own; a scalar or "
        "per-channel gain, which makes both smaller, buys stability with slower learning.", "Eq. 40 to 42, App. E", "no number",
        tuple(parts), ("scale/runs.csv", "frontier/runs.csv"), needs="other depths, and longer training",
        note="400 steps. A small branch takes smaller steps too, so that edges tell of the scale what they like; between schemes of one "
             "scale they can be compared.",
    )  # fmt: skip


def _losses(pairs: dict[float, tuple[Measures, Measures]]) -> Seen:
    """By seed the mean over the starts; seeds are the independent ones."""
    apart = pd.concat([paired(*pair) for pair in pairs.values()], axis=1)
    return mean(apart.dropna().mean(axis=1), "seeds")


def _edges(runs: dict[Cell, pd.DataFrame], one: Measures, over: Measures) -> Seen:
    found = ratio(judged(runs[one.cell]), judged(runs[over.cell]))
    return Seen(found.ratio, found.low, found.high, f"n = {one.edge.lr50.n} and {over.edge.lr50.n} runs") if found.ratio else Seen()
