"""A digest of all that the tables hold of a run, for what cannot be computed again: any change of a cell or of its picture shows.

It finds changes and accidents, not a forger, who can write a new digest beside a new number: against that only training again helps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from suite.protocol import short_hash
from suite.records.csvfile import render
from suite.records.schema import OF_NO_RUN, TABLES

LEFT_OUT = ("throughput", *OF_NO_RUN)  # wall-clock, which differs between repeats; and what is of no run


def rows_digest(row: Mapping[str, str], sides: Mapping[str, bytes], picture: Path) -> str:
    """"d" and 15 hex digits over a run's row (but this cell), its rows of every other table as they are written, and its picture.

    sides: by table, as `RowsByRun.written` gives them. The letter keeps readers of CSV from taking it for a number.
    """
    sha = hashlib.sha256(render(TABLES["runs"], [{**row, "rows_digest": ""}]))
    for name in TABLES:
        if name not in LEFT_OUT:
            sha.update(sides.get(name, b""))
    sha.update(picture.read_bytes() if picture.is_file() else b"")
    return f"d{sha.hexdigest()[:15]}"


def curve_digest(data: bytes) -> str:
    """Digest of a curve by its file, unpacked: of its lines "step,loss,grad_norm", so that the table alone can verify it; "" of none.

    (Six digits do not give the float32 values back, so a digest of those could never be checked.)
    """
    _, _, lines = data.partition(b"\n")
    return short_hash("d", b"".join(line.partition(b",")[2] for line in lines.splitlines(keepends=True)), 16) if lines else ""
