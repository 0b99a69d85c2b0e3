"""critical_rates.csv: what each cell of the searches is ranked by, worked out from their runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from suite.evidence.cells import cells, runs_of
from suite.evidence.measures import Estimate, Measures, measures
from suite.evidence.stats import Critical
from suite.presets import PROTOCOLS
from suite.records.csvfile import as_text, render
from suite.records.package import is_current
from suite.records.schema import Table
from suite.records.store import TABLES, content, write_package, write_rows

TABLE = TABLES["critical_rates"]
# a protocol of the same settings whose cells are its neighbours: the best of all sets the level of a window
BESIDE = {"scale": "frontier", "controls": "frontier"}


def pool(results: Path, protocol: str) -> pd.DataFrame:
    """The runs of a protocol, and those of the one that it stands beside."""
    return pd.concat([runs_of(folder) for folder in _folders(results, protocol)], ignore_index=True)


def pooled(results: Path, protocol: str) -> list[Measures]:
    """The numbers of a search protocol's cells, and of the cells of the protocol that it stands beside; none where it has no runs."""
    files = [folder / TABLES["runs"].path for folder in _folders(results, protocol)]
    return list(_pooled(results, protocol, tuple(path.read_bytes() if path.exists() else b"" for path in files)))


@lru_cache(maxsize=8)
def _pooled(results: Path, protocol: str, held: tuple[bytes, ...]) -> tuple[Measures, ...]:
    """Remembered by what the runs' tables hold: tables, pages and hypotheses ask for the same cells."""
    return tuple(measures(pool(results, protocol))) if len(runs_of(results / protocol)) else ()


def _folders(results: Path, protocol: str) -> list[Path]:
    return [results / name for name in (protocol, BESIDE.get(protocol)) if name]


def rows(results: Path) -> list[dict[str, object]]:
    """A row for each cell of every search protocol that the folder has runs of."""
    out = []
    for shared, every, runs in measured(results):
        own = cells(runs)
        for found in every:
            cell = found.cell
            if cell not in own:
                continue
            tokens = runs.loc[(runs["scheme"] == cell.scheme) & (runs["data"] == cell.data), "image_tokens"].iloc[0]
            here = {column.name: getattr(cell, column.name) for column in TABLE.columns if column.name in cell._fields}
            out.append(shared | {"image_tokens": int(tokens)} | here | row(found))
    return out


def measured(results: Path) -> Iterator[tuple[dict[str, object], list[Measures], pd.DataFrame]]:
    """Of every search protocol that the folder has runs of: what its rows share, the numbers of its cells and of those it stands
    beside, its runs."""
    for protocol in (p for p in PROTOCOLS.values() if p.search):
        if found := pooled(results, protocol.name):
            yield {"protocol": protocol.name, "horizon": found[0].edge.horizon}, found, runs_of(results / protocol.name)


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
    write_table(results, TABLE, rows(results))


def differs(results: Path) -> list[str]:
    """A problem line where the table, or the package beside it, is not what the runs give."""
    return table_differs(results, TABLE, rows)


def write_table(results: Path, table: Table, made: list[dict[str, object]]) -> None:
    """Write a table that follows from the runs of a results folder, and the package beside it; nothing where there is no row."""
    if made:
        write_rows(results / table.path, table, made)
        write_package(results)


def table_differs(results: Path, table: Table, make: Callable[[Path], list[dict[str, object]]]) -> list[str]:
    """A problem line where such a table, or the package beside it, is not what the runs give; nothing where it is not there."""
    path = results / table.path
    if path.exists() and (content(path) != render(table, as_text(path, table, make(results))) or not is_current(results)):
        return [f"{path}: is not what the runs give; mend with: python -m suite report --write"]
    return []
