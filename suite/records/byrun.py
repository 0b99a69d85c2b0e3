"""What a folder's tables hold of each run, and a digest of it, for what cannot be computed again: any change of a cell or picture shows.

Every file is read once, and only when it is asked for. The digest finds changes and accidents, not a forger, who can
write a new digest beside a new number: against that only training again helps.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from suite.controls import under
from suite.presets import PROTOCOLS
from suite.protocol import Run, short_hash
from suite.records.csvfile import Rows, read_rows, render
from suite.records.frame import of_run
from suite.records.layout import table_files, table_path
from suite.records.packed import content
from suite.records.schema import DERIVED, OF_NO_RUN, TABLES

SIDES = tuple(name for name in TABLES if name not in ("runs", *OF_NO_RUN))  # the tables beside runs.csv that hold rows of runs
DIGESTED = replace(TABLES["runs"], columns=tuple(column for column in TABLES["runs"].columns if column.name not in DERIVED))
CLOCK = "throughput"  # the one of them that differs between repeats of a run


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
        for table in (TABLES[name] for name in SIDES):
            if table.by_run and (path := table_path(self.folder, table, row)).exists():
                out[table.name] = content(path)
            elif not table.by_run and (rows := self.rows(table.name, row)):
                out[table.name] = render(table, rows)
        return out


def rows_digest(row: Mapping[str, str], written: Mapping[str, bytes], picture: Path) -> str:
    """"d" and 15 hex digits over a run's row, its rows of every other table but the clock's, and its picture.

    Of the row all but this cell and what follows from other cells. written: as `RowsByRun.written` gives it. The letter
    keeps readers of CSV from taking it for a number.
    """
    sha = hashlib.sha256(render(DIGESTED, [{**row, "rows_digest": ""}]))
    for name in SIDES:
        if name != CLOCK:
            sha.update(written.get(name, b""))
    sha.update(picture.read_bytes() if picture.is_file() else b"")
    return f"d{sha.hexdigest()[:15]}"


def curve_digest(data: bytes) -> str:
    """Digest of a curve by its file, unpacked: of its lines "step,loss,grad_norm", so that the table alone can verify it; "" of none.

    (Six digits do not give the float32 values back, so a digest of those could never be checked.)
    """
    _, _, lines = data.partition(b"\n")
    return short_hash("d", b"".join(line.partition(b",")[2] for line in lines.splitlines(keepends=True)), 16) if lines else ""


def trajectory(row: Mapping[str, str]) -> str:
    """The cell `trajectory` of a row as text; "" where no run is done, or where its protocol is not one of today's."""
    try:
        return run_of(row, row["code_digest"]).trajectory if row["status"] == "done" else ""
    except ValueError:
        return ""


def run_of(row: Mapping[str, str], code_digest: str) -> Run:
    """The run of a row of runs.csv, of code of this digest; ValueError where its protocol or control is not one of today's."""
    protocol = PROTOCOLS.get(row["protocol"])
    if protocol is None or str(protocol.version) != row["protocol_version"]:
        raise ValueError(f"was made under {row['protocol']} v{row['protocol_version']}, which this code no longer has")
    depth, lr = int(row["depth"]), float(row["lr"])
    return Run(
        under(protocol, row["control"]).at(depth, lr), row["scheme"], row["arm"], row["params"], row["writers"], depth, lr,
        int(row["seed"]), row["data"], row["data_digest"], code_digest, row["compiled"] == "true", float(row["gate_lr"] or 1),
        row["control"],
    )  # fmt: skip
