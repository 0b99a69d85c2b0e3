"""`autopsy`: networks trained again and examined, once each; its tables come back as they went."""

from pathlib import Path

import pytest
from commands import call, refused

from suite.environment import provenance
from suite.records.checks import check_folder
from suite.records.schema import TABLES
from suite.records.store import read, read_rows

SMALL = ("autopsy", "--protocol", "smoke", "--schemes", "plain", "--depths", "2", "--results", "there")


def test_networks_are_examined_once_and_the_tables_are_sound(capsys):
    status, out, err = call(capsys, *SMALL)
    assert status == 0 and err[0] == "1 networks, 0 of them examined" and "too_short" in err[1] and "there/autopsy/autopsy.csv" in out[0]
    folder, path = Path("there/autopsy"), Path("there/autopsy/autopsy.csv")
    table, before = read(folder, "autopsy"), path.read_bytes()
    assert len(table) == 8 == table["intervention"].nunique() and (table["last_step"] == 14).all() and (table["samples"] == 297).all()
    assert all((table[name].fillna("") == (value or "")).all() for name, value in provenance().items() if name not in ("commit", "threads"))
    intact = table[table["intervention"] == "none"].iloc[0]
    assert (intact["rise"], intact["change"], intact["image_tokens"], intact["scheme"]) == (0, 0, 16, "plain")
    for row in table.itertuples():  # the columns bear each other out, to their six digits
        assert row.rise == pytest.approx(row.loss - intact["loss"], abs=1e-5)
    assert set(read(folder, "references")["image_tokens"]) == {16, 64}
    assert [problem for problem in check_folder(folder) if "runs.csv: missing" not in problem] == []
    assert not any(Path("there/.work").iterdir())
    status, _, err = call(capsys, *SMALL, "--seeds", "0,1")
    rows = read_rows(path, TABLES["autopsy"])
    assert status == 0 and err[0] == "2 networks, 1 of them examined" and len(err) == 2
    assert [row["seed"] for row in rows] == 8 * ["0"] + 8 * ["1"]
    assert set(before.splitlines()) <= set(path.read_bytes().splitlines())


def test_a_search_has_no_networks_of_its_own(capsys):
    assert "--lrs" in refused(capsys, "autopsy", "--protocol", "frontier", "--results", "there")
