"""The committed autopsies: sound tables, and what the networks in them use."""

import pytest

from suite.environment import ROOT
from suite.evidence.autopsy import rises, with_fate
from suite.records.checks import check_folder
from suite.records.store import read

FOLDER = ROOT / "results" / "autopsy"
INPUT = ("own", "others", "all", "time", "caption")  # what the image, its noise and the caption say


@pytest.fixture(scope="module")
def table():
    return with_fate(read(FOLDER, "autopsy"))


def test_the_tables_are_sound(table):
    assert [problem for problem in check_folder(FOLDER) if "runs.csv: missing" not in problem] == []
    assert (table.groupby("run_id")["intervention"].nunique() == 8).all() and (table["samples"] == 297).all()
    intact = table[table["intervention"] == "none"].set_index("run_id")["loss"]
    assert (table["rise"] - (table["loss"] - table["run_id"].map(intact))).abs().max() < 2e-5
    assert set(table.groupby(["scheme", "fate"]).groups) >= {("plain", "dead"), ("mvsplit", "dead")}


def test_a_dead_plain_network_is_a_constant(table):
    dead = table.query("scheme == 'plain' and fate == 'dead'")
    levels = read(FOLDER, "references").query("image_tokens == 16").set_index("level")["heldout_loss"]
    assert len(dead) >= 24 and (dead["loss"] - levels["constant"]).abs().max() < 0.02
    assert dead.query("intervention in @INPUT")["change"].max() < 1e-3 and abs(rises(dead)["positions"].mean) < 1e-3


def test_a_dead_mvsplit_network_knows_where_a_token_is_and_nothing_of_the_image(table):
    dead = table.query("scheme == 'mvsplit' and fate == 'dead'")
    levels = read(FOLDER, "references").query("image_tokens == 16").set_index("level")["heldout_loss"]
    intact = dead.loc[dead["intervention"] == "none", "loss"]
    assert len(intact) >= 3 and ((intact - levels["position"]).abs() < (intact - levels["constant"]).abs()).all()
    assert (intact > levels["position"]).all()
    found = rises(dead)
    assert all(abs(found[name].mean) < 0.02 for name in INPUT), found
    assert found["positions"].mean - found["positions"].half > 0.5


def test_a_living_network_uses_all_of_these(table):
    """So an intervention that changes nothing says something of the dead."""
    live = table.query("fate == 'live' and intervention != 'none'")
    assert len(live) and (live["rise"] > 4 * live["rise_se"]).all() and (live["change"] > 0.2).all()
