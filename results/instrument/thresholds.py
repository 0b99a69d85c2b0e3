"""What hangs on the thresholds of the crash rule? Every committed curve of the frontier judged again under others.

    PYTHONPATH=. python results/instrument/thresholds.py

writes results/instrument/thresholds.csv. A window longer than 50 steps sees no more of a curve: runs stop 50 steps behind a confirmed
crash. One that lasts to its curve's end stays a crash, and a curve that ends too soon for the rule keeps the outcome that ended it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from suite.environment import ROOT
from suite.evidence.cells import controlled, runs_of
from suite.evidence.edges import REFERENCE, edges, judged, of_search
from suite.evidence.stats import ratio
from suite.presets import PROTOCOLS
from suite.records.store import TABLES, RowsByRun, write_package, write_rows
from suite.verdict.outcome import judge

SETTINGS = [  # name, value, arguments of `judge`; of each the value in use is among them
    *(("stuck", value, {"stuck": value}) for value in (0.45, 0.5, 0.6, 0.7)),
    *(("arming", value, {"below": round(1 - value, 2)}) for value in (0.75, 0.8, 0.85, 0.9)),
    *(("window", value, {"window": value}) for value in (50, 100, 150)),
]
TABLE = TABLES["thresholds"]


def again(folder: Path, runs: pd.DataFrame, **arguments) -> pd.DataFrame:
    """The runs with the outcomes that `judge` gives their curves under other thresholds."""
    parts, out = RowsByRun(folder), []
    warmup = PROTOCOLS[folder.name].warmup
    for run in runs.itertuples():
        curve = parts.frame("curves", run._asdict())
        known = {"constant_loss": run.constant_loss, "window": run.window, "horizon": run.horizon, "warmup": warmup,
                 "grad_norm": curve["grad_norm"].to_numpy(), "heldout_loss": run.heldout_loss}  # fmt: skip
        found = judge(curve["step"].to_numpy(), curve["loss"].to_numpy(), **known | arguments).outcome
        out.append(run.outcome if found == "too_short" else found)
    return runs.assign(outcome=out)


def rows(folder: Path, settings=SETTINGS) -> Iterator[dict[str, object]]:
    """A row for each setting and cell of a folder's newest runs, controlled arm."""
    runs = of_search(controlled(runs_of(folder)))
    for name, value, arguments in settings:
        other = again(folder, runs, **arguments)
        changed = (other["outcome"] != runs["outcome"]).groupby([other["scheme"], other["depth"]]).sum()
        cells = {(scheme, depth): judged(mine) for (scheme, depth), mine in other.groupby(["scheme", "depth"])}
        for edge in edges(other):
            scheme, depth = edge.cell.scheme, edge.cell.depth
            row = {"threshold": name, "value": value, "depth": depth, "scheme": scheme, "runs": len(cells[scheme, depth][0]),
                   "changed": int(changed[scheme, depth]), "lr50": edge.lr50.rate, "lr50_low": edge.lr50.low, "lr50_high": edge.lr50.high,
                   "dead_lr": edge.first_dead, "dead_edge": edge.has_dead_edge}  # fmt: skip
            if scheme != REFERENCE:
                row |= dict(zip(("ratio", "ratio_low", "ratio_high"), ratio(cells[scheme, depth], cells[REFERENCE, depth])))
            yield row


if __name__ == "__main__":
    here = ROOT / "results" / "instrument"
    write_rows(here / TABLE.path, TABLE, list(rows(ROOT / "results" / "frontier")))
    write_package(here)
