"""Remedies that are no residual schemes: their formulas by loops in float64, compiled and not, and their place in the tables."""

import math
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from sweeps import work

from suite import cli, registry
from suite.controls import CONTROLS, under
from suite.diagnosis.audit_pass import _watch
from suite.evidence.cells import ended, finished, runs_of
from suite.evidence.verify import verify
from suite.model.backbone import GATED, MIXING, DiT
from suite.presets import PROTOCOLS
from suite.protocol import Protocol
from suite.records.corpus import corpus
from suite.residual import Context
from suite.sweep.plan import Selection, SelectionError, make_plan
from suite.training.optim import FlatParameters

SIZES = {"width": 8, "heads": 2, "ffn": 12, "depth": 2, "patch": 2, "channels": 1, "image_size": 4, "caption_tokens": 2}
KINDS = [(mixing, gated) for mixing in MIXING for gated in GATED]
SMOKE = PROTOCOLS["smoke"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def model(mixing="A", gated="", **sizes):
    dit = DiT(**SIZES | sizes, scheme=partial(registry.get("plain", "controlled").cls), mixing=mixing, gated=gated)
    dit.init_weights(0, init="fan_in", writers="std", final="std")
    return dit


def inputs(b=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    image, caption = torch.randn(b, 1, 4, 4, generator=draw), torch.randn(b, 2, 8, generator=draw)
    return image, caption, torch.linspace(0.2, 0.8, b)


def by_loops(block, x, q, k, v, mixing, gated):
    """Attention's branch of one sample by its definition: x (T, D); q, k, v (N, T, K)."""
    heads, tokens, dim = q.shape
    out = torch.zeros(tokens, heads * dim, dtype=torch.float64)
    for n in range(heads):
        for i in range(tokens):
            score = [math.exp(float(q[n, i] @ k[n, j]) / math.sqrt(dim)) for j in range(tokens)]
            for j in range(tokens):
                a, one = score[j] / sum(score), float(i == j)
                weight = {"A": a, "A-I": a - one, "I-A": one - a, "I/2+A/2": 0.5 * one + 0.5 * a}[mixing]
                out[i, n * dim : (n + 1) * dim] += weight * v[n, j]
            for d in range(n * dim, (n + 1) * dim):
                if gated:
                    row = block.wg[n if gated == "head" else d]
                    out[i, d] *= 1 / (1 + math.exp(-float(row @ x[i])))
    return out @ block.wo.T


@pytest.mark.parametrize(("mixing", "gated"), KINDS)
@torch.no_grad()
def test_the_branch_is_what_its_name_says(mixing, gated):
    dit = model(mixing, gated).double()
    block, x_BTD = dit.blocks[0], dit.tokens(*(t.double() for t in inputs()[:2]))
    q, k, v = block.qkv(x_BTD, dit.rope)
    branch = block.residuals[0].forward  # the branch is what the merge is given
    seen = []
    block.residuals[0].forward = lambda x, f, ctx: seen.append(f(x)) or branch(x, lambda _: seen[-1], ctx)
    block(x_BTD, dit.rope, dit.segments, dit.step, torch.zeros(2).double())
    for b in range(2):
        torch.testing.assert_close(seen[0][b], by_loops(block, x_BTD[b], q[b], k[b], v[b], mixing, gated), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("mixing", "gated"), KINDS)
def test_the_audit_sees_the_branch_that_is_trained(mixing, gated):
    dit = model(mixing, gated)
    image, caption, t_B = inputs()
    x = dit.enter(image, caption, t_B)
    z, (attn, _) = _watch(dit, 0, x, t_B)
    torch.testing.assert_close(z, dit.blocks[0](x, dit.rope, dit.segments, dit.step, t_B))
    torch.testing.assert_close(attn.f, dit.blocks[0].attention(x, dit.rope, Context(dit.segments, "attn", dit.step, t_B)))


def test_mixed_rows_sum_to_one_or_to_nothing():
    """A - I takes out of the values what all tokens share."""
    for mixing, total in (("A", 1.0), ("A-I", 0.0), ("I-A", 0.0), ("I/2+A/2", 1.0)):
        dit = model(mixing)
        q, k, _ = dit.blocks[0].qkv(dit.tokens(*inputs()[:2]), dit.rope)
        torch.testing.assert_close(dit.blocks[0].mixed(q, k).sum(-1), torch.full((2, 2, 6), total), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("mixing", "gated"), [("I-A", "head"), pytest.param("I/2+A/2", "feature", marks=pytest.mark.slow)])
def test_compiled_it_is_the_same(mixing, gated):
    seen = []
    for compiled in (False, True):
        dit = model(mixing, gated)
        flat = FlatParameters(dit)
        if compiled:
            dit.compile()
        out = dit(*inputs())
        out.square().mean().backward()
        seen.append((out.detach(), flat.grads.clone()))
    torch.testing.assert_close(seen[1], seen[0], atol=1e-5, rtol=1e-3)
    assert flat.grads[flat.slices["blocks.0.wg"]].abs().max() > 0


def test_each_changes_something_that_a_protocol_has():
    names = {f.name for f in fields(Protocol)}
    for name, changes in CONTROLS.items():
        assert changes.keys() <= names and under(SMOKE, name) != SMOKE, name
    assert under(SMOKE, "") is SMOKE


def test_of_the_id_it_is_a_part_where_there_is_one():
    plain, *rest = [make_plan(Selection("smoke", schemes=("plain",), depths=(2,), control=name))[0] for name in ("", *CONTROLS)]
    asked = make_plan(Selection("smoke", schemes=("plain",), depths=(2,)))[0]
    assert plain.run_id == asked.run_id and plain.trajectory == asked.trajectory
    assert len({run.run_id for run in (plain, *rest)}) == len({run.trajectory for run in (plain, *rest)}) == 1 + len(CONTROLS)
    assert [run.control for run in rest] == [*CONTROLS]
    assert all(run.control in run.label() for run in rest)
    for protocol in ("smoke", "frontier"):  # a search has no rates of its own, and refuses it too
        with pytest.raises(SelectionError, match="control 'mix' is not one of a_minus_i, .*, none"):
            make_plan(Selection(protocol, control="mix"))
    bare = make_plan(Selection("remedies", schemes=("mvsplit",), control="none"))
    assert len(bare) == 4 and {run.control for run in bare} == {""}


def test_remedies_has_each_beside_none():
    runs = make_plan(Selection("remedies"))
    for scheme in ("plain", "mvsplit"):
        cells = {(run.control, run.lr, run.seed) for run in runs if run.scheme == scheme}
        bare = {(lr, seed) for control, lr, seed in cells if not control}
        assert cells == {(control, *at) for control in ("", *CONTROLS) for at in bare} and len(bare) == {"plain": 10, "mvsplit": 4}[scheme]


def test_a_run_under_one_verifies_and_is_never_compared(capsys):
    runs = [run for control in ("", "half_a", "head_gates", "clip_0.1") for run in
            make_plan(Selection("smoke", schemes=("plain",), depths=(2,), seeds=(0, 1), control=control))]  # fmt: skip
    work(runs, "r", replicas=2)
    assert verify(Path("r")) == (8, [])
    table = runs_of(Path("r/smoke")).assign(outcome="survived")  # eight steps are too short for a verdict
    assert list(finished(table)["control"].unique()) == [""] and len(finished(table)) == 2
    assert len(ended(table)) == 8
    assert table.groupby("control")["final_loss"].first().nunique() == 4
    text = Path("r/smoke/runs.csv").read_text()
    Path("r/smoke/runs.csv").write_text(text.replace(",half_a,", ",head_gates,"))
    assert any("run id" in problem for problem in verify(Path("r"))[1])


@pytest.mark.slow
def test_two_as_one_compiled_model_are_each_alone():
    runs = [replace(run, compiled=True, protocol=replace(run.protocol, horizon=4)) for run in
            make_plan(Selection("smoke", schemes=("plain",), depths=(2,), seeds=(0, 1), control="feature_gates"))]  # fmt: skip
    work(runs, "one", replicas=1)
    work(runs, "two", replicas=2)
    one, two = (runs_of(Path(name) / "smoke").set_index("run_id")["final_loss"] for name in ("one", "two"))
    assert one.to_dict() == pytest.approx(two.to_dict(), rel=1e-5)


def test_the_command_line_takes_one(capsys):
    assert cli.main(["plan", "--protocol", "smoke", "--schemes", "plain", "--depths", "2", "--control", "i_minus_a"]) == 0
    assert "plain zero-writers i_minus_a L2" in capsys.readouterr().out
    assert cli.main(["plan", "--control", "nought"]) != 0
    assert "control 'nought' is not one of" in capsys.readouterr().err
    assert cli.main(["autopsy", "--schemes", "plain", "--control", "half_a"]) != 0
    assert "an autopsy has no column for it" in capsys.readouterr().err


def test_a_detectors_runs_have_none():
    runs = [run for control in ("", "half_a") for run in
            make_plan(Selection("smoke", schemes=("plain",), depths=(2,), control=control))]  # fmt: skip
    work(runs, "r")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("suite.records.corpus.once", lambda table: seen.append(table) or table[:0])
        seen = []
        assert list(corpus("r", ["smoke"])) == []
    assert list(seen[0]["control"]) == [""]
