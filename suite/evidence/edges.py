"""The critical learning rates of a results folder: LR50@H and LR50u@H of each cell, and the comparisons between
schemes.

Runs of one horizon and one protocol version are compared, never others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from suite.evidence.cells import Cell, cells, controlled, runs_of
from suite.evidence.stats import Critical, critical, ratio, upward
from suite.protocol import NO_PARAMS
from suite.records.cells import format_table
from suite.verdict.crash import STUCK
from suite.verdict.outcomes import DEAD, UNUSABLE

PRIMARY = ("mvsplit", "plain")  # the one comparison that was fixed before the runs, per depth; all others are looked at


@dataclass(frozen=True)
class Edge:
    """A cell with its critical rates: `lr50` counts the dead by step `horizon`, `lr50u` the never trained too."""

    cell: Cell
    horizon: int
    lr50: Critical
    lr50u: Critical


Judged = tuple[tuple[float, ...], tuple[int, ...], tuple[bool, ...]]  # rates, seeds, and whether each run is counted


def judged(runs: pd.DataFrame, bad: Sequence[str] = DEAD, stuck: float = STUCK) -> Judged:
    """(rates, seeds, counted) of a cell's runs. stuck: the share of c that both final losses of the stuck exceed."""
    level = runs[["final_loss", "heldout_loss"]].fillna(np.inf).min(axis=1)
    trained = np.where(level > stuck * runs["constant_loss"], "stuck", "survived")
    outcome = runs["outcome"].mask(runs["outcome"].isin(["survived", "stuck"]), trained)
    return tuple(runs["lr"]), tuple(runs["seed"]), tuple(outcome.isin(bad))


def edges(runs: pd.DataFrame, stuck: float = STUCK) -> list[Edge]:
    """The critical rates of every cell. Raises ValueError where runs of a cell have different horizons."""
    out = []
    for cell, mine in cells(runs).items():
        horizons = sorted(set(mine["horizon"]))
        if len(horizons) > 1:
            raise ValueError(f"runs of {cell.scheme} at {cell.depth} blocks have horizons {horizons}: critical rates are of one")
        out.append(Edge(cell, horizons[0], critical(*judged(mine)), critical(*upward(*judged(mine, UNUSABLE, stuck)))))
    return out


def edges_beside(mine: Path, committed: Path) -> str:
    """The critical rates of one results folder as a text table, and below each depth those of the committed one."""
    shown = [(whose, edge) for whose, folder in (("yours", mine), ("committed", committed))
             if whose == "yours" or folder.resolve() != mine.resolve() for edge in edges(runs_of(folder))]  # fmt: skip
    depths = {edge.cell.depth for whose, edge in shown if whose == "yours"}
    shown = sorted(((whose, edge) for whose, edge in shown if edge.cell.depth in depths), key=lambda item: item[1].cell.depth)
    rows = [{"depth": edge.cell.depth, "whose": whose, "scheme": edge.cell.label,
             "params": "" if edge.cell.params == NO_PARAMS else edge.cell.params,
             "LR50": describe(edge.lr50), "LR50u": describe(edge.lr50u)} for whose, edge in shown]  # fmt: skip
    horizons = ", ".join(map(str, sorted({edge.horizon for _, edge in shown})))
    return f"{format_table(rows, ('depth', 'whose', 'scheme', 'params', 'LR50', 'LR50u'))}\nby step {horizons}; LR50u counts the stuck too"


def describe(found: Critical) -> str:
    """A critical rate in words, with the runs behind it: "5.8e-03 [5.5e-03, 6.1e-03] (n = 40)"."""
    ends = {
        "fit": "",
        "above": f": {found.died_there} of {found.n_low} lost at the hottest rate",
        "below": f": {found.died_there} of {found.n_high} lost at the coldest rate",
    }[found.kind]  # fmt: skip
    falls = f"; not monotone at {', '.join(f'{rate:.2e}' for rate in found.falls)}" if found.falls else ""
    return f"{found} (n = {found.n}{ends}{falls})"


@dataclass(frozen=True)
class Ratio:
    """LR50 of a scheme over plain's at a depth: None where an end is open; n: runs of both sides.

    low, high: the 95 % interval; p: two-sided, of a ratio of 1. The primary comparison is the one fixed before the
    runs; the intervals of the others are unadjusted, each for itself.
    """

    scheme: str
    depth: int
    ratio: float | None
    low: float
    high: float
    p: float
    n: tuple[int, int]

    @property
    def primary(self) -> bool:
        return self.scheme == PRIMARY[0]

    def __str__(self) -> str:
        """The ratio with its interval, or that alone."""
        middle = "" if self.ratio is None else f"{self.ratio:.2f} "
        return f"{middle}[{self.low:.2f}, {'∞' if self.high == np.inf else format(self.high, '.2f')}]"


def ratios(runs: pd.DataFrame, bad: Sequence[str] = DEAD) -> list[Ratio]:
    """The ratios of every scheme to plain, per depth."""
    found = {(cell.scheme, cell.depth): judged(mine, bad) for cell, mine in cells(controlled(runs)).items()}
    if bad != DEAD:
        found = {key: tuple(map(tuple, upward(*mine))) for key, mine in found.items()}
    return [Ratio(scheme, depth, *_ratio(mine, plain), (len(mine[0]), len(plain[0]))) for (scheme, depth), mine in found.items()
            if scheme != PRIMARY[1] and (plain := found.get((PRIMARY[1], depth)))]  # fmt: skip


_ratio = cache(ratio)  # findings and tables ask for the same ones
