"""A search protocol made a plan, round by round: the runs that the edges of its cells need next, from what the tables hold.

A cell is a run without its rate and seed. `frontier.wanted` says which rates and seeds a cell lacks, first for the
edge of the dead (LR50), then for that of the dead and the stuck (LR50u).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from suite.isolation.catalogue import Catalogue
from suite.protocol import Run, rate
from suite.records.store import Store
from suite.sweep import frontier
from suite.sweep.plan import Selection, SelectionError, make_plan, protocol_named
from suite.verdict.outcome import DEAD, UNUSABLE

RUNS = 45  # of a cell: about seven rates of 3 seeds and four with 5 more; in results/frontier 24 to 67, not all of them at their end
PATCH = 2  # of the runs that MS was measured on
MS = 1.1  # a block and step of one worker: all seconds of results/frontier/throughput.csv over the blocks and steps of its runs


def is_search(selection: Selection) -> bool:
    """Whether rates are to be looked for. Raises SelectionError for flags that a search has no use for."""
    protocol = protocol_named(selection.protocol)
    if not protocol.search:
        return False
    if selection.lrs and not selection.seeds:
        raise SelectionError(f"--lrs: {protocol.name} looks for its rates by itself; to choose them, name --seeds too")
    if selection.seeds and not selection.lrs:
        raise SelectionError(f"--seeds: {protocol.name} chooses them with its rates; to choose both, name --lrs too")
    if not selection.lrs and selection.shard != (1, 1):
        raise SelectionError(f"--shard: {protocol.name} looks at all that is done; name --lrs and --seeds to share them out")
    return not selection.lrs


def planned(selection: Selection, results: Path, catalogue: Catalogue) -> tuple[list[Run], list[Run] | None]:
    """(runs to train, the cells of a search or None): what a selection asks for; of a search its next round."""
    if not is_search(selection):
        return make_plan(selection, catalogue=catalogue), None
    wanted, store = cells(selection, catalogue), Store(results / selection.protocol)
    done = store.done_ids()
    return next_runs(wanted, [row for row in store.runs() if row["run_id"] in done]), wanted


def cells(selection: Selection, catalogue: Catalogue | None = None) -> list[Run]:
    """One run for each cell of the selection, at the search's first rate. catalogue: as `make_plan` has it."""
    return make_plan(replace(selection, lrs=(rate(frontier.START),), seeds=(0,)), catalogue=catalogue)


def next_runs(cells: Sequence[Run], rows: Iterable[Mapping[str, str]]) -> list[Run]:
    """The runs of the next round: the first that each cell lacks, none where every edge is known. rows: those of runs.csv."""
    known = defaultdict(list)
    for row in rows:
        if row["status"] == "done":
            known[row["scheme"], row["depth"]].append((row["run_id"], float(row["lr"]), int(row["seed"]), row["outcome"]))
    out = []
    for cell in cells:
        found = known[cell.scheme, str(cell.depth)]
        mine = [(lr, seed, outcome) for run_id, lr, seed, outcome in found if replace(cell, lr=lr, seed=seed).run_id == run_id]
        for bad in (DEAD, UNUSABLE):
            if pairs := frontier.wanted(frontier.points((lr, seed, outcome in bad) for lr, seed, outcome in mine)):
                out += [replace(cell, lr=rate(k), seed=seed) for k, seed in pairs]
                break
    return out


def core_hours(cells: Sequence[Run]) -> float:
    """About what a whole search costs on a processor core like ours; the time of a block is taken to grow with its image tokens."""
    return sum(RUNS * cell.depth * cell.protocol.length * (PATCH / cell.protocol.patch) ** 2 for cell in cells) * MS / 3.6e6
