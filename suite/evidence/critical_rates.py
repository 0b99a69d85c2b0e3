"""critical_rates.csv: what each cell of the searches is ranked by, worked out from their runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from suite.evidence.cells import cells, runs_of
from suite.evidence.measures import Estimate, Measures, measures
from suite.evidence.stats import Critical
from suite.presets import PROTOCOLS
from suite.records.csvfile import as_text, render
from suite.records.package import is_current
from suite.records.store import TABLES, content, write_package, write_rows

TABLE = TABLES["critical_rates"]
BESIDE = {"scale": "frontier"}  # a protocol of the same settings whose cells are its neighbours: the best of all sets the level of a window


def pooled(results: Path, protocol: str) -> list[Measures]:
    """The numbers of a search protocol's cells, and of the cells of the protocol that it stands beside; none where it has no runs."""
    runs = runs_of(results / protocol)
    if not len(runs) or protocol not in BESIDE:
        return measures(runs) if len(runs) else []
    return measures(pd.concat([runs, runs_of(results / BESIDE[protocol])], ignore_index=True))


def rows(results: Path) -> list[dict[str, object]]:
    """A row for each cell of every search protocol that the folder has runs of."""
    out = []
    for protocol in (p for p in PROTOCOLS.values() if p.search):
        runs = runs_of(results / protocol.name)
        own = set(cells(runs)) if len(runs) else set()
        for found in pooled(results, protocol.name):
            cell = found.cell
            if cell not in own:
                continue
            tokens = runs.loc[(runs["scheme"] == cell.scheme) & (runs["data"] == cell.data), "image_tokens"].iloc[0]
            shared = {"protocol": protocol.name, "horizon": found.edge.horizon, "image_tokens": int(tokens)}
            shared |= {column.name: getattr(cell, column.name) for column in TABLE.columns if column.name in cell._fields}
            out.append(shared | row(found))
    return out


def row(found: Measures) -> dict[str, object]:
    """The numbers of one cell as columns."""
    edge = found.edge
    out = {
        "runs": found.runs, "seeds": found.seeds, "best_lr": found.best_lr, "fresh": found.fresh,
        "sensitivity": found.sensitivity, "window_open": found.window.open,
        "dead_lr": edge.first_dead, "dead_edge": edge.has_dead_edge, "dead_runs": edge.dead.n,
    }  # fmt: skip
    if edge.has_dead_edge:
        out |= {"dead_lr_low": edge.dead.low, "dead_lr_high": edge.dead.high}
    for name, one in (("best_loss", found.best_loss), ("valley_lr", found.valley), ("window", found.window), ("margin", found.margin)):
        out |= _estimate(name, one)
    for name, one in (("lr10", edge.lr10), ("lr50", edge.lr50)):
        out |= _critical(name, one)
    return out


def _estimate(name: str, one: Estimate) -> dict[str, float | None]:
    numbers = {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return {column: None if np.isnan(number) else number for column, number in numbers.items()}


def _critical(name: str, one: Critical) -> dict[str, object]:
    return {name: one.rate, f"{name}_low": one.low, f"{name}_high": one.high, f"{name}_kind": one.kind}


def write(results: Path) -> None:
    """Write the table of a results folder, where it has runs of a search."""
    if made := rows(results):
        write_rows(results / TABLE.path, TABLE, made)
        write_package(results)


def differs(results: Path) -> list[str]:
    """A problem line where the table, or the package beside it, is not what the runs give."""
    path = results / TABLE.path
    if not path.exists():
        return []
    if content(path) != render(TABLE, as_text(path, TABLE, rows(results))) or not is_current(results):
        return [f"{path}: is not what the runs give; mend with: python -m suite report --write"]
    return []
