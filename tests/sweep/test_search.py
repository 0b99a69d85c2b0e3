"""A search protocol asks for runs until the edge of every cell is known, and for the same ones however often it is stopped."""

import random
from dataclasses import replace

import pytest

from suite import cli
from suite.cli import training
from suite.presets import PROTOCOLS
from suite.sweep import frontier, search
from suite.sweep.plan import Selection, SelectionError, make_plan

FRONTIER = Selection("frontier", schemes=("plain", "mvsplit"), depths=(25, 100))


def row(run, outcome):
    return {"run_id": run.run_id, "scheme": run.scheme, "depth": str(run.depth), "lr": f"{run.lr:.6g}", "seed": str(run.seed),
            "status": "done", "outcome": outcome}  # fmt: skip


def edge_of(run):
    """The rate from which a run dies, by cell and seed: mvsplit is stuck for two points of the lattice before it."""
    at = {("plain", 25): 16, ("plain", 100): 13, ("mvsplit", 25): 18, ("mvsplit", 100): 14}[run.scheme, run.depth]
    return at + run.seed % 2


def outcome_of(run):
    k = frontier.KNOWN[run.lr]
    stuck = run.scheme == "mvsplit" and edge_of(run) - 2 <= k < edge_of(run)
    return "collapsed" if k >= edge_of(run) else "stuck" if stuck else "survived"


def searched(portion, cells, seed=0):
    """All rows of a search whose sweeps are stopped after that share of each round."""
    rows, shuffle = [], random.Random(seed)
    while runs := search.next_runs(cells, rows):
        shuffle.shuffle(runs)
        rows += [row(run, outcome_of(run)) for run in runs[: max(1, int(portion * len(runs)))]]
        assert len(rows) < 600
    return rows


@pytest.fixture(scope="module")
def cells():
    return search.cells(FRONTIER)


def test_it_brackets_the_edge_of_every_cell_with_eight_seeds(cells):
    assert [(run.scheme, run.depth) for run in cells] == [("plain", 25), ("plain", 100), ("mvsplit", 25), ("mvsplit", 100)]
    rows = searched(1, cells)
    assert len({r["run_id"] for r in rows}) == len(rows)  # nothing twice
    for cell in cells:
        for bad in (("collapsed",), ("collapsed", "stuck")):
            known = frontier.points((float(r["lr"]), int(r["seed"]), r["outcome"] in bad) for r in rows
                                    if (r["scheme"], r["depth"]) == (cell.scheme, str(cell.depth)))  # fmt: skip
            low, high = frontier.edge({k: point for k, point in known.items()})
            assert known[low].dead == set() and known[low].seeds >= set(range(8)), (cell.label(), bad)
            assert known[high].live == set() and known[high].seeds >= set(range(8)), (cell.label(), bad)
    assert 25 * len(cells) < len(rows) < 80 * len(cells)


@pytest.mark.parametrize("portion", [0.1, 0.5])
def test_where_it_was_stopped_does_not_change_what_it_asks_for(cells, portion):
    def names(rows):
        return {r["run_id"] for r in rows}

    assert names(searched(portion, cells)) == names(searched(1, cells))


def test_runs_of_other_settings_count_for_nothing(cells):
    first = search.next_runs(cells, [])
    others = [replace(run, compiled=not run.compiled) for run in first]
    assert search.next_runs(cells, [row(run, "survived") for run in others]) == first
    broken = [row(run, "") | {"status": "error"} for run in first]
    assert search.next_runs(cells, broken) == first


@pytest.mark.parametrize("flags", [{"seeds": (0,)}, {"lrs": (1e-3,)}, {"shard": (1, 2)}])
def test_flags_that_a_search_has_no_use_for_are_refused(flags):
    with pytest.raises(SelectionError, match=f"^--{next(iter(flags))}: frontier"):
        search.is_search(replace(FRONTIER, **flags))


def test_rates_and_seeds_of_ones_own_turn_the_search_off():
    chosen = replace(FRONTIER, lrs=(2e-3,), seeds=(0, 1), shard=(1, 2))
    assert not search.is_search(chosen) and len(make_plan(chosen)) == 4
    assert not search.is_search(Selection("laptop")) and search.is_search(FRONTIER)


def test_the_frontier_trains_what_the_laptop_protocol_trains():
    ours, theirs = PROTOCOLS["frontier"].settings(), PROTOCOLS["laptop"].settings()
    assert {name for name in ours if ours[name] != theirs[name]} == {"name", "fid_samples"}


def test_the_command_goes_on_round_by_round_until_nothing_is_wanted_or_something_breaks(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("suite.evidence.report.beside", lambda *folders: "the table")
    for statuses, rounds in (([0, 0, 0], 3), ([0, 1, 0], 2)):
        left, swept = [["a"], ["b"], ["c"], []], []
        monkeypatch.setattr(search, "planned", lambda *words, left=left: (left.pop(0) if left else [], []))
        monkeypatch.setattr(training, "_here", lambda _, runs, *more, done=swept, how=statuses: done.append(runs) or how[len(done) - 1])
        runs = [type("R", (), {"protocol": PROTOCOLS["frontier"], "compiled": True})()]
        left[0] = runs
        assert cli.main(["run", "--protocol", "frontier", "--results", str(tmp_path)]) == max(statuses)
        assert len(swept) == rounds and "the table" in capsys.readouterr().out
