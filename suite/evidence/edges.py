"""The critical learning rates of a results folder: LR50@H and LR50u@H of each cell, and the comparisons between schemes.

A cell is a scheme (with its arm, parameters, writers, data and precision) at a depth. Rows of one horizon and one protocol version are
compared, never others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from suite.evidence.stats import Critical, critical, ratio, upward
from suite.protocol import NO_PARAMS, SCHEMES
from suite.records.tables import Store, format_table
from suite.verdict.crash import STUCK
from suite.verdict.outcomes import DEAD, UNUSABLE

CELL = ("scheme", "arm", "params", "writers", "gate_lr", "data", "compiled", "depth")
ENOUGH = 5  # runs that each end of a bracket needs; issue 14
PRIMARY = ("mvsplit", "plain")  # the one comparison that was fixed before the runs, per depth; all others are looked at


@dataclass(frozen=True)
class Edge:
    """A cell with its critical rates: `lr50` counts the dead by step `horizon`, `lr50u` those that never trained too."""

    cell: tuple[str, ...]
    depth: int
    horizon: int
    lr50: Critical
    lr50u: Critical

    @property
    def scheme(self) -> str:
        return self.cell[0]

    @property
    def label(self) -> str:
        """The scheme, with its arm and parameters where these are not the plan's."""
        arm = "" if self.cell[1] == "controlled" else f" {self.cell[1]}"
        return self.scheme + arm


Judged = tuple[tuple[float, ...], tuple[int, ...], tuple[bool, ...]]  # rates, seeds, and whether each run is counted


def cells(rows: Iterable[dict[str, str]]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    """The finished runs of the newest version by cell, in the project's order of schemes; too short ones are left out."""
    rows = [row for row in rows if row["status"] == "done" and row["outcome"] != "too_short"]
    newest = max((int(row["protocol_version"]) for row in rows), default=0)
    found = defaultdict(list)
    for row in rows:
        if int(row["protocol_version"]) == newest:
            found[tuple(row[name] for name in CELL)].append(row)
    place = {name: i for i, name in enumerate(SCHEMES)}
    return dict(sorted(found.items(), key=lambda item: (place.get(item[0][0], len(place)), item[0][:-1], int(item[0][-1]))))


def judged(rows: Sequence[dict[str, str]], bad: Sequence[str] = DEAD, stuck: float = STUCK) -> Judged:
    """(rates, seeds, counted) of a cell's runs. stuck: the share of c above which both final losses make a run stuck."""

    def outcome(row: dict[str, str]) -> str:
        if row["outcome"] not in ("survived", "stuck"):
            return row["outcome"]
        level = min(float(row[name] or "inf") for name in ("final_loss", "heldout_loss"))
        return "stuck" if level > stuck * float(row["constant_loss"]) else "survived"

    return (tuple(float(row["lr"]) for row in rows), tuple(int(row["seed"]) for row in rows), tuple(outcome(row) in bad for row in rows))


@cache
def _critical(runs: Judged, up: bool) -> Critical:
    """Memoised: figures, tables and tests ask for the same cells, and a bootstrap takes seconds."""
    return critical(*(upward(*runs) if up else runs))


def edges(rows: Iterable[dict[str, str]], stuck: float = STUCK) -> list[Edge]:
    """The critical rates of every cell. Raises ValueError where runs of a cell have different horizons."""
    out = []
    for cell, mine in cells(rows).items():
        horizons = {int(row["horizon"]) for row in mine}
        if len(horizons) > 1:
            raise ValueError(f"runs of {cell[0]} at {cell[-1]} blocks have horizons {sorted(horizons)}: critical rates are of one")
        out.append(Edge(cell, int(cell[-1]), horizons.pop(), _critical(judged(mine), up=False),
                        _critical(judged(mine, UNUSABLE, stuck), up=True)))  # fmt: skip
    return out


def edge_rows(rows: Iterable[dict[str, str]], stuck: float = STUCK) -> list[dict[str, object]]:
    """`edges` as rows for people: texts with n."""
    return [
        {"scheme": edge.label, "params": "" if edge.cell[2] == NO_PARAMS else edge.cell[2], "depth": edge.depth, "horizon": edge.horizon,
         "LR50": said(edge.lr50), "LR50u": said(edge.lr50u)}
        for edge in edges(rows, stuck)
    ]  # fmt: skip


def edges_beside(mine: Path, committed: Path) -> str:
    """The critical rates of one results folder as a text table, and below each depth those of the committed one."""
    sides = [("yours", mine)] + [("committed", committed)] * (mine.resolve() != committed.resolve() and (committed / "runs.csv").exists())
    rows = [{"whose": whose, **row} for whose, folder in sides for row in edge_rows(Store(folder).runs())]
    depths = {row["depth"] for row in rows if row["whose"] == "yours"}
    shown = sorted((row for row in rows if row["depth"] in depths), key=lambda row: row["depth"])  # yours come first
    horizons = ", ".join(str(horizon) for horizon in sorted({row["horizon"] for row in shown}))
    text = format_table(shown, ("depth", "whose", "scheme", "params", "LR50", "LR50u"))
    return f"{text}\nby step {horizons}; LR50u counts the stuck too"


def said(found: Critical) -> str:
    """A critical rate in words, with the runs behind it: "5.8e-03 [5.5e-03, 6.1e-03] (n = 40)"."""
    ends = {
        "fit": "", "bracket": f": {found.n_low} at the lower end, {found.n_high} at the upper",
        "above": f": {found.died_there} of {found.n_low} dead at that rate",
        "below": f": {found.died_there} of {found.n_high} dead at that rate",
    }[found.kind]  # fmt: skip
    thin = "; too few" if found.kind != "fit" and min(found.n_low or ENOUGH, found.n_high or ENOUGH) < ENOUGH else ""
    falls = f"; not monotone at {', '.join(f'{rate:.2e}' for rate in found.falls)}" if found.falls else ""
    return f"{found} (n = {found.n}{ends}{thin}{falls})"


def ratios(rows: Iterable[dict[str, str]], bad: Sequence[str] = DEAD) -> list[dict[str, object]]:
    """LR50 of every scheme over plain's per depth: ratio (None where an end is open), low, high, kind and n of both sides.

    kind: "primary" for MV-Split over plain, the comparison fixed before the runs; "unadjusted" for the rest, whose intervals are each
    for itself at 95 %. Of fits the interval is a paired bootstrap over seeds; else low and high are what the brackets leave.
    """
    found = cells(rows)
    main = {(cell[0], cell[-1]): judged(mine, bad) for cell, mine in found.items() if cell[1] == "controlled"}
    out = []
    for (scheme, depth), mine in main.items():
        if scheme == PRIMARY[1] or (PRIMARY[1], depth) not in main:
            continue
        plain = main[PRIMARY[1], depth]
        if bad != DEAD:
            mine, plain = (tuple(map(tuple, upward(*side))) for side in (mine, plain))
        middle, low, high = _ratio(mine, plain)
        out.append({"scheme": scheme, "depth": int(depth), "ratio": middle, "low": low, "high": high, "n": len(mine[0]),
                    "n_plain": len(plain[0]), "kind": "primary" if scheme == PRIMARY[0] else "unadjusted"})  # fmt: skip
    return out


_ratio = cache(ratio)
