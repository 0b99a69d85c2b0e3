"""The training loop: a run is a pure function of its id, a non-finite step changes nothing, measuring disturbs nothing.

Golden curves guard the fixed part. After a wanted change of the numbers (which bumps every protocol's version) rewrite them
with `OMP_NUM_THREADS=1 PYTHONPATH=.:tests python tests/training/test_trainer.py` and read the difference before it is committed.
"""

import json
import math
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from entries import ENTRIES

from suite import registry
from suite.data.load import cached
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.records.store import Store
from suite.sweep.execute import execute
from suite.sweep.plan import Selection, make_plan
from suite.sweep.progress import Progress
from suite.training.trainer import Trainer

torch.set_num_threads(1)
GOLDEN = Path(__file__).with_name("golden.json")
LAST = 14  # steps of a smoke run


def run_of(scheme="plain", *, arm="controlled", depth=2, lr=1e-3, seed=0, **changes) -> Run:
    """A smoke run, or one under a variant of that protocol."""
    selection = Selection("smoke", schemes=(scheme,), arms=(arm,), depths=(depth,), lrs=(lr,), seeds=(seed,))
    (run,) = make_plan(selection)
    return Run(**{**vars(run), "protocol": replace(run.protocol, **changes)}) if changes else run


@pytest.fixture
def trainer(tmp_path):
    """Factory of trainers; each gets a folder of its own unless told."""
    made = []

    def make(run=None, folder=None) -> Trainer:
        made.append(Trainer(run or run_of(), cached("digits"), folder or tmp_path / str(len(made))))
        return made[-1]

    return make


def state(t: Trainer) -> dict[str, bytes]:
    """Everything that a run's numbers depend on, or consist of, as bytes."""
    moments = {f"{group}.{key}": value.cpu().numpy().tobytes()
               for group, leaf in t.state.flat.leaves.items() for key, value in t.state.optimizer.state[leaf].items()}
    return moments | {"values": t.state.flat.values.cpu().numpy().tobytes(), "curve": np.array(t.state.curve).tobytes(),
                      "evals": np.array(t.state.evals).tobytes(), "step": str(t.state.step).encode(),
                      "log": json.dumps(t.state.log).encode()}


# ---- a pure function of the id

@pytest.mark.parametrize(("scheme", "arm"), ENTRIES)
def test_the_same_run_twice_and_another_seed(trainer, scheme, arm):
    first, again, other = (trainer(run_of(scheme, arm=arm, seed=seed)) for seed in (0, 0, 1))
    for t in (first, again, other):
        t.train()
    assert state(first) == state(again)
    assert first.state.step == LAST and [s for s, *_ in first.state.curve] == list(range(1, LAST + 1))
    assert [s for s, _ in first.state.evals] == [4, 8, 12, LAST]
    assert not {x for _, x, _ in first.state.curve} & {x for _, x, _ in other.state.curve}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(the state at the end of a run that nobody stopped, a folder with the checkpoint of another after every step)."""
    root = tmp_path_factory.mktemp("stopped")
    whole, killed = (Trainer(run_of(), cached("digits"), root / name) for name in ("whole", "killed"))
    whole.train()

    def keep(step):
        killed.save()
        shutil.copytree(killed.folder, root / str(step))

    killed.train(after_update=keep)
    return state(whole), root


@pytest.mark.parametrize("stop", range(1, LAST))
def test_interrupted_at_any_step(stopped, stop):
    end, root = stopped
    resumed = Trainer(run_of(), cached("digits"), root / str(stop))
    assert resumed.restore() and resumed.state.step == stop
    resumed.train()
    assert state(resumed) == end


@pytest.mark.parametrize(("scheme", "arm"), ENTRIES)
def test_interrupted_twice_under_every_scheme(trainer, scheme, arm):
    run = run_of(scheme, arm=arm, lr=1e-2)
    whole = trainer(run)
    whole.train()
    for stop in (5, 9):
        part = trainer(run, folder=whole.folder.parent / "shared")
        part.restore()
        while part.state.step < stop:
            part.advance()
            if part.state.step % 4 == 0:
                part.note_heldout(float(part.evaluation.heldout_loss()))
        part.save()
    last = trainer(run, folder=whole.folder.parent / "shared")
    assert last.restore() and last.state.step == 9
    last.train()
    assert state(last) == state(whole)


def test_a_trainer_that_went_on_can_go_back(trainer):
    """What the audit's replay does: the same object, restored to an earlier step, repeats itself."""
    t = trainer()
    t.train()
    end = state(t)
    assert t.restore(at_most=7) and t.state.step == 4
    t.train()
    assert state(t) == end


