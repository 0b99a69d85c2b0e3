"""The edges of a results folder: at which rate half of a cell's runs (LR50@H), or a tenth (LR10@H), are not usable by step H.

Runs of one horizon and one protocol version are compared, never others. An edge moves with the scale of a scheme's
branch, since a step of Adam does less through a smaller one: it compares schemes of one scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from suite.evidence.cells import Cell, cells, controlled, runs_of
from suite.evidence.stats import Critical, critical, holm, ratio, upward
from suite.protocol import NO_PARAMS
from suite.records.store import read
from suite.records.values import format_table
from suite.verdict.best import FRESH
from suite.verdict.outcome import DEAD, UNUSABLE

TENTH = 0.1  # of the runs
PRIMARY = "mvsplit", "plain"  # of one scale, the two that the paper compares
REFERENCE = PRIMARY[1]  # what an edge is compared with


@dataclass(frozen=True)
class Edge:
    """A cell with its critical rates by step `horizon`.

    lr50, lr10: where half, a tenth, of the runs are not usable. dead: where half are dead, of the dead and the living
    alone; the stuck and the untrained, who can no longer die, are set aside. crossed: the coldest rate at which half of
    these or more are dead, None where there is none.
    """

    cell: Cell
    horizon: int
    lr50: Critical
    lr10: Critical
    dead: Critical
    crossed: float | None

    @property
    def has_dead_edge(self) -> bool:
        """Whether the dead have an edge: some died, and never fewer at a hotter rate."""
        return self.dead.kind != "above" and not self.dead.falls

    @property
    def first_dead(self) -> float | None:
        """The rate at which half are dead; without an edge the coldest rate at which half or more are, None where there is none."""
        return self.dead.middle if self.has_dead_edge else self.crossed


Judged = tuple[np.ndarray, np.ndarray, np.ndarray]  # rates, seeds, and whether each run is counted


def of_search(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that rates are chosen by; all others measure what is reached at a rate that was chosen."""
    return runs[runs["seed"] < FRESH]


def judged(runs: pd.DataFrame) -> Judged:
    """The runs of a cell's search, the unusable counted, from the coldest rate on at which half are usable: colder ones were only too
    slow."""
    runs = of_search(runs)
    return upward(runs["lr"].to_numpy(), runs["seed"].to_numpy(), runs["outcome"].isin(UNUSABLE).to_numpy())


def edge_of(cell: Cell, runs: pd.DataFrame) -> Edge:
    """The edge of one cell, by the runs of its search. Raises ValueError where these have different horizons."""
    horizons = sorted(set(runs["horizon"]))
    if len(horizons) > 1:
        raise ValueError(f"runs of {cell.scheme} at {cell.depth} blocks have horizons {horizons}: critical rates are of one")
    fair = of_search(runs)
    fair = fair[fair["outcome"].isin([*DEAD, "survived"])]
    killed = fair["lr"].to_numpy(), fair["seed"].to_numpy(), fair["outcome"].isin(DEAD).to_numpy()
    share = pd.Series(killed[2]).groupby(killed[0]).mean().sort_index()
    crossed = next((float(lr) for lr in share.index[share >= 0.5]), None)
    known = judged(runs)
    return Edge(cell, horizons[0], critical(*known), critical(*known, TENTH), critical(*killed), crossed)


def edges(runs: pd.DataFrame) -> list[Edge]:
    """The edge of every cell, in order. Raises ValueError where runs of a cell have different horizons."""
    return [edge_of(cell, mine) for cell, mine in cells(runs).items()]


def edges_beside(mine: Path, committed: Path) -> str:
    """The edges of one results folder as a text table, and below each depth those of the committed one."""
    shown = [(whose, edge) for whose, folder in (("yours", mine), ("committed", committed))
             if whose == "yours" or folder.resolve() != mine.resolve() for edge in edges(runs_of(folder))]  # fmt: skip
    depths = {edge.cell.depth for whose, edge in shown if whose == "yours"}
    shown = sorted(((whose, edge) for whose, edge in shown if edge.cell.depth in depths), key=lambda item: item[1].cell.depth)
    rows = [{"depth": edge.cell.depth, "whose": whose, "scheme": edge.cell.label,
             "params": "" if edge.cell.params == NO_PARAMS else edge.cell.params,
             "LR50": describe(edge.lr50), "LR10": describe(edge.lr10)} for whose, edge in shown]  # fmt: skip
    horizons = ", ".join(map(str, sorted({edge.horizon for _, edge in shown})))
    return (f"{format_table(rows, ('depth', 'whose', 'scheme', 'params', 'LR50', 'LR10'))}\n"
            f"the rates at which half, and a tenth, of the runs are not usable by step {horizons}")  # fmt: skip


def describe(found: Critical) -> str:
    """A critical rate in words, with the runs behind it: "5.8e-03 [5.5e-03, 6.1e-03] (n = 40)"."""
    falls = f"; not monotone at {', '.join(f'{rate:.2e}' for rate in found.falls)}" if found.falls else ""
    return f"{found} (n = {found.n}{falls})"


@dataclass(frozen=True)
class Ratio:
    """LR50 of a scheme over another's at a depth: None where an end is open; n: runs of both sides.

    The interval takes the two cells as independent (`stats.ratio`). p: of a ratio of 1; adjusted: the same after
    Holm, over the comparisons that were fixed beforehand; None for all others, which were looked at (exploratory).
    """

    scheme: str
    over: str
    depth: int
    ratio: float | None
    low: float
    high: float
    p: float
    n: tuple[int, int]
    adjusted: float | None = None

    def __str__(self) -> str:
        """The ratio with its interval, or that alone."""
        middle = "" if self.ratio is None else f"{self.ratio:.2f} "
        return f"{middle}[{self.low:.2f}, {'∞' if self.high == np.inf else format(self.high, '.2f')}]"


def compared(scheme: str, depth: int, mine: pd.DataFrame, plain: pd.DataFrame) -> Ratio:
    """LR50 of a scheme's runs over that of plain's at the same depth."""
    return Ratio(scheme, REFERENCE, depth, *ratio(judged(mine), judged(plain)), (len(mine), len(plain)))


def ratios(runs: pd.DataFrame, fixed: pd.DataFrame) -> list[Ratio]:
    """LR50 of every scheme over plain's, per depth, of the controlled arm; fixed: the rows of `hypotheses` of its protocol."""
    found = {(cell.scheme, cell.depth): mine for cell, mine in cells(of_search(controlled(runs))).items()}
    beforehand = {(row.scheme, row.over, row.depth) for row in fixed.itertuples() if row.quantity == "lr50"}
    out = []
    for (scheme, depth), mine in found.items():
        if scheme != REFERENCE and (other := found.get((REFERENCE, depth))) is not None:
            out.append(compared(scheme, depth, mine, other))
    asked = [one for one in out if (one.scheme, one.over, one.depth) in beforehand]
    adjusted = dict(zip(asked, holm([one.p for one in asked])))
    return [replace(one, adjusted=adjusted.get(one)) for one in out]


def hypotheses(results: Path, protocol: str) -> pd.DataFrame:
    """The comparisons of a protocol that were fixed before its runs were looked at."""
    found = read(results, "hypotheses")
    return found[found["protocol"] == protocol]
