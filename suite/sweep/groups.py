"""Which runs are trained as one model. A function of the plan and of what is done, never of the load of a machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from suite.isolation import forks
from suite.protocol import Protocol, Run, short_hash


def default_size(protocol: Protocol, depth: int) -> int:
    """Runs of a group where nobody says: the protocol's on a GPU.

    On a CPU 1: groups of 2 to 16 do 1.05 to 1.21 times the runs per hour there (plain and MV-Split at 100 blocks),
    too little.
    """
    return max(1, protocol.group_blocks // depth) if forks.cards() else 1


def in_groups(runs: Sequence[Run], size: int | None) -> list[list[Run]]:
    """The runs in groups of at most `size` (None: `default_size`) that differ in rate and seed only, as even as can be.

    Those of a group stand in the tables together or not at all, and what is left then falls into the same groups as
    before.
    """
    alike: dict[Run, list[Run]] = defaultdict(list)
    for run in runs:
        alike[replace(run, lr=0.0, seed=0)].append(run)
    groups = []
    for same in alike.values():
        most = size or default_size(same[0].protocol, same[0].depth)
        count, start = -(-len(same) // most), 0
        for i in range(count):
            stop = start + len(same) // count + (i < len(same) % count)
            groups.append(sorted(same[start:stop], key=group_order))
            start = stop
    return groups


def group_order(run: Run) -> str:
    """The key by which the members of a group are ordered, so that the tables alone can name a group again."""
    return run.run_id


def group_id(runs: Sequence[Run]) -> str:
    """g and 11 hex digits over the members of a group in their order; "" for a run alone."""
    return short_hash("g", ",".join(run.run_id for run in runs).encode(), 12) if len(runs) > 1 else ""


def label(runs: Sequence[Run]) -> str:
    """Short human name of a group, for messages."""
    return runs[0].label() if len(runs) == 1 else f"{len(runs)} runs as one, {runs[0].label()} the first"
