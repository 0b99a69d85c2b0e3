"""A search protocol made a plan, round by round: the runs that its cells need next, from what the tables hold.

A cell is a run without its rate and seed. `frontier.wanted` says which rates and seeds a cell lacks: first for its
edge, then for its cold side, then for its loss at its best rate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from suite.isolation.catalogue import Catalogue
from suite.protocol import KNOWN, Run, rate
from suite.records.store import Store
from suite.sweep import frontier
from suite.sweep.groups import default_size
from suite.sweep.plan import Selection, SelectionError, make_plan, protocol_named

LEAST, ROUND = 2, 8  # runs of a cell in a round: a CPU of two cores has one for each; more at once learn less from each other


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


def planned(selection: Selection, results: Path, catalogue: Catalogue, precision: float | None = None,
            replicas: int | None = None) -> tuple[list[Run], list[str] | None]:  # fmt: skip
    """(runs to train, or of a search its next round; a line for each cell of a search, or None).

    precision, replicas: of a search, as `next_runs` has them. Raises SelectionError for a precision without a search.
    """
    if not is_search(selection):
        if precision is not None:
            raise SelectionError(f"--precision: {selection.protocol} is no search, or its rates are chosen by --lrs")
        return make_plan(selection, catalogue=catalogue), None
    wanted, store = cells(selection, catalogue), Store(results / selection.protocol)
    done = store.done_ids()
    rows = [row for row in store.runs() if row["run_id"] in done]
    return next_runs(wanted, rows, frontier.PRECISION if precision is None else precision, replicas)


def cells(selection: Selection, catalogue: Catalogue | None = None) -> list[Run]:
    """One run for each cell of the selection, at the search's first rate. catalogue: as `make_plan` has it."""
    return make_plan(replace(selection, lrs=(rate(frontier.START),), seeds=(0,)), catalogue=catalogue)


def next_runs(cells: Sequence[Run], rows: Iterable[Mapping[str, str]], precision: float = frontier.PRECISION,
              replicas: int | None = None) -> tuple[list[Run], list[str]]:  # fmt: skip
    """(the runs of the next round: the first that each cell lacks; a line for each cell, what is known of it).

    rows: those of runs.csv. precision: as `frontier.wanted` has it. replicas: runs that are trained as one model (None:
    what `groups.default_size` says); a round of a cell has as many, LEAST at least and ROUND at most.
    """
    known = defaultdict(list)
    for row in rows:
        if row["status"] == "done" and row["outcome"] != "too_short" and float(row["lr"]) in KNOWN:
            known[row["scheme"], row["depth"]].append((row["run_id"], float(row["lr"]), int(row["seed"]), row))
    runs, lines = [], []
    for cell in cells:
        mine = [_seen(lr, seed, row) for run_id, lr, seed, row in known[cell.scheme, str(cell.depth)]
                if replace(cell, lr=lr, seed=seed).run_id == run_id]  # fmt: skip
        size = default_size(cell.protocol, cell.depth) if replicas is None else replicas
        found = frontier.wanted(mine, precision, min(ROUND, max(LEAST, size)))
        runs += [replace(cell, lr=rate(k), seed=seed) for k, seed in found.pairs]
        state = "goes on" if found.pairs else "done"
        under = f" under {cell.control}" if cell.control else ""
        lines.append(f"{cell.scheme}{under} at {cell.depth} blocks: edge {found.edge or 'looked for'}; {len(mine)} runs, {state}")
    return runs, lines


def _seen(lr: float, seed: int, row: Mapping[str, str]) -> frontier.Seen:
    usable = row["outcome"] == "survived"
    return frontier.Seen(KNOWN[lr], seed, usable, float(row["heldout_loss" if usable else "constant_loss"]))


def core_hours(cells: Sequence[Run]) -> float:
    """About what the search of some cells costs from nothing."""
    return sum(frontier.core_hours(cell.depth, cell.protocol.length, cell.protocol.patch) for cell in cells)