def test_a_checkpoint_before_the_first_step(trainer):
    fresh = trainer()
    fresh.save()
    t = trainer(folder=fresh.folder)
    t.train()
    end = state(t)
    back = trainer(folder=fresh.folder)
    assert back.restore(at_most=0) and back.state.step == 0 and back.state.curve == []
    back.train()
    assert state(back) == end


def test_nothing_to_restore(trainer):
    assert trainer().restore() is False


def test_the_log_of_observers_is_restored(trainer):
    t = trainer()
    t.train(after_update=lambda step: t.state.log.setdefault("audit", []).append({"step": step, "rho": math.inf}))
    back = trainer(folder=t.folder)
    back.restore()
    assert back.state.log == {"audit": t.state.log["audit"][: back.state.step]} and back.state.step == 12


# ---- measuring disturbs nothing

def test_evaluation_sampling_and_foreign_draws_leave_the_curve_alone(trainer):
    quiet = trainer(run_of(heldout_every=1000))
    quiet.train()
    busy = trainer(run_of(heldout_every=1))

    def disturb(step):
        busy.evaluation.sample(5)
        busy.evaluation.heldout_loss()
        torch.rand(3)
        np.random.rand()

    torch.manual_seed(5)
    busy.train(before_update=lambda step: torch.rand(7), after_update=disturb)
    assert state(busy)["curve"] == state(quiet)["curve"] and state(busy)["values"] == state(quiet)["values"]
    assert [s for s, _ in busy.state.evals] == list(range(1, LAST + 1))
    assert quiet.state.evals == [busy.state.evals[step - 1] for step in (quiet.run.protocol.horizon, LAST)]
    assert busy.heldout_loss() == quiet.heldout_loss() == quiet.state.evals[0][1]  # that of the horizon


def test_evaluation_is_the_same_for_every_seed_and_repeatable(trainer):
    a, b = trainer(run_of(seed=0)), trainer(run_of(seed=1))
    b.state.flat.values.copy_(a.state.flat.values)
    assert a.evaluation.heldout_loss() == b.evaluation.heldout_loss() == a.evaluation.heldout_loss()
    first = a.evaluation.sample(12)
    assert torch.equal(first[0], b.evaluation.sample(12)[0])
    assert torch.equal(a.evaluation.sample(40)[0][:12], a.evaluation.sample(40)[0][:12]) and first[1].tolist() == [*range(10), 0, 1]


def test_the_heldout_loss_is_the_mean_over_the_heldout_images(trainer):
    """Final layer zero: the velocity is 0, so the loss is the mean square of the fixed targets."""
    from suite.model import flow
    from suite.rng import generator

    t = trainer()
    rows = t.data.heldout
    batch = flow.make_batch(t.data.images_NCHW[rows], t.data.labels_N[rows], 10, 0.0, generator("heldout"))
    assert len(rows) % 64 and t.evaluation.heldout_loss() == pytest.approx(batch.target_BCHW.double().square().mean().item(), rel=1e-6)


# ---- the optimiser step

def test_warmup_is_linear_then_constant(trainer):
    t, rates = trainer(run_of(lr=1e-3)), []
    t.train(after_update=lambda step: rates.append({group["lr"] for group in t.state.optimizer.param_groups}))
    assert rates == [{1e-3 * min(1.0, step / 4)} for step in range(1, LAST + 1)]


