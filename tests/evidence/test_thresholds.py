"""What hangs on the thresholds of the crash rule: the committed table is what the committed curves give."""

import pandas as pd
import pytest
import thresholds

from suite.environment import ROOT
from suite.evidence.cells import controlled, runs_of
from suite.verdict.outcome import CLEARLY_BELOW, STUCK

FRONTIER = ROOT / "results" / "frontier"


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(ROOT / "results" / "instrument" / "thresholds.csv")


def test_the_thresholds_in_use_change_nothing(table):
    used = {"stuck": STUCK, "arming": 1 - CLEARLY_BELOW, "window": controlled(runs_of(FRONTIER))["window"].iloc[0]}
    for name, value in used.items():
        rows = table[(table["threshold"] == name) & (table["value"] == value)]
        assert len(rows) == 15 and not rows["changed"].any()


def test_a_row_is_what_the_curves_give(table):
    """A lower bound on `stuck` loses runs whose last losses lie between the two, and none else."""
    (setting,) = [one for one in thresholds.SETTINGS if one[:2] == ("stuck", 0.5)]
    again = pd.DataFrame(thresholds.rows(FRONTIER, [setting]))
    rows = table[(table["threshold"] == "stuck") & (table["value"] == 0.5)]
    both = rows.merge(again, on=["depth", "scheme"], suffixes=("", "_again"))
    assert len(both) == 15 and (both["changed"] == both["changed_again"]).all() and (both["runs"] == both["runs_again"]).all()
    for name in ("lr50", "lr50_low", "lr50_high", "dead_lr"):
        assert both[name].to_numpy() == pytest.approx(both[f"{name}_again"].to_numpy(), rel=1e-5)
    runs = controlled(runs_of(FRONTIER))
    between = (runs["outcome"] == "survived") & (runs[["final_loss", "heldout_loss"]].min(axis=1) > 0.5 * runs["constant_loss"])
    assert between.sum() == both["changed"].sum()
