"""Full sharding (FSDP2) on two CPU processes, by the suite's own loop, against one process that holds the whole model."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import toys
from accelerate.state import AcceleratorState

from suite import environment, registry
from suite.data.load import load
from suite.diagnosis.audit_pass import final_state
from suite.environment import ROOT
from suite.scale import sharded
from suite.sweep.plan import Selection, make_plan
from suite.training.checkpoint import PlacementError
from suite.training.gates import gate_rows
from suite.training.trainer import Trainer

STEPS = 20
PROTOCOL = {"horizon": STEPS, "lr": 1e-2, "clip": 0.5, "init": "fan_in", "final": "std", "checkpoint_every": 4}


def run_of(scheme="mvsplit", depth=5, compiled=False, writers="", **fields):
    """A run of the smoke protocol with other settings; large rate and init, so that it learns and its gates move in few steps."""
    toy = scheme.removeprefix("toy_")
    (run,) = make_plan(Selection("smoke", schemes=(scheme,), depths=(2,))) if toy == scheme else toys.runs(toy, depth=2, lr=1e-3)
    settings = {k: v for k, v in (PROTOCOL | fields).items() if k != "lr"}
    return replace(run, protocol=replace(run.protocol, **settings), depth=depth, lr=PROTOCOL["lr"], compiled=compiled,
                   writers=writers or run.writers)  # fmt: skip


def launch(cases, tmp_path, processes=2, **env):
    """What rank 0 of `sharded_rank.py` reports of each case: (run, folder name, further words)."""
    work = [{"run": run.to_json(), "folder": str(tmp_path / folder), "stop": STEPS} | more for run, folder, more in cases]
    path = tmp_path / f"cases-{len(list(tmp_path.iterdir()))}.json"
    path.write_text(json.dumps(work))
    words = ["-m", "accelerate.commands.launch", "--config_file", "suite/scale/fsdp2.yaml", "--num_processes", str(processes),
             "--main_process_port", "0", "tests/training/sharded_rank.py", str(path)]  # fmt: skip
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | env
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "rank0]" in line)[-3000:]
    seen = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("CASE ")]
    assert len(seen) == len(cases) and {found["world"] for found in seen} == {processes}
    return seen


def alone(run, tmp_path, stop=STEPS):
    """The same run in one process that holds the whole model."""
    AcceleratorState._reset_state()  # one process, one precision, says Accelerate
    trainer = Trainer(run, load(run.data), tmp_path / "alone")
    while trainer.state.step < stop:
        assert trainer.advance()
    return trainer


def agree(found, trainer, rel):
    """Losses, norms, held-out loss and samples, each within `rel`."""
    assert [s for s, *_ in found["curve"]] == [s for s, *_ in trainer.state.curve]
    for column in (1, 2):
        ours, theirs = ([row[column] for row in curve] for curve in (found["curve"], trainer.state.curve))
        assert ours == pytest.approx(theirs, rel=rel)
    assert found["heldout"] == pytest.approx(float(trainer.evaluation.heldout_loss()), rel=rel)
    samples, _ = trainer.evaluation.sample(7)
    assert found["n_samples"] == 7
    torch.testing.assert_close(torch.tensor(found["samples"]), samples.flatten(1)[:, :6], rtol=0, atol=10 * rel)


SCHEMES = ("plain", "layerscale", "rezero", "deepnorm", "mvsplit")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Every scheme with blocks recomputed, then mvsplit in parts of 2 rows of 4, and in bf16."""
    folder = tmp_path_factory.mktemp("sharded")
    runs = [run_of(scheme, checkpoint_blocks=True, writers="std") for scheme in SCHEMES]
    cases = [(run, run.scheme, {"look": True}) for run in runs]
    cases += [(run_of(), "micro", {"micro": 2}), (run_of(dtype="bf16", checkpoint_blocks=True), "bf16", {"look": True})]
    return dict(zip([*SCHEMES, "micro", "bf16"], launch(cases, folder), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_processes_train_what_one_trains(seen, scheme, tmp_path):
    trainer = alone(run_of(scheme, checkpoint_blocks=True, writers="std"), tmp_path)
    agree(seen[scheme], trainer, 1e-4)
    assert seen[scheme]["state"] == final_state(trainer)
    losses = [loss for _, loss, _ in trainer.state.curve]
    assert min(losses[-4:]) < 0.9 * losses[0] and min(norm for *_, norm in trainer.state.curve) > 0.5  # it learnt, and was clipped


@pytest.mark.slow
def test_a_process_holds_its_part(seen):
    for scheme in SCHEMES:
        found = seen[scheme]
        assert found["units"] == 6 and found["mine"] * 2 == found["of"]  # five blocks and the root; every weight in two halves
        assert found["recomputed"] == [0, 1, 2, 4] and found["gathered"]  # three of four, as the paper
        gates = [name for name in found["whole"] if ".residuals." in name]
        assert bool(gates) is (scheme in ("layerscale", "rezero", "mvsplit"))
        assert set(found["whole"]) - set(gates) == {"embed.weight", "embed.bias", "final.weight", "final.bias"}


@pytest.mark.slow
def test_a_share_in_parts_is_the_share(seen, tmp_path):
    agree(seen["micro"], alone(run_of(), tmp_path), 1e-4)


@pytest.mark.slow
def test_bf16_keeps_fp32_where_it_must(seen, tmp_path):
    found = seen["bf16"]
    assert found["weights"] == "torch.bfloat16" and found["masters"] == ["torch.float32"]
    assert {found["rope"], found["step"], *found["gates"]} == {"torch.float32"}
    whole, exact = alone(run_of(dtype="bf16", checkpoint_blocks=True), tmp_path), alone(run_of(), tmp_path)
    agree(found, whole, 0.03)  # 2^-8, over 20 steps
    first = found["curve"][0][1]
    assert first == pytest.approx(whole.state.curve[0][1], rel=1e-5)  # the same roundings until gradients are summed
    assert abs(first - exact.state.curve[0][1]) > 1e-5  # and not fp32 in disguise


@pytest.mark.slow
def test_blocks_are_compiled_one_by_one(tmp_path):
    run = run_of(compiled=True, checkpoint_blocks=True)
    (found,) = launch([(run, "compiled", {"look": True, "stop": 6})], tmp_path)
    assert found["compiled"]
    agree(found, alone(replace(run, compiled=False), tmp_path, 6), 1e-4)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(tmp_path):
    """2 -> 1 -> 2: the curve is that of a run that nobody stopped; the newest checkpoint is damaged once, and the older one serves."""
    run, folder = run_of(), tmp_path / "moving"
    (first,) = launch([(run, "moving", {"stop": 9, "save": True})], tmp_path)
    assert not first["restored"] and sorted(p.name for p in folder.iterdir()) == ["step-00000004", "step-00000008"]
    (second,) = launch([(run, "moving", {"stop": 13, "save": True})], tmp_path, processes=1)
    assert second["restored"] and not second["said"]
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000008", "step-00000012"]  # two are kept
    shard = max((folder / "step-00000012").glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (third,) = launch([(run, "moving", {"save": True})], tmp_path)
    assert third["restored"] and len(third["said"]) == 1 and "does not match its digest" in third["said"][0]
    trainer = alone(run, tmp_path)
    agree(third, trainer, 1e-4)
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000016", "step-00000020"]
    with pytest.raises(PlacementError, match="was made sharded: go on under accelerate launch"):
        Trainer(run, load(run.data), folder).restore()


@pytest.mark.slow
def test_a_full_disk_is_said_by_all_and_leaves_what_there_was(tmp_path):
    (found,) = launch([(run_of(), "full", {"stop": 6, "save": True, "full": True})], tmp_path)
    assert "step-00000006" in found["said"][0] and found["said"][0].startswith("OSError")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["step-00000004"]


def settings(monkeypatch, **env):
    """What `accelerate launch --config_file suite/scale/fsdp2.yaml` says, with changes."""
    for name, value in ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"} | env).items():
        monkeypatch.setenv(name, value)


def test_what_a_launcher_says(monkeypatch):
    assert not environment.sharding_wanted()
    settings(monkeypatch)
    assert environment.sharding_wanted() and sharded.read(run_of().protocol) == sharded.Sharding(reshard=True)
    settings(monkeypatch, FSDP_RESHARD_AFTER_FORWARD="false")
    assert not sharded.read(run_of().protocol).reshard


@pytest.mark.parametrize(("env", "fields", "message"), [
    ({"FSDP_VERSION": "1"}, {}, "FSDP version 1"), ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "fsdp_offload_params"),
    ({}, {"audit_every": 2}, "audits its runs"), ({}, {"probe": True}, "probes its runs"),
])  # fmt: skip
def test_what_cannot_be_sharded_is_refused(monkeypatch, env, fields, message):
    settings(monkeypatch, **env)
    with pytest.raises(PlacementError, match=message):
        sharded.read(run_of(**fields).protocol)


KINDS = ("streams", "outputs", "adaln_shared", "subln", "values", "keel")


@pytest.fixture(scope="module")
def toys_seen(tmp_path_factory):
    """Schemes of every kind that the contract carries, to step 8; the one whose weights have factors in part then by one process to 12."""
    registry.discover()
    entries = dict(registry._entries)
    toys.enter()
    runs = {name: run_of(f"toy_{name}", depth=3, writers="std", width=16, ffn=24) for name in KINDS}
    folder, compiled = tmp_path_factory.mktemp("toys"), replace(runs["streams"], compiled=True)
    cases = [(run, name, {"stop": 8, "save": True, "look": True, "gates": True}) for name, run in runs.items()]
    *seen, made = launch([*cases, (compiled, "compiled", {"stop": 8})], folder)
    (goes_on,) = launch([(runs["values"], "values", {"stop": 12})], folder, processes=1)
    yield runs, dict(zip(runs, seen, strict=True)), goes_on, made
    registry._entries.clear()
    registry._entries.update(entries)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_scheme_of_any_kind_trains_sharded(toys_seen, name, tmp_path):
    runs, seen, goes_on, made = toys_seen
    trainer = alone(runs[name], tmp_path, 8)
    agree(seen[name], trainer, 2e-3)
    assert seen[name]["state"] == final_state(trainer) and seen[name]["mine"] * 2 == seen[name]["of"]
    if name == "streams":
        agree(made, trainer, 2e-3)  # compiled block by block
    rows = [row for row in seen[name]["gate_rows"] if row["step"] == 8]
    want = gate_rows(trainer.state.dit, 8)
    assert [row["gate"] for row in rows] == [row["gate"] for row in want]
    assert [row["rms"] for row in rows] == pytest.approx([row["rms"] for row in want], rel=1e-2, abs=2e-3)
    if name == "values":  # another number of processes, so other parts of its parts
        assert goes_on["restored"]
        agree(goes_on, alone(runs[name], tmp_path, 12), 2e-3)