def test_gradients_are_clipped_and_the_raw_norm_is_kept(trainer):
    t, norms = trainer(run_of(clip=0.01)), []
    t.train(before_update=lambda step: norms.append(t.state.flat.grads.norm().item()))
    assert all(raw > 0.02 for _, _, raw in t.state.curve) and norms == pytest.approx([0.01] * LAST, rel=1e-3)


def poison_weight(t):
    t.state.flat.values[t.state.flat.slices[next(iter(t.state.flat.slices))].start] = math.inf


class NanBackward(torch.autograd.Function):
    """A finite loss whose gradient is not."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.nan


def poison_gradient(t):
    loss = t.train_step.loss
    t.train_step.loss = lambda batch: NanBackward.apply(loss(batch))


@pytest.mark.parametrize(("poison", "finite_loss"), [(poison_weight, False), (poison_gradient, True)])
def test_a_nonfinite_step_is_withheld(trainer, poison, finite_loss):
    t = trainer()
    for _ in range(5):
        t.advance()
    poison(t)
    before = state(t)
    seen = []
    t.train(before_update=seen.append, after_update=lambda step: pytest.fail("an update was made"))
    after = state(t)
    assert {k: v for k, v in after.items() if k != "curve"} == {k: v for k, v in before.items() if k != "curve"}
    step, loss, norm = t.state.curve[-1]
    assert step == 6 and t.state.step == 5 and math.isfinite(loss) == finite_loss and not math.isfinite(norm) and seen == [6]
    verdict = t.judge()
    assert (verdict.outcome, verdict.crash_step, verdict.confirmed) == ("nonfinite", 6, True)


def test_a_run_broken_at_its_first_step_is_still_a_row(tmp_path, monkeypatch, capsys):
    """Its loss was never finite, so half of its cells are empty: tables, progress line and picture must bear that."""
    init = Trainer.__init__

    def poisoned(self, *words):
        init(self, *words)
        poison_weight(self)

    monkeypatch.setattr(Trainer, "__init__", poisoned)
    run = run_of()
    record = execute(run, tmp_path, "digits")
    store = Store(tmp_path / "smoke")
    store.add(record)
    (row,) = store.runs()
    assert (row["outcome"], row["crash_step"], row["last_step"], row["final_loss"]) == ("nonfinite", "1", "1", "")
    assert row["max_grad_norm"] in ("nan", "inf") and row["heldout_loss"] == ""
    with Progress(1) as progress:
        progress.begin(run)
        progress.end(run, record["run"], 1, 1)
    assert capsys.readouterr().err.rstrip().endswith("seed 0: nonfinite at step 1")
    assert list((tmp_path / "smoke" / "samples").glob("*.png"))


def test_code_that_changed_since_the_plan_is_refused(tmp_path):
    run = Run(**{**vars(run_of()), "code_digest": "0" * 16})
    with pytest.raises(registry.RegistryError, match="changed since the plan"):
        execute(run, tmp_path, "digits")
    run = Run(**{**vars(run_of()), "data_digest": "0" * 16})
    with pytest.raises(ValueError, match="the plan was made for 0000"):
        execute(run, tmp_path, "digits")


# ---- the early stop

def scripted(t: Trainer, curve) -> Trainer:
    """Let the trainer live through a curve instead of training: step -> loss. One real step fills the optimiser's state."""
    t.advance()
    t.state.step, t.state.curve = 0, []

    def advance(before_update=None):
        step = t.state.step + 1
        t.state.curve.append((step, curve(step), 1.0))
        if not math.isfinite(t.state.curve[-1][1]):
            return False
        t.state.step = step
        return True

    t.advance, t.evaluation.heldout_loss = advance, lambda: 0.5
    return t


LONG = {"horizon": 400, "window": 50, "heldout_every": 50, "checkpoint_every": 50}


def falling(step):
    return 0.8 + 1.1 * math.exp(-step / 40)


