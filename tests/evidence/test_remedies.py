"""The table of the remedies that are no schemes, against runs.csv with pandas alone; and what the page says of it."""

import re

import pandas as pd
import pytest

from suite.controls import CONTROLS
from suite.environment import ROOT
from suite.evidence import remedies
from suite.evidence.claims_others import PAPERS
from suite.records.schema import TABLES
from suite.verdict.outcome import DEAD

RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def runs():
    return pd.read_csv(RESULTS / "remedies" / "runs.csv", keep_default_na=False, na_values=[""]).fillna({"control": ""})


@pytest.fixture(scope="module")
def shown():
    lines = [line.strip("| ").split(" | ") for line in remedies.remedies(RESULTS).splitlines()[2:]]
    return {cells[0]: cells[1:] for cells in lines}


def test_each_control_has_a_name_in_the_tables_and_in_words():
    column = next(column for column in TABLES["runs"].columns if column.name == "control")
    assert list(column.enum) == list(CONTROLS)
    assert set(remedies.CALLED) == {remedies.NONE, remedies.CENTERING, *CONTROLS}
    assert len(set(remedies.CALLED.values())) == len(remedies.CALLED)


def test_the_table_is_what_the_runs_give(runs, shown):
    known = {remedy: words for remedy, words in remedies.CALLED.items() if words in shown}
    assert len(known) == len(shown) and set(known) >= {"none", *PAPERS}
    for remedy, words in known.items():
        mine = runs[runs["control"] == remedy] if remedy in CONTROLS else runs[runs["control"] == ""]
        scheme = "split" if remedy == remedies.CENTERING else "plain"
        hot, cool = (mine[(mine["scheme"] == scheme) & (mine["lr"] == lr)] for lr in (7.08e-3, 2.01e-3))
        split = mine[(mine["scheme"] == "mvsplit") & (mine["lr"] == 9.36e-3)]
        if remedy == remedies.CENTERING:
            split = split[:0]
        usable, dead = hot[hot["outcome"] == "survived"], hot[hot["outcome"].isin(DEAD)]
        told = shown[words]
        assert told[0] == f"{len(hot) - len(usable)} of {len(hot)}" and (len(hot) == 8 or remedy not in PAPERS)
        assert told[1] == (f"{(dead['state'] == 'mean_dominated').sum()} of {len(dead)}" if len(dead) else "-")
        assert told[2] == (f"{dead['crash_step'].median():.0f}" if len(dead) else "-")
        assert told[3] == (f"{usable['heldout_loss'].mean():.3f} (n = {len(usable)})" if len(usable) else "-")
        lives = cool[cool["outcome"] == "survived"]
        assert told[4] == (f"{lives['heldout_loss'].mean():.3f} (n = {len(lives)})" if len(lives) else "-")
        assert len(cool) == 2 or remedy not in PAPERS
        gone = split[split["outcome"].isin(DEAD)]
        assert told[5] == (f"{(split['outcome'] != 'survived').sum()} of {len(split)}" if len(split) else "-")
        assert told[6] == (f"{(gone['state'] == 'mean_dominated').sum()} of {len(gone)}" if len(gone) else "-")


def test_the_bare_runs_are_the_frontiers(runs):
    """At the same rates and seeds, of the same id of what is trained: the same outcome."""
    known = pd.read_csv(RESULTS / "frontier" / "runs.csv").set_index("trajectory")["outcome"]
    bare = runs[(runs["control"] == "") & (runs["scheme"] != "split")]
    both = bare[bare["trajectory"].isin(known.index)]
    assert len(both) >= 8
    assert (both["outcome"] != "survived").tolist() == [known[one] != "survived" for one in both["trajectory"]]


def test_the_page_names_no_remedy_that_the_table_has_not(shown):
    page = (ROOT / "docs" / "how_it_dies.md").read_text(encoding="utf-8")
    block = page[page.index("<!-- remedies: made by") :]
    assert len(re.findall(r"^\| ", block, re.M)) == len(shown) + 1


def test_minus_one_is_no_other_remedy(runs):
    """A - I and I - A differ by a sign, which zero writers take up: the networks mirror each other, to the last digit of the tables."""
    keys = ["scheme", "lr", "seed"]
    one, other = (runs[runs["control"] == name].set_index(keys).sort_index() for name in ("a_minus_i", "i_minus_a"))
    both = one.index.intersection(other.index)
    assert len(both) >= 10
    pd.testing.assert_frame_equal(*(table.loc[both, ["outcome", "crash_step", "final_loss", "heldout_loss"]] for table in (one, other)))
