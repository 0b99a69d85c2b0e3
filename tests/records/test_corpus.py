"""The labelled runs: each trajectory once, with the curve that is committed and the label of its row."""

import gzip

import numpy as np
import pandas as pd
import pytest

from suite.environment import ROOT
from suite.tables import TableError, corpus

RESULTS = ROOT / "results"


def test_every_run_that_died_or_lived_stands_once_with_its_own_curve_and_label():
    logs = list(corpus(RESULTS, ("laptop", "frontier64")))
    rows = pd.concat([pd.read_csv(RESULTS / name / "runs.csv", keep_default_na=False, dtype=str) for name in ("laptop", "frontier64")])
    rows = rows[rows["status"].eq("done") & (rows["outcome"].isin(["collapsed", "degraded", "nonfinite"])
                                             | rows["outcome"].eq("survived") & rows["late_step"].eq(""))]  # fmt: skip
    assert len({log.run_id for log in logs}) == len(logs) == rows["trajectory"].nunique()
    rows = rows.set_index("run_id")
    assert {log.dead for log in logs} == {True, False}
    for log in logs:
        row = rows.loc[log.run_id]
        path = RESULTS / log.protocol / "curves" / f"{log.scheme}-L{log.depth}" / f"{log.run_id}.csv.gz"
        curve = pd.read_csv(gzip.open(path))
        assert np.array_equal(curve["step"], log.steps) and np.array_equal(curve["loss"], log.loss)
        assert np.array_equal(curve["grad_norm"], log.grad_norm)
        assert (log.outcome, log.state, "" if log.crash_step is None else str(log.crash_step)) == (row.outcome, row.state, row.crash_step)
        assert log.dead == (row.crash_step != "") and (str(log.crash_step) in log.known_by) == log.dead


def test_a_run_that_two_protocols_trained_is_there_at_its_longest():
    both = [pd.read_csv(RESULTS / name / "runs.csv", usecols=["trajectory", "run_id"]) for name in ("frontier", "anatomy")]
    shared = both[0].merge(both[1], on="trajectory", suffixes=("_short", "_long"))
    found = {log.run_id: len(log.steps) for log in corpus(RESULTS, ("frontier", "anatomy"))}
    assert len(shared) > 3 and not set(shared["run_id_short"]) & set(found)
    assert max(found[run] for run in shared["run_id_long"] if run in found) > 2000


def test_runs_that_never_trained_are_neither_dying_nor_living():
    rows = pd.read_csv(RESULTS / "frontier" / "runs.csv")
    never = set(rows[rows["outcome"].isin(["stuck", "untrained"])]["run_id"])
    assert never and not never & {log.run_id for log in corpus(RESULTS, ["frontier"])}


def test_a_folder_without_runs_is_said(tmp_path):
    with pytest.raises(TableError, match="no runs here"):
        next(corpus(tmp_path))
