"""Edges that were measured again under another rounding: results/rounding/rounding.csv beside the frontier."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from suite.evidence.cells import controlled, runs_of
from suite.evidence.edges import judged
from suite.evidence.stats import Critical, critical, ratio
from suite.records.store import read


class Again(NamedTuple):
    """LR50 of a scheme at a depth under other vector units, compiled or eager, and the frontier's; p: of no difference."""

    scheme: str
    depth: int
    isa: str
    compiled: bool
    found: Critical
    committed: Critical
    p: float


def nudges(results: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the rounding table that count: those of one run under many roundings, and those of an edge under one."""
    runs = read(results / "rounding", "rounding").query("counts")
    rates = runs.groupby(["scheme", "depth", "isa", "compiled", "moved"])["lr"].transform("nunique")
    single = runs.groupby(["scheme", "depth", "lr", "seed"])["isa"].transform("size") > 2
    return runs[single], runs[(rates > 1) & ~single]


def edges_again(results: Path) -> list[Again]:
    """Every edge that was measured again, against that of the frontier, the runs of the two as independent."""
    _, runs = nudges(results)
    frontier, out = controlled(runs_of(results / "frontier")), []
    for (scheme, depth, isa, compiled), mine in runs.groupby(["scheme", "depth", "isa", "compiled"], sort=False):
        theirs = judged(frontier[(frontier["scheme"] == scheme) & (frontier["depth"] == depth)])
        found = judged(mine)
        out.append(Again(scheme, depth, isa, compiled, critical(*found), critical(*theirs), ratio(found, theirs).p))
    return sorted(out, key=lambda one: (one.scheme, not one.compiled))
