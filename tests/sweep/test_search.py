"""A search protocol asks for runs until the edge of every cell is known, and for the same ones however often it is stopped."""

import random
import re
from dataclasses import replace

import pytest

from suite import cli
from suite.cli import training
from suite.isolation.catalogue import read
from suite.presets import PROTOCOLS
from suite.protocol import KNOWN, rate
from suite.sweep import search
from suite.sweep.plan import Selection, SelectionError, make_plan

FRONTIER = Selection("frontier", schemes=("plain", "mvsplit"), depths=(25, 100))


def row(run, outcome):
    loss = 2.0 if outcome != "survived" else 0.75 + 0.001 * (KNOWN[run.lr] - 7) ** 2
    return {"run_id": run.run_id, "scheme": run.scheme, "depth": str(run.depth), "lr": f"{run.lr:.6g}", "seed": str(run.seed),
            "status": "done", "outcome": outcome, "heldout_loss": f"{loss:.6g}", "constant_loss": "2"}  # fmt: skip


EDGE = {("plain", 25): 16, ("plain", 100): 13, ("mvsplit", 25): 18, ("mvsplit", 100): 14}  # the first points at which even seeds are lost


def outcome_of(run):
    """mvsplit is stuck where plain collapses: neither is usable."""
    lost = KNOWN[run.lr] >= EDGE[run.scheme, run.depth] + run.seed % 2
    return "survived" if not lost else "stuck" if run.scheme == "mvsplit" else "collapsed"


def searched(portion, cells, seed=0, **how):
    """(all rows, the last lines) of a search whose sweeps are stopped after that share of each round."""
    rows, shuffle = [], random.Random(seed)
    while (found := search.next_runs(cells, rows, **how))[0]:
        shuffle.shuffle(found[0])
        rows += [row(run, outcome_of(run)) for run in found[0][: max(1, int(portion * len(found[0])))]]
        assert len(rows) < 600
    return rows, found[1]


@pytest.fixture(scope="module")
def cells():
    return search.cells(FRONTIER)


def test_it_finds_the_edge_of_every_cell_and_says_how_well(cells):
    assert [(run.scheme, run.depth) for run in cells] == [("plain", 25), ("plain", 100), ("mvsplit", 25), ("mvsplit", 100)]
    rows, lines = searched(1, cells)
    assert len({r["run_id"] for r in rows}) == len(rows)  # nothing twice
    for cell, line in zip(cells, lines, strict=True):
        found = re.fullmatch(rf"{cell.scheme} at {cell.depth} blocks: edge (\S+), within (\S+)%; (\d+) runs, done", line)
        at = EDGE[cell.scheme, cell.depth]
        assert rate(at - 1) < float(found[1]) < rate(at + 1) and float(found[2]) <= 7
        assert int(found[3]) == sum((r["scheme"], r["depth"]) == (cell.scheme, str(cell.depth)) for r in rows) < 75
    assert len([r for r in rows if int(r["seed"]) >= 1000]) == 8 * len(cells)
    wide, _ = searched(1, cells, precision=0.15)
    assert len(wide) < len(rows)


def test_a_round_is_as_wide_as_the_machine(cells):
    for replicas, each in ((1, search.LEAST), (5, 5), (100, search.ROUND)):
        assert len(search.next_runs(cells, [], replicas=replicas)[0]) == each * len(cells)


@pytest.mark.parametrize("portion", [0.1, 0.5])
def test_where_it_was_stopped_changes_next_to_nothing(cells, portion):
    """Rounds of the edge are the same; runs of the cold side, half of them there, may ask for one round more or less of it."""
    (some, of_some), (whole, of_whole) = searched(portion, cells), searched(1, cells)
    assert len({r["run_id"] for r in some} ^ {r["run_id"] for r in whole}) <= 2 * search.LEAST * len(cells)
    for one, other in zip(of_some, of_whole):
        assert float(one.split("edge ")[1].split(",")[0]) == pytest.approx(float(other.split("edge ")[1].split(",")[0]), rel=0.03)


def test_runs_of_other_settings_count_for_nothing(cells):
    first, _ = search.next_runs(cells, [])
    others = [replace(run, compiled=not run.compiled) for run in first]
    assert search.next_runs(cells, [row(run, "survived") for run in others])[0] == first
    broken = [row(run, "") | {"status": "error"} for run in first]
    assert search.next_runs(cells, broken)[0] == first


@pytest.mark.parametrize("flags", [{"seeds": (0,)}, {"lrs": (1e-3,)}, {"shard": (1, 2)}])
def test_flags_that_a_search_has_no_use_for_are_refused(flags):
    with pytest.raises(SelectionError, match=f"^--{next(iter(flags))}: frontier"):
        search.is_search(replace(FRONTIER, **flags))


def test_rates_and_seeds_of_ones_own_turn_the_search_off():
    chosen = replace(FRONTIER, lrs=(2e-3,), seeds=(0, 1), shard=(1, 2))
    assert not search.is_search(chosen) and len(make_plan(chosen)) == 4
    assert not search.is_search(Selection("laptop")) and search.is_search(FRONTIER)


def test_a_precision_without_a_search_is_refused(tmp_path):
    for selection in (Selection("laptop"), replace(FRONTIER, lrs=(2e-3,), seeds=(0,))):
        with pytest.raises(SelectionError, match="^--precision: "):
            search.planned(selection, tmp_path, read(()), 0.05)
    runs, lines = search.planned(FRONTIER, tmp_path, read(()))
    assert len(runs) == search.LEAST * len(lines) == 8


def test_the_frontier_trains_what_the_laptop_protocol_trains():
    ours, theirs = PROTOCOLS["frontier"].settings(), PROTOCOLS["laptop"].settings()
    assert {name for name in ours if ours[name] != theirs[name]} == {"name", "fid_samples"}


def test_the_command_goes_on_round_by_round_until_nothing_is_wanted_or_something_breaks(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("suite.evidence.report.beside", lambda *folders: "the table")
    for statuses, rounds in (([0, 0, 0], 3), ([0, 1, 0], 2)):
        left, swept = [["a"], ["b"], ["c"], []], []
        monkeypatch.setattr(search, "planned", lambda *words, left=left: (left.pop(0) if left else [], []))
        monkeypatch.setattr(search, "cells", lambda *words: [])
        monkeypatch.setattr(training, "_here", lambda _, runs, *more, done=swept, how=statuses: done.append(runs) or how[len(done) - 1])
        runs = [type("R", (), {"protocol": PROTOCOLS["frontier"], "compiled": True})()]
        left[0] = runs
        assert cli.main(["run", "--protocol", "frontier", "--results", str(tmp_path)]) == max(statuses)
        assert len(swept) == rounds and "the table" in capsys.readouterr().out
