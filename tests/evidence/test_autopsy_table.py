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


SPLIT = "scheme == 'mvsplit' and params == 'alpha=0,beta=1,sites=both'"  # from plain's scale
CENTERED = "scheme == 'split'"  # a fixed gain of a tenth on what differs between tokens


@pytest.mark.parametrize(("cell", "counts"), [(SPLIT, (9, 11)), (CENTERED, (3, 3))])
def test_a_dead_network_of_the_split_knows_where_a_token_is_and_nothing_of_the_image(table, cell, counts):
    """Nine of eleven, as docs/how_it_dies.md says; the others are constants."""
    dead = table.query(f"{cell} and fate == 'dead'")
    levels = read(FOLDER, "references").query("image_tokens == 16").set_index("level")["heldout_loss"]
    intact = dead.loc[dead["intervention"] == "none", "loss"]
    knows = intact < (levels["position"] + levels["constant"]) / 2
    assert (knows.sum(), len(intact)) == counts and (intact > levels["position"]).all()
    assert (intact[~knows] > levels["constant"]).all() and (dead["state"] == "other").all()
    assert all(abs(one.mean) < 0.03 for name, one in rises(dead).items() if name in INPUT)
    mine = dead[dead["run_id"].isin(dead.loc[knows[knows].index, "run_id"])].query("intervention == 'positions'")
    assert mine["rise"].min() > 0.7


def test_a_dead_mvsplit_network_from_a_tenth_of_that_scale_is_a_constant_as_plain_is(table):
    dead = table.query("scheme == 'mvsplit' and params == 'alpha=0,beta=0.1,sites=both' and fate == 'dead'")
    levels = read(FOLDER, "references").query("image_tokens == 16").set_index("level")["heldout_loss"]
    assert dead["run_id"].nunique() >= 4 and (dead["state"] == "mean_dominated").all()
    assert (dead["loss"] - levels["constant"]).abs().max() < 0.02 and dead.query("intervention in @INPUT")["change"].max() < 1e-2


def test_a_living_network_uses_all_of_these(table):
    """So an intervention that changes nothing says something of the dead."""
    live = table.query("fate == 'live' and intervention != 'none'")
    assert len(live) and (live["rise"] > 4 * live["rise_se"]).all() and (live["change"] > 0.2).all()
