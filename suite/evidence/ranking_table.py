"""ranking.csv: the ranking of the schemes at every depth, with how they die and what a step costs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from suite.evidence.bench import FOLDER, on_cpu
from suite.evidence.cells import Cell, cells
from suite.evidence.critical_rates import measured, row, table_differs, write_table
from suite.evidence.edges import REFERENCE
from suite.evidence.families import start
from suite.evidence.hypotheses import equal_deaths
from suite.evidence.ranking import placed, untuned
from suite.records.store import TABLES, read

TABLE = TABLES["ranking"]


def rows(results: Path) -> list[dict[str, object]]:
    """A row for each cell of every search protocol that the folder has runs of."""
    out, costs = [], read(results / FOLDER, "bench") if (results / FOLDER / TABLES["bench"].path).exists() else None
    for shared, found, runs in measured(results):
        by_cell, ready = cells(runs), [one for one in found if one.fresh] or found
        for place in dict.fromkeys((one.cell.depth, one.cell.data) for one in ready):
            for one, (first, last) in placed([one for one in ready if (one.cell.depth, one.cell.data) == place]):
                if one.cell not in by_cell:
                    continue
                equal, dead = equal_deaths(by_cell[one.cell])
                own = {"place": first, "place_last": last, "tied_with_best": first == 1, "scale": start(one.cell),
                       "untuned_loss": untuned(one, found), "lr50_runs": one.edge.lr50.n, "deaths": dead, "deaths_equal": equal,
                       "step_over_plain": cost(costs, one.cell)}  # fmt: skip
                everything = shared | one.cell._asdict() | row(one) | own
                out.append({column.name: everything.get(column.name) for column in TABLE.columns})
    return out


def cost(bench: pd.DataFrame | None, cell: Cell) -> float | None:
    """Time of a step over plain's at that depth, both timed in turn; None where that was not measured."""
    over = {} if bench is None else on_cpu(bench, "step", cell.depth, "over_plain")
    return 1.0 if len(over) and cell.scheme == REFERENCE else over.get(cell.scheme)


def write(results: Path) -> None:
    """Write the table of a results folder, where it has runs of a search."""
    write_table(results, TABLE, rows(results))


def differs(results: Path) -> list[str]:
    """A problem line where the table, or the package beside it, is not what the runs give."""
    return table_differs(results, TABLE, rows)
