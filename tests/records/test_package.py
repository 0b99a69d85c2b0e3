"""The data packages beside the committed tables: names of their own, what every value means, and keys that hold."""

import json

import pandas as pd
import pytest

from suite.environment import ROOT
from suite.records.schema import TABLES
from suite.verdict.outcome import OUTCOMES

PACKAGES = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("results/**/datapackage.json")
            if not {"local", "entries"} & set(path.parts)}  # fmt: skip


def test_every_package_has_a_name_of_its_own_and_says_whose_and_whence_it_is():
    assert len({package["name"] for package in PACKAGES.values()}) == len(PACKAGES) >= 10
    for package in PACKAGES.values():
        assert [one["name"] for one in package["licenses"]] == ["MIT"] and len(package["sources"]) == 2


def test_the_package_of_the_results_lists_all_others():
    listed = {ROOT / "results" / one["path"]: one["name"] for one in PACKAGES["results"]["packages"]}
    assert {path.parent.name for path in listed} | {"results"} == set(PACKAGES)
    assert all(PACKAGES[path.parent.name]["name"] == name for path, name in listed.items())


@pytest.mark.parametrize("column", ["outcome", "state", "mms_signature"])
def test_the_meaning_of_a_column_of_words_has_every_word(column):
    (found,) = [one for one in TABLES["runs"].columns if one.name == column]
    for word in found.enum or ("true", "false", "empty"):
        assert f"{word}:" in found.meaning
    assert column != "outcome" or set(found.enum) == set(OUTCOMES)


def test_foreign_keys_hold():
    """Of every table of one file; those of one file a run are named after it."""
    keys = 0
    for protocol in ("frontier", "laptop", "anatomy"):
        folder = ROOT / "results" / protocol
        runs = set(pd.read_csv(folder / "runs.csv")["run_id"])
        for resource in PACKAGES[protocol]["resources"]:
            for key in resource["schema"].get("foreignKeys", ()):
                assert key == {"fields": ["run_id"], "reference": {"resource": "runs", "fields": ["run_id"]}}
                if "*" not in resource["path"]:
                    keys += 1
                    assert set(pd.read_csv(folder / resource["path"])["run_id"]) <= runs
    assert keys >= 8
