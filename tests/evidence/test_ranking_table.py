"""ranking.csv against the other committed tables, with pandas alone, and against a table that was changed."""

import shutil

import numpy as np
import pandas as pd
import pytest

from suite.environment import ROOT
from suite.evidence import ranking_table
from suite.evidence.critical_rates import BESIDE

RESULTS = ROOT / "results"
KEY = ["protocol", "scheme", "params", "depth"]


@pytest.fixture(scope="module")
def told():
    return pd.read_csv(RESULTS / "ranking.csv")


def test_it_has_the_cells_and_the_numbers_of_critical_rates(told):
    other = pd.read_csv(RESULTS / "critical_rates.csv")
    measured = other["fresh"] > 0  # of a search that goes on, those cells that are done
    other = other[measured | ~other["protocol"].isin(other.loc[measured, "protocol"])]
    shared = [name for name in told if name in other]
    assert "best_loss" in shared and "window_high" in shared and len(told) == len(other)
    pd.testing.assert_frame_equal(*(table.sort_values(KEY)[shared].reset_index(drop=True) for table in (told, other)))


def test_deaths_are_those_of_the_runs(told):
    for row in told.itertuples():
        runs = pd.read_csv(RESULTS / row.protocol / "runs.csv")
        mine = (runs["scheme"] == row.scheme) & (runs["params"] == row.params) & (runs["depth"] == row.depth)
        dead = runs[mine & runs["crash_step"].notna()]
        assert (row.deaths, row.deaths_equal) == (len(dead), (dead["state"] == "mean_dominated").sum())
    assert told["deaths"].sum() > 100 and (told["deaths_equal"] < told["deaths"]).any()


def test_the_cost_is_that_of_the_bench(told):
    bench = pd.read_csv(RESULTS / "bench" / "bench.csv").query("phase == 'step' and device == 'cpu' and over_plain.notna()")
    known = bench.set_index(["scheme", "depth"])["over_plain"]
    costs = told[told["protocol"] != "scale"].set_index(["scheme", "depth"])["step_over_plain"].dropna()
    assert dict(costs[costs.index.get_level_values("scheme") != "plain"]) == {at: known[at] for at in costs.index if at[0] != "plain"}
    assert len(costs) == 5 and (costs["plain"] == 1).all()


def test_places(told):
    """The lowest loss of a depth has place 1; places are ranges in order; who ties with the best may have place 1 too."""
    for (protocol, _), rows in told.groupby(["protocol", "depth"]):
        if protocol in BESIDE:  # among the cells of another protocol too
            assert (rows["place"] <= rows["place_last"]).all() and list(rows["tied_with_best"]) == list(rows["place"] == 1)
            continue
        rows = rows.sort_values("best_loss")
        assert rows["place"].iloc[0] == 1 and rows["place"].between(1, rows["place_last"]).all() and rows["place_last"].max() == len(rows)
        assert list(rows["tied_with_best"]) == list(rows["place"] == 1)
        order = range(1, len(rows) + 1)
        assert all(first <= place <= last for first, place, last in zip(rows["place"], order, rows["place_last"]))


def test_the_loss_of_who_tunes_nothing(told):
    """At plain's best rate, from runs.csv alone: means by rate of the search's seeds, joined by straight lines over the log of the rate."""
    known = 0
    for row in told.itertuples():
        runs = pd.read_csv(RESULTS / row.protocol / "runs.csv").query("status == 'done' and outcome != 'too_short' and seed < 1000")
        mine = runs[(runs["scheme"] == row.scheme) & (runs["params"] == row.params) & (runs["depth"] == row.depth)]
        mine = mine.assign(value=mine["heldout_loss"].where(mine["outcome"] == "survived", mine["constant_loss"]))
        curve = mine.groupby("lr")["value"].mean()
        plain = told[(told["scheme"] == "plain") & (told["depth"] == row.depth)
                     & (told["protocol"] == BESIDE.get(row.protocol, row.protocol))]  # fmt: skip
        at = plain["best_lr"].iloc[0]
        if not curve.index[0] <= at <= curve.index[-1]:
            assert pd.isna(row.untuned_loss)
            continue
        known += 1
        assert row.untuned_loss == pytest.approx(np.interp(np.log(at), np.log(curve.index), curve), abs=2e-6)
    assert known > 10


def test_what_verify_says(tmp_path):
    assert ranking_table.differs(RESULTS) == [] == ranking_table.differs(tmp_path)
    for path in RESULTS.iterdir():
        (tmp_path / path.name).symlink_to(path) if path.is_dir() else shutil.copy(path, tmp_path)
    path = tmp_path / "ranking.csv"
    path.write_text(path.read_text().replace(",39,38,", ",39,37,"))
    assert len(ranking_table.differs(tmp_path)) == 1
