"""The rule that chooses the laptop protocol's two learning rates from the frontier, and says which of its cells are decided.

Written down when the first runs of the frontier were in and none of them had died. A run's fate is dead, unusable (stuck or untrained) or
live.

cool: the hottest rate at which every cell of the frontier has runs of three seeds or more, and all of them live.
hot: of the rates that every scheme at 100 blocks has three seeds or more at, hotter than cool, and at which plain at 100 blocks is
    uniform and dead, here and at its nearest colder rate of the frontier, the one at which most cells are uniform, here and at their
    nearest rate towards their edge; the coldest of several.
decided: of a cell at the hot rate: all of seeds 0-7 have one fate, all of them have it at the neighbour on the lattice towards the
    cell's edge too, and all of seeds 8-15 confirm it at the hot rate. Else it is a coin, with its fraction of dead.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from suite.evidence.edges import cells
from suite.protocol import KNOWN, rate
from suite.sweep.frontier import FIRST_SEEDS
from suite.verdict.outcomes import fate

FIRST, CONFIRMING = range(8), range(8, 16)
DEEPEST, REFERENCE = 100, "plain"

Fates = Mapping[float, Mapping[int, str]]  # by rate and seed, of one cell


def fates(rows: Iterable[Mapping[str, str]]) -> dict[tuple[str, int], Fates]:
    """By (scheme, depth) of the controlled arm: rate -> seed -> fate."""
    out: dict[tuple[str, int], dict[float, dict[int, str]]] = {}
    for cell, mine in cells(rows).items():
        if cell[1] == "controlled":
            found = out.setdefault((cell[0], int(cell[-1])), defaultdict(dict))
            for row in mine:
                found[float(row["lr"])][int(row["seed"])] = fate(row["outcome"])
    return out


def _uniform(found: Fates, lr: float) -> str:
    """The one fate of the runs at a rate; "" where there are several, or too few runs."""
    seen = set(found.get(lr, {}).values())
    return seen.pop() if len(seen) == 1 and len(found[lr]) >= FIRST_SEEDS else ""


def _toward_edge(found: Fates, lr: float, tested: Iterable[float]) -> float | None:
    """The nearest rate of `tested` on the side where the cell's fate changes: colder for the dead, hotter for the living."""
    colder = _uniform(found, lr) != "live"
    side = [other for other in tested if (other < lr if colder else other > lr)]
    return (max if colder else min)(side, default=None)


def rates(rows: Iterable[Mapping[str, str]]) -> tuple[float, float]:
    """(cool, hot). Raises ValueError where no rate fits the rule."""
    found = fates(rows)
    cool = [lr for lr in KNOWN if all(_uniform(cell, lr) == "live" for cell in found.values())]
    if not cool:
        raise ValueError("no rate at which every cell of the frontier lives")

    def uniform_cells(lr: float) -> int:
        return sum(_stands(cell, lr) for cell in found.values())

    deepest = [cell for (_, depth), cell in found.items() if depth == DEEPEST]
    reference = found[REFERENCE, DEEPEST]
    hot = [lr for lr in KNOWN if lr > cool[-1] and all(len(cell.get(lr, {})) >= FIRST_SEEDS for cell in deepest)
           and _uniform(reference, lr) == "dead" and _stands(reference, lr)]  # fmt: skip
    if not hot:
        raise ValueError(f"no rate above {cool[-1]:g} at which {REFERENCE} at {DEEPEST} blocks is dead in all runs")
    return cool[-1], max(hot, key=lambda lr: (uniform_cells(lr), -lr))


def _stands(found: Fates, lr: float) -> bool:
    """Whether a cell is uniform at a rate and at the nearest tested one towards its edge; a living cell's edge may not be tested."""
    fate_here = _uniform(found, lr)
    other = _toward_edge(found, lr, found) if fate_here else None
    return bool(fate_here) and (_uniform(found, other) == fate_here if other is not None else fate_here == "live")


def _neighbour(here: Mapping[int, str], lr: float) -> float:
    """The next rate of the lattice towards the edge of a cell whose first seeds ended so: hotter for the living, else colder."""
    return rate(KNOWN[lr] + (1 if {here.get(seed) for seed in FIRST} - {None} == {"live"} else -1))


def standing(rows: Iterable[Mapping[str, str]], lr: float) -> dict[tuple[str, int], dict[str, object]]:
    """What is known of each cell at a rate of the lattice: `counts` of fates over seeds 0-15, `n`, and `decided`.

    decided: a fate, "" for a coin, or None where runs that the rule asks for are missing. Empty for a rate off the lattice.
    """
    out = {}
    if lr not in KNOWN:
        return out
    for key, found in fates(rows).items():
        here = found.get(lr, {})
        counts = Counter(here.values())
        neighbour = found.get(_neighbour(here, lr), {})
        asked = [here.get(seed) for seed in (*FIRST, *CONFIRMING)] + [neighbour.get(seed) for seed in FIRST]
        seen = set(asked)
        decided = "" if len(seen - {None}) > 1 else None if None in seen else seen.pop()
        out[key] = {"counts": dict(counts), "n": sum(counts.values()), "decided": decided}
    return out


UNSURE = "coin", "none lives", "at its edge"


def in_words(cell: Mapping[str, object]) -> str:
    """A cell of `standing`: "coin: 1 of 8 dead, 7 of 8 live"; counts alone where runs that the rule asks for are missing."""
    counts, coin, none, edge = cell["counts"], *UNSURE
    named = [name for name in ("dead", "unusable", "live") if name in counts]
    unsure = edge if len(named) == 1 else coin if "live" in counts else none  # edge: the neighbour on the lattice has another fate
    word = {"": f"{unsure}: ", None: ""}.get(cell["decided"], "decided: ")
    return word + ", ".join(f"{counts[name]} of {cell['n']} {name}" for name in named)


def missing(rows: Iterable[Mapping[str, str]], lr: float) -> list[tuple[str, int, float, int]]:
    """(scheme, depth, rate, seed) of the runs that `standing` still asks for, cells that are coins already left out."""
    out = []
    for (scheme, depth), found in fates(rows).items():
        here = found.get(lr, {})
        if len({here.get(seed) for seed in FIRST} - {None}) > 1:
            continue
        other = _neighbour(here, lr)
        out += [(scheme, depth, at, seed) for at, seeds in ((lr, (*FIRST, *CONFIRMING)), (other, FIRST)) for seed in seeds
                if seed not in found.get(at, {})]  # fmt: skip
    return out
