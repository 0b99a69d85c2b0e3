"""The rounding table: what a nudge does to weights, which variants count, and what is committed."""

import numpy as np
import pytest
from measure import VARIANTS, counted, nudged

from suite.environment import ROOT
from suite.evidence.cells import runs_of
from suite.evidence.decided import standing
from suite.records.csvfile import read_rows
from suite.records.package import PACKAGE, package_text
from suite.records.schema import TABLES
from suite.verdict.outcome import fate

FOLDER = ROOT / "results" / "rounding"


@pytest.mark.parametrize("moved", [1, -1, 3])
def test_a_nudge_moves_every_weight_but_zeros_by_units_in_the_last_place(moved):
    values = np.array([0.0, 1.0, -1.0, 0.02, -3e-5, 7.0], dtype=np.float32)
    away = nudged(values, moved)
    assert away[0] == 0 and away.dtype == np.float32
    steps = away.view(np.int32).astype(np.int64) - values.view(np.int32)
    assert list(steps[1:] * np.sign(values[1:])) == [moved] * 5  # of a negative number the next one up has smaller bits


def row(variant, digest, scheme="plain"):
    isa, compiled, moved = variant
    return {"scheme": scheme, "depth": "100", "lr": "0.00936", "seed": "0", "isa": isa, "compiled": "true" if compiled else "false",
            "moved": str(moved), "early_digest": digest, "counts": ""}  # fmt: skip


def test_a_variant_that_starts_like_an_earlier_one_does_not_count():
    rows = [row(variant, digest) for variant, digest in zip(VARIANTS, "abcbadef", strict=True)]
    other = [row(VARIANTS[4], "a", "mvsplit")]
    found = counted([*reversed(rows), *other])
    assert [r["counts"] for r in found if r["scheme"] == "plain"] == ["true", "true", "true", "false", "false", "true", "true", "true"]
    assert [r["counts"] for r in found if r["scheme"] == "mvsplit"] == ["true"]


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no rounding table is committed")
def test_every_decided_cell_of_the_committed_table_keeps_its_fate():
    assert (FOLDER / PACKAGE).read_text(encoding="utf-8") == package_text(FOLDER)
    rows = read_rows(FOLDER / "rounding.csv", TABLES["rounding"])
    assert counted([{**r, "counts": ""} for r in rows]) and {r["counts"] for r in rows} <= {"true", "false"}
    known = runs_of(ROOT / "results" / "frontier")
    for lr in {float(r["lr"]) for r in rows}:
        for (scheme, depth), cell in standing(known, lr).items():
            cells = [r for r in rows if (r["scheme"], int(r["depth"]), float(r["lr"])) == (scheme, depth, lr)]
            mine = {fate(r["outcome"]) for r in cells if r["counts"] == "true"}
            assert not cell.decided or mine <= {cell.decided}, (scheme, depth, mine)
