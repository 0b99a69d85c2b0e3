"""Which learning rates a frontier needs: the search for the edge between rates at which all runs of a cell live and at which all die.

A cell is a scheme at a depth. All rates lie on one lattice, so that cells share them. The search looks at every
second point with a few seeds until the edge is between two of them, with one more point on each side to notice a cell
that is not monotone, and then at every point of the edge with more seeds, unless it is so wide that half of the runs
is no edge. It is a pure function of what is known, so a search that was stopped goes on where it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

from suite.protocol import KNOWN, LAST

FIRST_SEEDS, ALL_SEEDS = 3, 8  # the search; the edge (five more)
STRIDE = 2
WIDEST = 10  # points of an edge that are looked at closely; wider (MV-Split's dead: some hot runs are stuck instead) there is none
START = 12  # the point of 5.35e-3: at 100 blocks near the edge of plain and MV-Split, as first runs had shown


@dataclass(frozen=True)
class Point:
    """What is known of a cell at one rate: seeds that lived and seeds that did not."""

    live: frozenset[int] = frozenset()
    dead: frozenset[int] = frozenset()

    @property
    def seeds(self) -> frozenset[int]:
        return self.live | self.dead


def points(runs: Iterable[tuple[float, int, bool]]) -> dict[int, Point]:
    """From (rate, seed, dead) to what is known at each point; rates off the lattice are left out."""
    live, dead = defaultdict(set), defaultdict(set)
    for lr, seed, died in runs:
        if lr in KNOWN:
            (dead if died else live)[KNOWN[lr]].add(seed)
    return {k: Point(frozenset(live[k]), frozenset(dead[k])) for k in sorted(live.keys() | dead.keys())}


def edge(known: Mapping[int, Point]) -> tuple[int | None, int | None]:
    """(hottest point at and below which all live, coldest at and above which all die); None where there is none yet."""
    ks = sorted(known)
    cold = list(takewhile(lambda k: not known[k].dead, ks))
    hot = list(takewhile(lambda k: not known[k].live, reversed(ks)))
    return cold[-1] if cold else None, hot[-1] if hot else None


def wanted(known: Mapping[int, Point], start: int = START) -> list[tuple[int, int]]:
    """The (point, seed) pairs to train next; empty where the cell's edge is known. start: an even point to begin at.

    Every step rests on whole points alone, so that what is asked for in all does not depend on where a search was
    stopped. A pair that broke (out of memory, an error) is asked for again as long as it is not known; whoever trains
    must stop there.
    """

    def lacking(k: int, seeds: Iterable[int] = range(FIRST_SEEDS)) -> list[tuple[int, int]]:
        return [(k, seed) for seed in seeds if seed not in (known[k].seeds if k in known else ())]

    looked = [k for k in known if k % STRIDE == 0]
    if not looked:
        return lacking(start)
    bottom, top = min(looked), max(looked)
    if missing := [pair for k in range(bottom, top + 1, STRIDE) for pair in lacking(k)]:
        return missing
    whole: set[int] = set()  # points of the edge, which have all their seeds
    while True:
        seen = {k: _first(point, ALL_SEEDS if k in whole else FIRST_SEEDS) for k, point in known.items() if k in whole or k in looked}
        low, high = edge(seen)
        if bottom > 0 and (low is None or low < bottom + STRIDE):  # one more, all live, below the edge
            return lacking(bottom - STRIDE)
        if top + STRIDE <= LAST and (high is None or high > top - STRIDE):
            return lacking(top + STRIDE)
        ends = (bottom if low is None else low, top if high is None else high)
        about = range(min(ends), max(ends) + 1)
        if len(about) > WIDEST:
            return []
        if missing := [pair for k in about for pair in lacking(k, range(ALL_SEEDS))]:
            return missing
        if whole.issuperset(about):
            return []
        whole.update(about)


def _first(point: Point, seeds: int) -> Point:
    """What is known of a point from its first seeds alone."""
    wanted = frozenset(range(seeds))
    return Point(point.live & wanted, point.dead & wanted)
