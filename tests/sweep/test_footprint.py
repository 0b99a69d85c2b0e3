"""What a plan is said to add to the tables, against what committed runs have added."""

import re
from dataclasses import replace

import pytest

from suite.diagnosis import auditor
from suite.environment import ROOT
from suite.evidence.verify import is_older, run_of
from suite.records.tables import TABLES, Store, content, picture_path, table_files
from suite.sweep import footprint
from suite.sweep.plan import Selection, make_plan
from suite.training.trainer import REPLAY_BEFORE
from suite.verdict.outcomes import DEAD


def committed(name):
    """(bytes that the runs of a folder have, the same by the estimate, deaths counted); runs that ended early are left out."""
    folder, wanted, found = ROOT / "results" / name, 0, 0
    rows = {row["run_id"]: row for row in Store(folder).runs() if row["status"] == "done" and not is_older(row)}
    whole = {run_id: run_of(row) for run_id, row in rows.items() if int(row["last_step"]) == run_of(row).protocol.length}
    for table in TABLES.values():
        for path in table_files(folder, table):
            for line in content(path).splitlines(keepends=True):
                found += len(line) * any(line.startswith(run_id.encode()) for run_id in [line[:12].decode()] if run_id in whole)
    for run_id, run in whole.items():
        life, death = footprint.of_run(run)
        wanted += life + death * (rows[run_id]["outcome"] in DEAD)
        picture = picture_path(folder, run.scheme, run.depth, run_id)
        found += picture.stat().st_size if picture.exists() else 0
    return found, wanted


@pytest.mark.parametrize("name", ["laptop", "frontier"])
def test_the_estimate_is_near_what_committed_runs_take(name):
    found, wanted = committed(name)
    assert found == pytest.approx(wanted, rel=0.15)


def test_it_knows_when_the_audit_looks():
    assert (footprint.WINDOW_BEFORE, footprint.FULL_BEFORE, footprint.FULL_EVERY) == (
        REPLAY_BEFORE, auditor.FULL_BEFORE, auditor.FULL_EVERY)  # fmt: skip


def test_it_knows_how_far_files_are_packed():
    parts = list((ROOT / "results").rglob("*.csv.gz"))
    packed, whole = sum(path.stat().st_size for path in parts), sum(len(content(path)) for path in parts)
    assert packed == pytest.approx(footprint.PACKED * whole, rel=0.1)


def test_what_is_said():
    runs = make_plan(Selection("smoke"))
    assert footprint.said([]) == "" and re.fullmatch(r"; the rest will add about 1\d kB to the tables", footprint.said(runs[:1]))
    audited = replace(runs[0], protocol=replace(runs[0].protocol, audit_every=1))
    joint, packed = (float(re.search(r"about ([0-9.]+) MB", footprint.said([audited] * n))[1]) for n in (950, 1000))
    assert footprint.LARGEST < 1000 * 10_200 and joint - packed > 4  # an audit of over 10 MB is one compressed file a run
    assert "for each run that dies" in footprint.said([audited]) and footprint.of_run(audited)[1] > 0
