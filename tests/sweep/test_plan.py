"""Plans whose cells have depths, rates and seeds of their own."""

from collections import Counter
from dataclasses import replace

import pytest

from suite.presets import PROTOCOLS
from suite.protocol import Cell, Run
from suite.sweep.plan import Selection, make_plan


@pytest.fixture
def plan(monkeypatch):
    """(scheme, depth, rate, seed) of a selection from a protocol with three cells."""
    cells = (Cell("plain", seeds=(0, 1)), Cell("plain", depths=(5,), lrs=(3e-3, 2e-3)), Cell("mvsplit", depths=(5, 9)))
    own = replace(PROTOCOLS["smoke"], cells=cells, depths=(3,), lrs=(1e-3,), at_depth=((9, "horizon", 4), (9, "fid_samples", 0)))
    monkeypatch.setitem(PROTOCOLS, "smoke", own)

    def made(**flags):
        runs = make_plan(Selection("smoke", **flags))
        return [(run.scheme, run.depth, run.lr, run.seed) for run in runs], runs

    return made


def test_a_cell_has_its_own_depths_rates_and_seeds_or_the_protocols(plan):
    found, runs = plan()
    assert found == [("plain", 3, 1e-3, 0), ("plain", 3, 1e-3, 1), ("plain", 5, 3e-3, 0), ("plain", 5, 2e-3, 0),
                     ("mvsplit", 5, 1e-3, 0), ("mvsplit", 9, 1e-3, 0)]  # fmt: skip
    usual, deepest = runs[-2].protocol, runs[-1].protocol
    assert (deepest.horizon, deepest.fid_samples) == (4, 0) and usual.horizon > 4 and usual.fid_samples
    assert all(Run.from_json(run.to_json()) == run for run in runs)


def test_depths_narrow_a_plan_and_one_that_no_cell_has_goes_to_all(plan):
    assert plan(depths=(9,))[0] == [("mvsplit", 9, 1e-3, 0)]
    assert Counter(depth for _, depth, *_ in plan(depths=(5, 7))[0]) == {5: 3, 7: 5}
    assert plan(depths=(5,), schemes=("plain",))[0] == [("plain", 5, 3e-3, 0), ("plain", 5, 2e-3, 0)]


def test_rates_and_seeds_take_the_place_of_the_cells_own(plan):
    found, _ = plan(lrs=(7e-3,), seeds=(4,))
    assert found == [("plain", 3, 7e-3, 4), ("plain", 5, 7e-3, 4), ("mvsplit", 5, 7e-3, 4), ("mvsplit", 9, 7e-3, 4)]


def test_the_factor_on_the_rate_of_gates_goes_with_every_scheme_and_counts_where_it_is_not_1(plan):
    usual = plan()[1]
    same = plan(params=("gate_lr=1.0",))[1]
    assert [run.run_id for run in same] == [run.run_id for run in usual]
    changed = plan(params=("mvsplit:gate_lr=0,beta=0.5",), schemes=("plain", "mvsplit"))[1]
    assert {(run.scheme, run.gate_lr, run.params) for run in changed} == {
        ("plain", 1.0, "-"), ("mvsplit", 0.0, "alpha=0,beta=0.5,sites=both")}  # fmt: skip
    assert not {run.run_id for run in changed if run.scheme == "mvsplit"} & {run.run_id for run in plan(params=("mvsplit:beta=0.5",))[1]}
    assert all("gate_lr 0 " in run.label() for run in changed if run.scheme == "mvsplit")
    assert all(Run.from_json(run.to_json()) == run for run in changed)
