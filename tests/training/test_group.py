"""A group of runs in one loop: each ends, is saved and goes on as if it were alone, and its neighbours' bytes do not notice."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from entries import slow_but

from suite.data.load import cached
from suite.protocol import Run
from suite.sweep.plan import Selection, make_plan
from suite.training import group
from suite.training.trainer import Trainer

SEEDS = range(5)
POISON = {1: 3, 4: 5, 0: 6}  # seed: step; three of five runs end, so that the model shrinks
CUDA = torch.cuda.is_available()


class Killed(Exception):
    pass


def runs_of(seeds=SEEDS, scheme="mvsplit", **changes) -> list[Run]:
    plan = make_plan(Selection("smoke", schemes=(scheme,), depths=(2,), seeds=tuple(seeds), lrs=(3e-3,)))
    return [Run(**{**vars(run), "protocol": replace(run.protocol, checkpoint_every=2, **changes)}) for run in plan]


def result(t: Trainer) -> dict[str, bytes]:
    """All that a run leaves, as bytes."""
    samples, _ = t.evaluation.sample(t.run.protocol.fid_samples)
    state = t.state.optimizer.state
    moments = [value.cpu().numpy().tobytes() for leaf in t.state.flat.leaves.values() for _, value in sorted(state[leaf].items())]
    return {"values": t.state.flat.values.cpu().numpy().tobytes(), "moments": b"".join(moments), "samples": samples.numpy().tobytes(),
            "curve": np.array(t.state.curve).tobytes(), "evals": np.array(t.state.evals).tobytes(),
            "log": json.dumps(t.state.log).encode()}  # fmt: skip


def train(folder, runs, poison=None, kill=None, done=None):
    """Results by seed. poison: {seed: step at which a weight becomes nan}; kill: a step in which the process dies, or a seed whose
    end it does not survive; done: what earlier calls finished."""
    done = {} if done is None else done

    def make(run):
        trainer = Trainer(run, cached("digits"), folder / run.run_id, "a group")

        def after_update(step):
            trainer.state.log.setdefault("seen", []).append({"step": step})
            if (poison or {}).get(run.seed) == step:
                trainer.state.flat.values[3] = math.nan

        return group.Member(trainer, after_update=after_update)

    def finish(member):
        if kill == ("end", member.trainer.run.seed):
            raise Killed
        done[member.trainer.run.seed] = (result(member.trainer), member.trainer.state.curve[-1][0])

    def report(step, loss):
        if kill == step:
            raise Killed

    ends = {run.run_id: done[run.seed][1] for run in runs if run.seed in done}
    group.train(runs, ends, make, finish, report)
    return done


@pytest.fixture
def widths(monkeypatch):
    """The widths of the models that are made."""
    seen, whole = [], group.GroupStep

    def watch(steps, compiled):
        seen.append(len(steps))
        return whole(steps, compiled)

    monkeypatch.setattr(group, "GroupStep", watch)
    return seen


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of all five runs, of which "some end" or "all live", if nobody kills them."""

    @cache
    def made(lives):
        return train(tmp_path_factory.mktemp("undisturbed"), runs_of(), POISON if lives == "some end" else {})

    return made


def test_every_run_is_trained_as_alone(tmp_path):
    runs = runs_of(range(3))
    together = train(tmp_path / "a", runs)
    for run in runs:
        alone = Trainer(run, cached("digits"), tmp_path / "b")
        alone.train()
        curve = np.frombuffer(together[run.seed][0]["curve"]).reshape(-1, 3)
        evals = np.frombuffer(together[run.seed][0]["evals"]).reshape(-1, 2)
        samples = np.frombuffer(together[run.seed][0]["samples"], dtype=np.float32)
        assert curve == pytest.approx(np.array(alone.state.curve), rel=1e-4) and len(curve) == 14
        assert evals == pytest.approx(np.array(alone.state.evals), rel=1e-4) and len(evals) == 4
        assert samples == pytest.approx(alone.evaluation.sample(64)[0].numpy().ravel(), abs=2e-3)


@pytest.mark.parametrize("audit", [0, 3])
def test_an_end_is_nothing_to_the_others_and_half_of_them_shrink_the_model(tmp_path, widths, audit):
    runs = runs_of(audit_every=audit)
    whole = train(tmp_path / "a", runs)
    assert widths == [5]
    widths.clear()
    some = train(tmp_path / "b", runs, poison=POISON)
    assert widths == ([5] if audit else [5, 2])
    assert {seed: end for seed, (_, end) in some.items()} == {1: 4, 4: 6, 0: 7, 2: 14, 3: 14}
    if CUDA and not audit:
        return  # two products at once may be summed otherwise than five; a group has the same bytes as itself alone
    for seed in (2, 3):
        assert some[seed] == whole[seed]
    widths.clear()
    last = train(tmp_path / "c", runs, poison={1: 3, 4: 3, 0: 3, 2: 3})
    assert last[3] == whole[3] and last[2][1] == 4 and widths == ([5] if audit else [5, 2])


KILLS = [*((kill, "some end") for kill in (1, 3, 5, 8, 14, ("end", 1), ("end", 0), ("end", 3))), (6, "all live"), (("end", 2), "all live")]
TELLING = [(1, "some end"), (5, "some end"), (("end", 0), "some end"), (("end", 2), "all live")]


@pytest.mark.parametrize(("kill", "lives"), slow_but(TELLING, KILLS))
def test_killed_anywhere_and_resumed_it_gives_the_same_bytes(undisturbed, tmp_path, kill, lives):
    runs, poison, done = runs_of(), POISON if lives == "some end" else {}, {}
    with pytest.raises(Killed):
        train(tmp_path, runs, poison, kill, done)
    assert train(tmp_path, runs, poison, None, done) == undisturbed(lives)


def test_a_group_goes_back_to_what_all_have(tmp_path):
    """A damaged checkpoint of one run takes the others back with it; without any, all begin again."""
    runs = runs_of(range(3))
    whole = train(tmp_path / "a", runs)
    for damage in (["step-00000010"], ["step-00000010", "step-00000008", "step-00000006", "step-00000004", "step-00000002"]):
        with pytest.raises(Killed):
            train(tmp_path / str(len(damage)), runs, kill=11)
        for name in damage:
            (tmp_path / str(len(damage)) / runs[1].run_id / name / "state.safetensors").write_bytes(b"")
        with pytest.warns(UserWarning, match="passed over"):
            assert train(tmp_path / str(len(damage)), runs) == whole