@pytest.mark.parametrize(("curve", "extra", "ends", "outcome", "crash"), [
    (falling, {}, 450, "survived", None),
    (lambda s: falling(s) if s < 203 else 1.95, {}, 260, "collapsed", 203),  # 203 + 50, rounded up to the next look
    (lambda s: falling(s) if s < 203 else 1.95, {"after_crash": 100}, 310, "collapsed", 203),
    (lambda s: falling(s) if s < 203 else 1.5, {}, 260, "degraded", 203),
    (lambda s: 1.95 if 203 <= s < 240 else falling(s), {}, 450, "survived", None),  # came back: a spike
    (lambda s: falling(s) if s < 390 else 1.95, {}, 440, "collapsed", 390),  # within the horizon, confirmed in the window
    (lambda s: falling(s) if s < 405 else 1.95, {}, 450, "survived", None),  # beyond the horizon
    (lambda s: 1.95, {}, 200, "untrained", None),
    (lambda s: 1.95, {"warmup": 150}, 300, "untrained", None),
    (lambda s: 1.95 if s < 250 else falling(s - 250), {"warmup": 150}, 450, "survived", None),  # learns once the rate is up
    (lambda s: falling(s) if s < 123 else math.nan, {}, 122, "nonfinite", 123),
])
def test_early_stop(trainer, curve, extra, ends, outcome, crash):
    run = run_of(**LONG | extra)
    t = scripted(trainer(run), curve)
    t.constant_loss = 1.95
    t.train()
    verdict = t.judge()
    assert (t.state.step, verdict.outcome, verdict.crash_step) == (ends, outcome, crash)
    assert [s for s, _ in t.state.evals] == sorted({*range(50, t.state.step + 1, 50)} | ({450} if ends == 450 else set()))

    again = scripted(trainer(run, folder=t.folder), curve)  # killed after its last checkpoint: stops where the first did
    again.constant_loss = 1.95
    assert again.restore()
    again.train()
    assert state(again) == state(t)


def test_restored_after_the_end_trains_no_further(trainer):
    run = run_of(**LONG)
    t = scripted(trainer(run), lambda s: falling(s) if s < 203 else 1.95)
    t.constant_loss = 1.95
    t.train()
    t.save()
    back = trainer(run, folder=t.folder)
    back.constant_loss = 1.95
    back.restore()
    back.advance = lambda *words: pytest.fail("trained on after the early stop")
    back.train()
    assert back.state.step == 260


# ---- the fixed part

def golden_curves() -> dict[str, dict[str, list[float]]]:
    """Five eager steps of every scheme: losses, gradient norms and one held-out loss."""
    out = {}
    for scheme, arm in ENTRIES:
        t = Trainer(run_of(scheme, arm=arm, depth=3, lr=2e-2, batch=32), cached("digits"), Path("unused"))
        for _ in range(5):
            t.advance()
        out[f"{scheme} {arm}"] = {"loss": [x for _, x, _ in t.state.curve], "grad_norm": [x for _, _, x in t.state.curve],
                                  "heldout": [float(t.evaluation.heldout_loss())]}
    return out


def test_golden_curves():
    stored, now = json.loads(GOLDEN.read_text()), golden_curves()
    assert stored["protocol_version"] == PROTOCOLS["smoke"].version, "rewrite the golden curves (see the top of this file)"
    assert stored["curves"].keys() == now.keys()
    for name, parts in stored["curves"].items():
        for part, values in parts.items():
            assert now[name][part] == pytest.approx(values, rel=1e-4), f"{name}: {part}"


def test_golden_curves_tell_schemes_apart():
    curves = {name: np.concatenate(list(parts.values())) for name, parts in json.loads(GOLDEN.read_text())["curves"].items()}
    assert len(curves) == len(ENTRIES)
    assert np.allclose(curves.pop("split controlled"), curves["mvsplit controlled"])  # its parts as they stand make MV-Split
    for a, b in combinations(curves, 2):
        assert np.abs(curves[a] / curves[b] - 1).max() > 1e-4, f"{a} and {b}"  # what `test_golden_curves` allows


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({"protocol_version": PROTOCOLS["smoke"].version, "curves": golden_curves()}, indent=1) + "\n")
