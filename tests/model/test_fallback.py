"""On a torch that the suite's own compiled blocks were not tested with, `torch.compile` does it, says so and is recorded."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from stand_ins import interpreted
from test_compiled_blocks import batch, close, result
from test_replicas import alone, batches, group, losses, models

from suite.environment import compiler
from suite.evidence import rerun, verify
from suite.isolation import forks
from suite.model import aot, stacked_blocks
from suite.records.store import Store
from suite.sweep.execute import execute, execute_all
from suite.sweep.plan import Selection, make_plan
from suite.sweep.progress import Progress
from suite.sweep.work_folder import read_record

LINE = "is none of those that the suite's own compiled blocks were tested with"


@pytest.fixture
def other_torch(monkeypatch):
    """As on a torch of another minor version; torch.compile traces, and runs what it traced as it is."""
    monkeypatch.setattr(aot, "TESTED", ("1.0",))
    monkeypatch.setattr(aot, "_said", False)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def smoke(**change):
    (run, *_) = make_plan(Selection("smoke", schemes=("mvsplit",), depths=(3,), lrs=(1e-3,)))
    return replace(run, **change)


def curve(record):
    return [value for point in record["curve"] for value in (point["loss"], point["grad_norm"])]


SPOILT = {
    "another version": ("torch.__version__ = '2.99.1'", "torch 2.99.1 " + LINE),
    "a missing name": ("del torch._inductor.utils.clear_caches", "clear_caches"),
}
IMPORT = """
import sys, torch
import torch._inductor.utils
{spoil}
for name in [name for name in sys.modules if name.partition(".")[0] == "suite"]:
    del sys.modules[name]
from suite.model import aot
import suite.model.replicas
raise ValueError("fault: " + aot.fault())
"""


@pytest.mark.parametrize("cause", SPOILT)
def test_importing_does_not_need_the_private_names(cause):
    """In a process of its own, which imports the suite anew."""
    spoil, words = SPOILT[cause]
    with pytest.raises(ValueError, match="^fault: ") as said:
        forks.once(exec, IMPORT.format(spoil=spoil), {})
    assert words in str(said.value) and "\n" not in str(said.value)


def test_this_torch_is_one_that_was_tested():
    assert aot.fault() == ""


def test_it_trains_as_eager_code_does_says_so_once_and_is_recorded(tmp_path, other_torch, capsys):
    run = smoke(compiled=True)
    first = execute(run, tmp_path / "a", "digits")
    execute(run, tmp_path / "b", "digits")
    said = [line for line in capsys.readouterr().err.splitlines() if "torch.compile" in line]
    assert len(said) == 1 and LINE in said[0]
    eager = execute(smoke(compiled=False), tmp_path / "c", "digits")
    assert len(curve(first)) >= 8 and curve(first) == pytest.approx(curve(eager), rel=1e-4)
    assert first["run"]["compiled"] is True and first["run"]["run_id"] == run.run_id
    assert first["run"]["compiler"] == f"torch.compile, {compiler()}" and eager["run"]["compiler"] == compiler()


def test_it_is_not_held_to_the_bytes_of_the_suites_own_blocks(tmp_path, other_torch, monkeypatch):
    run, rows = smoke(compiled=True), []
    for name in ("fallback", "own"):
        if name == "own":
            monkeypatch.setattr(aot, "TESTED", (aot._minor,))
            monkeypatch.setattr(aot, "compile_fx_inner", interpreted)
            monkeypatch.setattr(aot, "_compiled", {})
        Store(tmp_path / name / "smoke").add(execute(run, tmp_path / name, "digits"))
        rows += Store(tmp_path / name / "smoke").runs()
    assert rows[0]["run_id"] == rows[1]["run_id"] and rows[0]["compiler"] != rows[1]["compiler"]
    for a, b in (("fallback", "own"), ("own", "fallback")):
        pair = [(tmp_path / name / "smoke", rows[name == "own"]) for name in (a, b)]
        found = rerun._compare(*pair[0], *pair[1])
        assert found["compared"] == "outcome and early loss" and found["agrees"] and "other compiler" in found["why"]
    again = rerun._compare(*pair[0], *pair[0])
    assert again["compared"] == "bytes" and again["agrees"]
    assert verify.verify(tmp_path / "fallback") == (1, [])


@pytest.mark.slow
def test_rerun_of_a_run_that_fell_back(tmp_path, other_torch):
    """The workers of `verify --rerun` have the torch that was tested."""
    Store(tmp_path / "smoke").add(execute(smoke(compiled=True), tmp_path, "digits"))
    (found,) = rerun.rerun(tmp_path, 1, 0, 1)
    assert found["compared"] == "outcome and early loss" and found["agrees"], found


def test_each_replica_is_its_model_alone(other_torch, tiny_model):
    name, count = "mvsplit", 3
    together = models(tiny_model, name, "controlled", count, torch.float64)
    replicas = group(together, True)
    assert isinstance(replicas.blocks, stacked_blocks.StackedBlocks) and all(dit.fell_back for dit in together)
    loss_R = losses(replicas(*batches(count, torch.float64)))
    loss_R.sum().backward()
    for r, (loss, grads) in enumerate(alone(tiny_model, name, "controlled", count, torch.float64)):
        assert loss_R[r].item() == pytest.approx(loss, rel=1e-12)
        for parameter_name, p in together[r].named_parameters():
            want = grads[parameter_name]
            assert (p.grad - want).norm() <= 1e-10 * want.norm() + 1e-14, parameter_name


def test_depth_makes_nothing_to_compile_for_replicas(other_torch, tiny_model):
    made = []
    for depth in (3, 9):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        dits = [tiny_model("plain", depth=depth, seed=seed, checkpoint_blocks=depth == 9) for seed in range(2)]
        losses(group(dits, True)(*batches(2, torch.float32))).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in dits[1].blocks[-1].parameters())
        made.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert made[0] == made[1] >= 1


def test_a_group_is_recorded_too(tmp_path, other_torch):
    runs = [replace(run, compiled=True) for run in make_plan(Selection("smoke", schemes=("plain",), depths=(2,), seeds=(0, 1)))]
    execute_all(runs, tmp_path, "digits")
    for run in runs:
        assert read_record(tmp_path, run.run_id)["run"]["compiler"] == f"torch.compile, {compiler()}"


@pytest.mark.slow
def test_the_machine_code_too(monkeypatch, tiny_model):
    monkeypatch.setattr(aot, "TESTED", ())
    together = models(tiny_model, "mvsplit", "controlled", 2, torch.float32)
    loss_R = losses(group(together, True)(*batches(2, torch.float32)))
    loss_R.sum().backward()
    for r, (loss, grads) in enumerate(alone(tiny_model, "mvsplit", "controlled", 2, torch.float32)):
        assert loss_R[r].item() == pytest.approx(loss, rel=1e-5)
        assert all(close(p.grad, grads[name], 1e-3) for name, p in together[r].named_parameters() if grads[name].norm() > 1e-6)
    model, twin = tiny_model("mvsplit", depth=3), tiny_model("mvsplit", depth=3)
    out, grads, _ = result(model, compiled=True)
    want_out, want_grads, _ = result(twin, compiled=False)
    assert model.fell_back and model.compiled_blocks is None
    assert close(out, want_out) and close(grads, want_grads)
    with torch.inference_mode():
        assert close(model(*batch(model, 5)), twin(*batch(twin, 5)))


def test_what_every_worker_says_is_shown_once(capsys):
    with Progress(2) as progress:
        for text in ("one", "two", "one"):
            progress.say_once(text)
    assert capsys.readouterr().err == "one\ntwo\n"
