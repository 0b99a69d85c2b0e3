"""The rule that chooses the laptop protocol's two learning rates from the frontier, and says which of its cells are
decided.

Written down when the first runs of the frontier were in and none of them had died. A run's fate is dead, unusable
(stuck or untrained) or live.

cool: the highest rate at which every cell of the frontier has runs of three seeds or more, and all of them survive.
hot: of the rates that every scheme at 100 blocks has three seeds or more at, hotter than cool, and at which plain at 100 blocks is
    uniform and dead, here and at its nearest colder rate of the frontier, the one at which most cells are uniform, here and at their
    nearest rate towards their edge; the coldest of several.
decided: of a cell at the hot rate: all of seeds 0-7 have one fate, all of them have it at the neighbour on the lattice towards the
    cell's edge too, and all of seeds 8-15 confirm it at the hot rate. Else its seeds are mixed, or, where only the neighbour differs,
    it is borderline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from suite.evidence.cells import controlled
from suite.evidence.shares import share
from suite.protocol import KNOWN, rate
from suite.sweep.frontier import FIRST_SEEDS

FIRST, CONFIRMING = range(8), range(8, 16)
DEEPEST, REFERENCE = 100, "plain"
FATES = {"dead": "dead", "unusable": "stuck or untrained", "live": "survived"}  # in words

Fates = Mapping[float, Mapping[int, str]]  # by rate and seed, of one cell


def fates(runs: pd.DataFrame) -> dict[tuple[str, int], Fates]:
    """By (scheme, depth) of the controlled arm: rate -> seed -> fate."""
    return {key: {lr: dict(zip(at["seed"], at["fate"])) for lr, at in mine.groupby("lr")}
            for key, mine in controlled(runs).groupby(["scheme", "depth"], sort=False)}  # fmt: skip


def _uniform(found: Fates, lr: float) -> str:
    """The one fate of the runs at a rate; "" where there are several, or too few runs."""
    seen = set(found.get(lr, {}).values())
    return seen.pop() if len(seen) == 1 and len(found[lr]) >= FIRST_SEEDS else ""


def _stands(found: Fates, lr: float) -> bool:
    """Whether a cell is uniform at a rate and at the nearest tested one towards its edge (colder for the dead, hotter
    for the living); a living cell's edge may not be tested."""
    here = _uniform(found, lr)
    if here == "live":
        beside = min((other for other in found if other > lr), default=None)
    else:
        beside = max((other for other in found if other < lr), default=None)
    return bool(here) and (here == "live" if beside is None else _uniform(found, beside) == here)


def rates(runs: pd.DataFrame) -> tuple[float, float]:
    """(cool, hot). Raises ValueError where no rate fits the rule."""
    found = fates(runs)
    cool = [lr for lr in KNOWN if all(_uniform(cell, lr) == "live" for cell in found.values())]
    if not cool:
        raise ValueError("no rate at which every cell of the frontier survives")
    deepest = [cell for (_, depth), cell in found.items() if depth == DEEPEST]
    reference = found[REFERENCE, DEEPEST]
    hot = [lr for lr in KNOWN if lr > cool[-1] and all(len(cell.get(lr, {})) >= FIRST_SEEDS for cell in deepest)
           and _uniform(reference, lr) == "dead" and _stands(reference, lr)]  # fmt: skip
    if not hot:
        raise ValueError(f"no rate above {cool[-1]:g} at which {REFERENCE} at {DEEPEST} blocks is dead in all runs")
    return cool[-1], max(hot, key=lambda lr: (sum(_stands(cell, lr) for cell in found.values()), -lr))


@dataclass(frozen=True)
class Standing:
    """What is known of a cell at a rate: how many of its runs have each fate, and `decided`: a fate, "" where seeds or the
    neighbouring rate differ, or None where runs that the rule asks for are missing."""

    counts: Mapping[str, int]
    decided: str | None

    @property
    def n(self) -> int:
        return sum(self.counts.values())

    @property
    def word(self) -> str:
        """"mixed" where seeds end differently, "borderline" where only those at the neighbouring rate do; else ""."""
        return "" if self.decided != "" else "mixed" if len(self.counts) > 1 else "borderline"

    def __str__(self) -> str:
        """"1 of 8 dead [.003, .53], 7 of 8 survived [.47, .997]": fates, exact 95 % intervals of shares (Clopper, Pearson)."""
        return ", ".join(f"{self.counts[name]} of {self.n} {word} {share(self.counts[name], self.n)}"
                         for name, word in FATES.items() if name in self.counts)  # fmt: skip


def _neighbour(here: Mapping[int, str], lr: float) -> float:
    """The next rate of the lattice towards the edge of a cell whose first seeds ended so: hotter if they live."""
    return rate(KNOWN[lr] + (1 if {here.get(seed) for seed in FIRST} - {None} == {"live"} else -1))


def standing(runs: pd.DataFrame, lr: float) -> dict[tuple[str, int], Standing]:
    """What is known of each cell at a rate of the lattice, over seeds 0-15. Empty for a rate off the lattice."""
    out = {}
    for key, found in fates(runs).items() if lr in KNOWN else ():
        here = found.get(lr, {})
        neighbour = found.get(_neighbour(here, lr), {})
        seen = {*map(here.get, (*FIRST, *CONFIRMING)), *map(neighbour.get, FIRST)}
        out[key] = Standing(dict(Counter(here.values())), "" if len(seen - {None}) > 1 else None if None in seen else seen.pop())
    return out


def missing(runs: pd.DataFrame, lr: float) -> list[tuple[str, int, float, int]]:
    """(scheme, depth, rate, seed) of the runs that `standing` still asks for, cells that are mixed already left out."""
    out = []
    for (scheme, depth), found in fates(runs).items():
        here = found.get(lr, {})
        if len({here.get(seed) for seed in FIRST} - {None}) <= 1:
            asked = [(lr, seed) for seed in (*FIRST, *CONFIRMING)] + [(_neighbour(here, lr), seed) for seed in FIRST]
            out += [(scheme, depth, at, seed) for at, seed in asked if seed not in found.get(at, {})]
    return out
