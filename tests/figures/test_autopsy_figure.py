"""The figure of the autopsies: what it draws is what the tables say."""

import numpy as np
import pytest
from matplotlib.text import Text
from on_page import assert_on_page

from paper_figures import draw, style
from paper_figures.autopsy import COLUMNS, LEVELS, interventions
from suite.evidence.autopsy import rises, with_fate
from suite.records.schema import TABLES
from suite.records.store import read, read_rows, write_package, write_rows

LOSSES = {"constant": 2.0, "position": 1.5, "patch": 1.4, "patch_position": 0.9, "image": 0.8}


def rows_of(scheme, seed, outcome, loss, rises):
    """One invented network: its loss, and what it rises by under the interventions that are named."""
    network = {
        "protocol": "autopsy", "run_id": f"r{scheme}{seed}", "trajectory": f"t{scheme}{seed}", "scheme": scheme, "arm": "controlled",
        "params": "-", "writers": "zero", "gate_lr": 1, "depth": 50, "lr": 0.01, "seed": seed, "data": "digits", "image_tokens": 16,
        "outcome": outcome, "crash_step": 100 + seed if outcome == "collapsed" else None, "last_step": 600 + seed,
        "state": {"plain": "mean_dominated"}.get(scheme, "other") if outcome == "collapsed" else "other", "last_loss": loss,
        "constant_loss": 2, "samples": 297, "loss_se": 0.02, "rise_se": 0.01, "change": 0.1, "commit": "0123456789abcdef",
    }  # fmt: skip
    return [network | {"intervention": name, "loss": loss + rises.get(name, 0.0), "rise": rises.get(name, 0.0)} for name in COLUMNS]


@pytest.fixture
def folder(tmp_path):
    folder, rows = tmp_path / "autopsy", []
    for seed in range(4):
        rows += rows_of("plain", seed, "collapsed", 2.0, {})
        rows += rows_of("mvsplit", seed, "collapsed", 1.5, {"positions": 0.9 + 0.1 * seed})
    rows += rows_of("plain", 9, "survived", 0.7, {"own": 1.0, "all": 2.0}) + rows_of("mvsplit", 9, "stuck", 1.3, {"own": 0.1})
    write_rows(folder / "autopsy.csv", TABLES["autopsy"], rows)
    write_rows(folder / "references.csv", TABLES["references"],
               [{"data": "digits", "image_tokens": 16, "level": name, "samples": 1500, "loss": 9, "heldout_loss": loss}
                for name, loss in LOSSES.items()])  # fmt: skip
    write_package(folder)
    return folder


def test_it_is_drawn_of_every_folder_of_autopsies(folder, tmp_path, capsys):
    assert draw.draw_all(folder.parent, tmp_path / "out").status == 0, capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["autopsy-interventions.pdf", "autopsy-interventions.png"]
    assert draw.stale(folder.parent, tmp_path / "out") == []
    rows = read_rows(folder / "autopsy.csv", TABLES["autopsy"])
    next(row for row in rows if row["intervention"] == "own")["loss"] = "1.99"
    write_rows(folder / "autopsy.csv", TABLES["autopsy"], rows)
    assert len(draw.stale(folder.parent, tmp_path / "out")) == 2


def test_every_network_is_a_point_in_every_column(folder):
    figure, table = interventions.draw(folder), with_fate(read(folder, "autopsy"))
    panels = {ax.get_title(loc="left").partition(",")[0]: ax for ax in figure.axes}
    assert list(panels) == ["plain", "MV-Split"]
    assert list(COLUMNS) == list(dict.fromkeys(COLUMNS)) and set(COLUMNS) == set(table["intervention"])
    for scheme, ax in zip(("plain", "mvsplit"), panels.values(), strict=True):
        points = np.concatenate([line.get_xydata() for line in ax.lines if line.get_linestyle() == "None"])
        for x, name in enumerate(COLUMNS):
            found = sorted(points[np.round(points[:, 0]) == x, 1])
            assert found == sorted(table.loc[(table["scheme"] == scheme) & (table["intervention"] == name), "loss"])
        drawn = {float(line.get_ydata()[0]) for line in ax.lines if len(line.get_ydata()) == 2 and line.get_linestyle() != "None"}
        assert drawn == set(LOSSES.values())
        assert {text.get_text() for text in ax.texts} >= set(LEVELS.values())
    assert panels["plain"].get_title(loc="left").endswith("4 dead (all tokens equal in 4); 1 alive")
    assert panels["MV-Split"].get_title(loc="left").endswith("4 dead (tokens apart in 4); 1 stuck or untrained (tokens apart in 1)")
    assert "10 networks" in style.caption_of(figure) and "500 steps behind" in style.caption_of(figure)


def test_the_rise_above_a_column_is_of_the_dead_with_students_interval(folder):
    table = with_fate(read(folder, "autopsy"))
    found = rises(table.query("scheme == 'mvsplit' and fate == 'dead'"))["positions"]
    assert (found.n, found.mean) == (4, pytest.approx(1.05))
    assert found.half == pytest.approx(3.182446 * np.std([0.9, 1.0, 1.1, 1.2], ddof=1) / 2, rel=1e-6)  # t of 3 degrees, 97.5 %
    assert rises(table.query("fate == 'live'"))["own"].half is None
    texts = [text.get_text() for text in interventions.draw(folder).findobj(Text)]
    assert f"+1.050\n± {found.half:.3f}" in texts


def test_all_is_on_the_page_and_large_enough(folder):
    assert_on_page(interventions.draw(folder))
