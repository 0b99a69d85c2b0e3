"""Runs trained as one model take the steps that each takes alone; what happens to one is nothing to the others."""

import math
from pathlib import Path

import pytest
import torch
from entries import ENTRIES

from suite.data.load import cached
from suite.sweep.plan import Selection, make_plan
from suite.training.group_step import GroupStep
from suite.training.trainer import Trainer

RUNS = [(1e-3, 0), (1e-2, 0), (3e-3, 1)]  # learning rate, seed


def trainers(scheme, arm="controlled"):
    plans = [make_plan(Selection("smoke", schemes=(scheme,), arms=(arm,), depths=(2,), lrs=(lr,), seeds=(seed,)))[0] for lr, seed in RUNS]
    return [Trainer(run, cached("digits"), Path("unused")) for run in plans]


def take(members, group, steps, poison=None):
    """Steps as a group; a run whose loss or gradient is not finite is left where it is."""
    curves, alive = [[] for _ in members], set(range(len(members)))
    for step in steps:
        if poison and step == poison[1]:
            members[poison[0]].state.flat.values[5] = math.nan
        for r, (loss, norm) in enumerate(group.forward_backward(step)):
            curves[r].append((step, loss, norm))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                alive.discard(r)
        group.update(step, [r in alive for r in range(len(members))])
    return curves


@pytest.mark.parametrize(("scheme", "arm"), ENTRIES)
def test_each_run_is_as_alone(scheme, arm):
    # a norm behind the branch makes rounding grow tenfold a step; what mixes streams that are all but equal has a tiny gradient
    members, steps = trainers(scheme, arm), 5 if scheme in ("peri_ln", "mhc") else 8
    curves = take(members, GroupStep([t.train_step for t in members], compiled=False), range(1, steps + 1))
    for curve, mine, alone in zip(curves, members, trainers(scheme, arm), strict=True):
        for _ in range(steps):
            alone.advance()
        for (_, *got), (_, *want) in zip(curve, alone.state.curve, strict=True):
            assert got == pytest.approx(want, rel=2e-5)
        assert (mine.state.flat.values - alone.state.flat.values).abs().max() < 1e-4
        assert torch.equal(mine.state.flat.values, torch.cat([leaf.detach() for leaf in mine.state.flat.leaves.values()]))


def test_a_run_that_ends_leaves_its_neighbours_bytes_alone():
    ill, well = trainers("mvsplit"), trainers("mvsplit")
    broken, whole = (take(m, GroupStep([t.train_step for t in m], False), range(1, 9), p) for m, p in ((ill, (1, 4)), (well, None)))
    assert math.isnan(broken[1][3][1]) and math.isfinite(whole[1][3][1])
    for r in (0, 2):
        assert broken[r] == whole[r] and torch.equal(ill[r].state.flat.values, well[r].state.flat.values)


def test_a_member_is_saved_and_goes_on_alone(tmp_path):
    members = trainers("rezero")
    take(members, GroupStep([t.train_step for t in members], compiled=False), range(1, 5))
    members[2].state.step = 4
    members[2].state.curve = [(step, 1.0, 1.0) for step in range(1, 5)]
    members[2].state.save(tmp_path)
    resumed = trainers("rezero")[2]
    assert resumed.state.restore(tmp_path) and torch.equal(resumed.state.flat.values, members[2].state.flat.values)
    assert resumed.advance() and resumed.state.step == 5
