"""The contract carries what comes: a toy of each kind, eager, compiled, as replicas, killed and resumed, sharded, and dead.

Without the slow tests each toy is trained as replicas in double precision, and a few in every other way.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from entries import slow_but
from stand_ins import interpreted
from toys import TOYS

from suite.data.load import cached
from suite.diagnosis.audit_pass import final_state
from suite.model import aot
from suite.model.backbone import DiT
from suite.model.replicas import Replicas
from suite.protocol import Run
from suite.records.checks import check_folder
from suite.records.store import Store, read
from suite.scale.memory import size_of
from suite.sweep.execute import execute, execute_all
from suite.sweep.work_folder import read_record
from suite.training.optim import FlatParameters, as_rows
from suite.training.step import TrainStep
from suite.training.trainer import Trainer

SIZES = {"width": 16, "heads": 2, "ffn": 24, "depth": 3, "patch": 2, "channels": 2, "image_size": 4, "caption_tokens": 3}
SMALL = {"width": 16, "ffn": 24, "batch": 4, "fid_samples": 0, "init": "fan_in", "final": "std"}
every_toy = pytest.mark.parametrize("name", TOYS)


def at_least(*names, of=TOYS):
    """Every toy, those that are not named among the slow tests."""
    return pytest.mark.parametrize("name", slow_but(names, list(of)))


SHAPED = ("streams", "outputs", "lambdas", "adaln_shared")  # trunks of another shape than (B, T, D)


@pytest.fixture(autouse=True)
def registered(scratch_registry):
    toys.enter()


@pytest.fixture
def traced(monkeypatch):
    """Tracing and partitioning as always, without the minutes of a C++ compiler."""

    monkeypatch.setattr(aot, "compile_fx_inner", interpreted)
    monkeypatch.setattr(aot, "_compiled", {})


def run_of(name, *, depth=3, lr=1e-2, seeds=(0,), compiled=False, **fields) -> list[Run]:
    runs = toys.runs(name, depth=depth, lr=lr, seeds=seeds)
    return [replace(run, compiled=compiled, protocol=replace(run.protocol, **SMALL | fields)) for run in runs]


def model(name, seed=0, dtype=torch.float32, **sizes):
    """A drawn model with gates moved to a random place."""
    dit = DiT(**SIZES | sizes, scheme=TOYS[name])
    dit.init_weights(seed, init="fan_in", writers="std", final="std")
    draw = torch.Generator().manual_seed(seed + 5)
    for parameter, p in dit.named_parameters():
        if ".residuals." in parameter:
            p.data += 0.2 * torch.randn(p.shape, generator=draw)
    return dit.to(dtype)


def batch(*lead, dtype=torch.float32):
    draw = torch.Generator().manual_seed(3)
    shapes = (*lead, 2, 4, 4), (*lead, 3, 16), lead
    return tuple(torch.rand(*shape, generator=draw, dtype=dtype) for shape in shapes)


def state(t: Trainer) -> dict[str, bytes]:
    moments = [v.numpy().tobytes() for leaf in t.state.flat.leaves.values() for _, v in sorted(t.state.optimizer.state[leaf].items())]
    return {"values": t.state.flat.values.numpy().tobytes(), "moments": b"".join(moments), "log": json.dumps(t.state.log).encode(),
            "curve": np.array(t.state.curve).tobytes(), "evals": np.array(t.state.evals).tobytes()}  # fmt: skip


# ---- what the toys are

def raw(name, **sizes):
    dit = DiT(**SIZES | sizes, scheme=TOYS[name]).double()
    dit.init_weights(0, init="fan_in", writers="std", final="std")
    return dit


@pytest.mark.parametrize("name", ["streams", "outputs"])
def test_at_the_start_it_is_pre_norm(name):
    """Hyper-connections exactly; attention residuals with w = 0 as well, since a mean over outputs has the norm of their sum."""
    given = batch(2, dtype=torch.float64)
    torch.testing.assert_close(raw(name)(*given), raw("prenorm")(*given), rtol=1e-4, atol=1e-5)  # eps of the norm sees the scale
    assert (raw("keel")(*given) - raw("prenorm")(*given)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["adaln", "adaln_shared"])
def test_t_reaches_the_merges_and_nothing_but_them(name):
    image, caption, t = batch(2)
    dit, other = model(name), t.flip(0)
    changed = (dit(image, caption, t) - dit(image, caption, other)).abs().amax((1, 2, 3))
    assert (changed > 1e-3).all()
    one = torch.stack([t[0], other[1] + 0.5])  # of the second sample alone
    assert torch.equal(dit(image, caption, t)[0], dit(image, caption, one)[0])
    assert torch.equal(model("prenorm")(image, caption, t), model("prenorm")(image, caption, other))
    at_start = DiT(**SIZES, scheme=TOYS[name])
    at_start.init_weights(0, init="fan_in", writers="std", final="std")
    trunk = at_start.enter(image, caption, t)
    assert torch.equal(at_start._blocks(trunk, t, 0, 3)[:, :7], trunk[:, :7])  # AdaLN-Zero: the identity


def test_a_map_of_t_that_all_blocks_share_learns_from_all_of_them():
    dit = model("adaln_shared")
    shared = [name for name, _ in dit.named_parameters() if "shared" in name]
    assert shared == ["blocks.0.residuals.0.gate_shared"]
    dit(*batch(2)).square().mean().backward()
    whole = dit.get_parameter(shared[0]).grad.clone()
    dit.zero_grad()
    dit.blocks[2].residuals[1].gate_own.requires_grad_(False)
    dit.blocks[2].residuals[1].forward = lambda x, branch, ctx: x  # without the last merge
    dit(*batch(2)).square().mean().backward()
    assert (dit.get_parameter(shared[0]).grad - whole).norm() > 1e-2 * whole.norm()


def test_the_norm_before_the_writer_is_there():
    dit = model("subln", dtype=torch.float64)
    read = []

    def hook(module, args, out):
        read.append((args[0].shape[-1], (out - module.bias) / module.weight))

    for block in dit.blocks:
        for residual in block.residuals:
            residual.norm.register_forward_hook(hook)
    dit(*batch(2, dtype=torch.float64))
    assert [width for width, _ in read] == [16, 24] * 3
    for _, normal in read:
        torch.testing.assert_close(normal.mean(-1), torch.zeros(2, 7, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_first_block_that_differs():
    dit = model("keel")
    assert [hasattr(r, "norm_out") for block in dit.blocks for r in block.residuals] == [False] + [True] * 5
    assert [float(r.a) for block in dit.blocks for r in block.residuals] == [1, 1, 6, 6, 6, 6]


# ---- compiled, as replicas, resumed

def result(dit, compiled):
    flat = FlatParameters(dit)
    if compiled:
        dit.compile()
    out = dit(*batch(2))
    out.square().mean().backward()
    return out.detach(), flat.grads.clone()


def close(a, b, rtol=1e-5):
    return (a - b).norm() <= rtol * b.norm() and b.norm() > 0


@at_least("adaln_shared", "keel")
def test_compiled_it_is_the_same(name, traced):
    (out, grads), (want, want_grads) = (result(model(name), compiled) for compiled in (True, False))
    assert close(out, want) and close(grads, want_grads)
    with torch.no_grad():
        dit = model(name)
        dit.compile()
        assert close(dit(*batch(2)), want)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["streams", "outputs", "adaln_shared", "subln", "keel"])
def test_as_machine_code_too(name):
    (out, grads), (want, want_grads) = (result(model(name), compiled) for compiled in (True, False))
    assert close(out, want) and close(grads, want_grads, 1e-4)


@pytest.mark.parametrize(("name", "compiled"), slow_but([*((name, False) for name in TOYS), ("streams", True)],
                                                       [(name, how) for name in TOYS for how in (False, True)]))  # fmt: skip
def test_each_replica_is_its_model_alone(name, compiled, traced):
    dits, given = [model(name, seed, torch.float64) for seed in (0, 1)], batch(2, 2, dtype=torch.float64)
    flats = [FlatParameters(dit) for dit in dits]
    losses_R = Replicas(dits, *as_rows(flats), flats[0].slices, compiled)(*given).square().mean((1, 2, 3, 4))
    losses_R.sum().backward()
    for seed, own in enumerate(zip(*given, strict=True)):
        alone = model(name, seed, torch.float64)
        loss = alone(*own).square().mean()
        loss.backward()
        assert losses_R[seed].item() == pytest.approx(loss.item(), rel=1e-12)
        for p, want in zip(dits[seed].parameters(), alone.parameters(), strict=True):
            want_grad = torch.zeros_like(want) if want.grad is None else want.grad
            assert (p.grad - want_grad).norm() <= 1e-10 * want_grad.norm() + 1e-14


@at_least("streams", "adaln_shared", "values")
def test_killed_and_resumed_it_gives_the_same_bytes(name, tmp_path):
    (run,) = run_of(name)
    whole, killed = (Trainer(run, cached("digits"), tmp_path / folder) for folder in "ab")
    whole.train()
    killed.train(after_update=lambda step: killed.save() if step == 6 else None)
    resumed = Trainer(run, cached("digits"), tmp_path / "b")
    assert resumed.restore(at_most=6) and resumed.state.step == 6
    resumed.train()
    assert state(resumed) == state(whole) and all(math.isfinite(loss) for _, loss, _ in whole.state.curve)
    gates = {row["gate"] for row in whole.state.log.get("gates", [])}
    assert bool(gates) is any(".gate_" in parameter for parameter, _ in whole.state.dit.named_parameters())


@at_least("streams")
def test_a_group_trains_what_each_trains_alone(name, tmp_path):
    runs = run_of(name, lr=1e-3, seeds=(0, 1, 2), horizon=4, window=5)
    execute_all(runs, tmp_path, "digits")
    for run in runs:
        record, alone = read_record(tmp_path, run.run_id), execute(run, tmp_path / "alone", "digits")
        for table, column, least in (("curve", "loss", 1e-6), ("evals", "heldout_loss", 1e-6), ("gates", "rms", 5e-3)):
            got, want = ([row[column] for row in each[table]] for each in (record, alone))
            assert got == pytest.approx(want, rel=2e-3, abs=least)


# ---- dead

def dying(monkeypatch, step):
    loss = TrainStep.loss
    monkeypatch.setattr(TrainStep, "loss", lambda self, *args: loss(self, *args) * (math.nan if self.state.dit.step == step else 1))


@at_least("streams")
def test_a_death_is_recorded_as_dead_with_a_state(name, tmp_path, monkeypatch):
    dying(monkeypatch, 6)
    (run,) = run_of(name, audit_every=4, compiled=False)
    record = execute(run, tmp_path, "digits")
    row = record["run"]
    assert (row["status"], row["outcome"], row["crash_step"]) == ("done", "nonfinite", 6)
    assert row["state"] in ("mean_dominated", "mean_free", "other") and row["reason"] == ""
    window = [line for line in record["audit"] if line["window"]]
    assert {line["step"] for line in window} == set(range(1, 7))  # the replay found the run's own curve
    measured = [line for line in record["audit"] if line["step"] == 4 and line["segment"] == "all"]
    keys = ("rho", "tcs", "r_tr", "g_mean", "kappa_hat")
    assert len(measured) == 6 and all(math.isfinite(line[key]) for line in measured for key in keys)


@pytest.mark.parametrize("name", SHAPED)
def test_equal_tokens_are_seen_through_fold(name, tmp_path):
    (run,) = run_of(name)
    trainer = Trainer(run, cached("digits"), tmp_path)
    dit = trainer.state.dit
    assert final_state(trainer) == "other"
    dit.tokens = lambda image, caption: torch.linspace(-1, 2, 16).expand(len(image), 20, 16)  # every token the same
    assert final_state(trainer) == "mean_dominated"


@at_least("streams", "adaln_shared", of=SHAPED)
def test_a_life_is_probed_and_its_tables_are_whole(name, tmp_path):
    (run,) = run_of(name, probe=True, horizon=4, window=5)
    record = execute(run, tmp_path / "work", "digits")
    assert record["run"]["status"] == "done" and {row["feature"] for row in record["probe"]} >= {"image_mean", "centered_rms"}
    Store(tmp_path / "tables").add(record)
    assert check_folder(tmp_path / "tables") == []
    gates = read(tmp_path / "tables", "gates")
    assert set(gates.step) == {4, 8, 9} and set(gates.third) == {1, 2, 3} and set(gates.site) == {"attn", "ffn"}
    assert len(gates) == 3 * 3 * 2 * gates.gate.nunique() - (3 * 5 if name == "adaln_shared" else 0)  # its map is in one place


def test_gate_rows_are_means_over_thirds(tmp_path):
    (run,) = run_of("streams", depth=4)
    trainer = Trainer(run, cached("digits"), tmp_path)
    trainer.train()
    last = {(row["site"], row["third"], row["gate"]): row for row in trainer.state.log["gates"] if row["step"] == 14}
    blocks = trainer.state.dit.blocks
    for third, of in ((1, (0, 1)), (2, (2,)), (3, (3,))):  # floor(3 i / 4)
        values = torch.cat([blocks[i].residuals[1].gate_mix.detach().flatten() for i in of]).double()
        row = last["ffn", third, "mix"]
        assert row["mean"] == pytest.approx(values.mean().item()) and row["rms"] == pytest.approx(values.square().mean().sqrt().item())
        off = (values - torch.eye(2, dtype=torch.float64).flatten().repeat(len(of))).square().mean().sqrt()
        assert last["ffn", third, "off_identity"]["rms"] == pytest.approx(off.item())  # a table of the scheme's own


# ---- what the compiler refuses

class Branching(toys.PreNorm):
    """Adds a branch only where it points along the trunk: Python asks for a number that a compiler does not have."""

    def forward(self, x_BTD, branch, ctx):
        f_BTD = branch(toys.rms_norm(x_BTD))
        return x_BTD + f_BTD if (x_BTD * f_BTD).sum() > 0 else x_BTD


class PerBlock(toys.PreNorm):
    """A Python number that differs by block."""

    def __init__(self, site):
        super().__init__(site)
        self.scale = 1 / (1 + site.block)


@pytest.mark.parametrize(("cls", "depth", "words"), [
    (Branching, 2, "Branching: the block cannot be compiled: "), (PerBlock, 9, "9 kinds of blocks in a model of 9; numbers that differ"),
])  # fmt: skip
def test_what_the_compiler_refuses_is_one_sentence(cls, depth, words, traced, monkeypatch):
    monkeypatch.setattr(aot, "_drop_cache", lambda: pytest.fail("the compile cache is not to blame"))
    monkeypatch.setitem(TOYS, "refused", cls)
    with pytest.raises(aot.CompileError) as refused:
        result(model("refused", depth=depth), compiled=True)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert result(model("refused", depth=depth), compiled=False)[0].isfinite().all()  # eager it trains


@every_toy
def test_what_it_keeps_in_memory_is_counted(name):
    """Of a trunk with streams the streams, of any scheme at least its input: `plan` says so before a GPU is asked."""
    (run,) = run_of(name)
    for dtype, size in (("fp32", 4), ("bf16", 2)):
        found = size_of(replace(run, protocol=replace(run.protocol, dtype=dtype)), (1, 8, 8))
        rows = {"streams": 20 * 2, "outputs": 20 * 7, "lambdas": 20 * 2, "adaln_shared": 20 + 6}.get(name, 20)
        assert found.trunk >= rows * 16 * size and found.kept >= found.trunk


class Turned(toys.PreNorm):
    """Turns the trunk by a matrix, whose product is bf16 under autocast: the first block gets fp32 and all others bf16."""

    def __init__(self, site):
        super().__init__(site)
        self.gate_turn = torch.nn.Parameter(torch.eye(site.width))

    def forward(self, x_BTD, branch, ctx):
        return x_BTD @ self.gate_turn + branch(toys.rms_norm(x_BTD))


def test_a_trunk_that_changes_its_type_under_bf16_gets_functions_of_both(monkeypatch):
    """Code for one type must not be given the other."""
    def checked(graph, inputs, **options):
        types = [t.dtype for t in inputs]

        def run(arguments):
            values = list(arguments)
            arguments.clear()
            assert [t.dtype for t in values] == types
            return graph(*values)

        return run

    monkeypatch.setattr(aot, "compile_fx_inner", checked)
    monkeypatch.setattr(aot, "_compiled", {})
    monkeypatch.setitem(TOYS, "turned", Turned)
    with torch.autocast("cpu", torch.bfloat16):
        (out, grads), (want, want_grads) = (result(model("turned"), compiled) for compiled in (True, False))
        assert model("turned")._blocks(torch.ones(2, 7, 16), torch.zeros(2), 0, 1).dtype == torch.bfloat16
    assert close(out.float(), want.float(), 2e-2) and close(grads, want_grads, 5e-2)
