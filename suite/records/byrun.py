"""What a folder's tables hold of each run: every file is read once, and only when it is asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from suite.records.csvfile import Rows, read_rows, render
from suite.records.frame import of_run
from suite.records.layout import table_files, table_path
from suite.records.packed import content
from suite.records.schema import OF_NO_RUN, TABLES

SIDES = tuple(name for name in TABLES if name not in ("runs", *OF_NO_RUN))  # the tables beside runs.csv that hold rows of runs


class RowsByRun:
    """The tables of a folder, by run. row: that of the run in runs.csv."""

    def __init__(self, folder) -> None:
        self.folder = Path(folder)
        self._shared: dict[str, dict[str, Rows]] = {}

    def rows(self, name: str, row: Mapping[str, str]) -> Rows:
        """The rows of a run in a table that runs share, as text."""
        return self.of_all(name).get(row["run_id"], [])

    def of_all(self, name: str) -> dict[str, Rows]:
        """The rows of a table that runs share, by run id."""
        if name not in self._shared:
            found = defaultdict(list)
            for path in table_files(self.folder, TABLES[name]):
                for line in read_rows(path, TABLES[name]):
                    found[line["run_id"]].append(line)
            self._shared[name] = dict(found)
        return self._shared[name]

    def frame(self, name: str, row: Mapping[str, str]):
        """The curve or the audit of a run as a typed DataFrame, without rows where it has none."""
        return of_run(table_path(self.folder, TABLES[name], row), TABLES[name])

    def written(self, row: Mapping[str, str]) -> dict[str, bytes]:
        """What the tables beside runs.csv hold of a run, each as a file of its own would: a header and its rows."""
        out = {}
        for name in SIDES:
            table = TABLES[name]
            if table.by_run:
                path = table_path(self.folder, table, row)
                out[name] = content(path) if path.exists() else b""
            else:
                rows = self.rows(name, row)
                out[name] = render(table, rows) if rows else b""
        return {name: data for name, data in out.items() if data}
