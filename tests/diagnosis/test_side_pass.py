"""The audit pass against the ordinary backward: where it looks, what it writes, what it may not touch."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from trainers import SEGMENTS, WIDTH, advance, loud, state_of, unchanged

from suite.diagnosis import metrics
from suite.diagnosis.audit_pass import audit_step, final_state, side_pass
from suite.diagnosis.auditor import FULL_EVERY, Auditor
from suite.protocol import evenly
from suite.records import schema
from suite.training.step import TrainStep


@pytest.mark.parametrize("most", [2, 3, 7, 12, 16])
def test_anchor_layers_are_few_distinct_even_and_hold_both_ends(most):
    for depth in (*range(1, 60), 100, 128, 200, 400, 1000):
        layers = evenly(range(depth), most)
        assert len(layers) == min(depth, most) and layers == sorted(set(layers))
        assert layers[0] == 0 and layers[-1] == depth - 1
        gaps = np.diff(layers)
        assert depth == 1 or gaps.max() - gaps.min() <= 2


# --- the gradients ----------------------------------------------------------------------------------------------------

CELLS = [("plain", ""), ("mvsplit", "alpha=0.2,beta=0.8"), ("layerscale", "init=0.3"), ("rezero", ""), ("deepnorm", "")]


@pytest.mark.parametrize("scheme, params", CELLS)
def test_gradients_are_those_of_the_ordinary_backward_before_clipping(start, scheme, params):
    trainer = start(scheme, params=params, clip=1e9)
    advance(trainer, 3)
    norms = []
    trainer.advance(lambda step: norms.append(compare(trainer, step)))
    assert norms[0] > 0


def compare(trainer, step):
    sites, grads = side_pass(trainer, [0, 2], step)
    assert [(s.layer, s.name) for s in sites] == [(0, "attn"), (0, "ffn"), (2, "attn"), (2, "ffn")]
    total = 0.0
    for site in sites:
        block = trainer.state.dit.blocks[site.layer]
        writer = block.wo if site.name == "attn" else block.w2
        for weight in (block.wqkv, block.wo, block.w2):
            assert (grads[weight] - weight.grad).norm() <= 1e-4 * weight.grad.norm()
        by_tokens = torch.einsum("btd,btf->df", grads[site.f], site.y.detach())
        assert (by_tokens - writer.grad).norm() <= 1e-4 * writer.grad.norm()
        total += writer.grad.norm().item()
    return total


def test_clipping_does_not_reach_the_audit(start):
    """Clipped to 1e-3, the flat gradients are far smaller than those the audit reports."""
    trainer, rows = start(clip=1e-3), []
    weight = trainer.state.dit.blocks[1].wqkv
    advance(trainer, 4, lambda step: rows.append((audit_step(trainer, [1], step), weight.grad.clone())))
    for (row, *_), clipped in rows:
        ratio = row["q_grad"] / clipped[:WIDTH].square().mean().sqrt().item()
        assert ratio > 10
        clipped_k = clipped[WIDTH : 2 * WIDTH].square().mean().sqrt().item()
        assert row["k_grad"] / clipped_k == pytest.approx(ratio, rel=1e-3)


def test_nothing_is_touched(start):
    trainer = start("mvsplit")
    advance(trainer, 2)
    trainer.train_step.forward_backward(3)
    before, moments = state_of(trainer), trainer.state.second_moment.clone()
    audit_step(trainer, [0, 1, 2], 3)
    final_state(trainer)
    assert unchanged(before, state_of(trainer)) and torch.equal(moments, trainer.state.second_moment)
    assert all(len(m._forward_hooks) + len(m._backward_hooks) == 0 for m in trainer.state.dit.modules())


@pytest.mark.parametrize("scheme", ["plain", "mvsplit"])
def test_audited_and_unaudited_curves_are_the_same_bytes(start, scheme):
    audited, bare = start(scheme, audit_every=2, audit_full=(scheme,)), start(scheme)
    audited.train(before_update=Auditor(audited).before_update)
    bare.train()
    assert len(bare.state.curve) == bare.run.protocol.length == 26
    assert np.asarray(audited.state.curve).tobytes() == np.asarray(bare.state.curve).tobytes()
    assert np.asarray(audited.state.evals).tobytes() == np.asarray(bare.state.evals).tobytes() and bare.state.evals
    assert torch.equal(audited.state.flat.values, bare.state.flat.values)
    assert audited.clock.counts["audit"] == 14 and audited.clock.seconds["audit"] > 0 and "audit" not in bare.state.log


# --- the rows ---------------------------------------------------------------------------------------------------------


def traffic(trainer, step):
    """Trunk, writer's input, output and output gradient of every merge, from hooks and an ordinary backward."""
    names = {id(w): (i, s) for i, b in enumerate(trainer.state.dit.blocks) for w, s in ((b.wo, "attn"), (b.w2, "ffn"))}
    trunk, seen, original, handles = {}, {}, F.linear, []

    def linear(x, weight, bias=None):
        out = original(x, weight, bias)
        if id(weight) in names:
            out.retain_grad()
            seen[names[id(weight)]] = (x.detach(), out)
        return out

    for i, block in enumerate(trainer.state.dit.blocks):
        for residual in block.residuals:

            def hook(_, args, i=i):
                trunk[i, args[2].site] = args[0].detach()

            handles.append(residual.register_forward_pre_hook(hook))
    kept = trainer.state.flat.grads.clone()
    trainer.state.flat.grads.zero_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", linear)
        trainer.train_step.loss(trainer.train_step.batch(step)).backward()
    for handle in handles:
        handle.remove()
    trainer.state.flat.grads.copy_(kept)
    attention = {}
    for i, block in enumerate(trainer.state.dit.blocks):
        q, k, _ = (part.detach().double() for part in block.qkv(trunk[i, "attn"], trainer.state.dit.rope))
        attention[i] = torch.softmax(torch.einsum("bntk,bnsk->bnts", q, k) / math.sqrt(q.shape[-1]), -1)
    return {key: (trunk[key], y, out.detach(), out.grad, attention[key[0]]) for key, (y, out) in seen.items()}


def gates(trainer):
    """Mean of every gate by layer and site."""
    named = {(i, s): b.residuals[j] for i, b in enumerate(trainer.state.dit.blocks) for s, j in (("attn", 0), ("ffn", -1))}
    return {key: {n: p.detach().mean().item() for n, p in r.named_parameters()} for key, r in named.items()}


@pytest.mark.parametrize("scheme, params", CELLS)
def test_rows_are_the_metrics_of_independently_captured_tensors(start, scheme, params):
    trainer, rows, seen, gate = start(scheme, params=params), [], {}, {}

    def look(step):
        gate.update(gates(trainer))
        rows.extend(audit_step(trainer, [0, 1, 2], step, window=True))
        seen.update(traffic(trainer, step))

    advance(trainer, 3)
    trainer.advance(look)
    assert [(r["layer"], r["site"], r["segment"]) for r in rows] == [
        (i, s, g) for i in range(3) for s in ("attn", "ffn") for g in ("all", "image", "caption")
    ]
    cuts = {"all": slice(None), "image": slice(4), "caption": slice(4, None)}
    for row in rows:
        x, y, f, d = (t[:, cuts[row["segment"]]].double() for t in seen[row["layer"], row["site"]][:4])
        expected = metrics.writer_metrics(d, y) | {
            "rho": metrics.rho(x), "r_tr": metrics.r_tr(x, f), "var_gain": metrics.var_gain(x, f), "tcs": metrics.tcs(x),
        }  # fmt: skip
        dead = row["layer"] == 2 and row["segment"] == "caption"  # the last captions reach no output
        for name, value in expected.items():
            if not (dead and name in ("amplification", "kappa_hat")):
                assert row[name] == pytest.approx(float(value), rel=2e-3, abs=1e-7), (row["layer"], row["site"], name)
        assert row["step"] == 4 and row["window"] is True
        if row["segment"] == "all":
            check_whole(row, seen)
            assert {k: v for k, v in row.items() if k.startswith("gate_")} == pytest.approx(gate[row["layer"], row["site"]])
        else:
            assert set(row) == set(rows[1])  # the writer's and the trunk's metrics alone


def check_whole(row, seen):
    """Attention and gradient-size columns of a row over all tokens."""
    x, _, _, _, a = seen[row["layer"], row["site"]]
    if row["site"] == "ffn":
        d, y = (seen[row["layer"], "ffn"][i].double() for i in (3, 1))
        grad = torch.einsum("btd,btf->df", d, y)
        assert row["w2_grad"] == pytest.approx(grad.square().mean().sqrt().item(), rel=1e-4)
        assert not {"mu_eff", "q_grad", "wo_grad"} & set(row)
    else:
        kept, leaked = metrics.retention_leakage(a, x.double())
        expected = {"mu_eff": metrics.mu_eff(a), "row_div": metrics.row_div(a), "retention": kept, "leakage": leaked}
        for name, value in expected.items():
            assert row[name] == pytest.approx(value.item(), rel=1e-3), name
        assert "w2_grad" not in row
    assert set(row) <= {c.name for c in schema.TABLES["audit"].columns}
    assert set(row) >= {"update_rms", "g_mean", "g_ctr", "rho"}


def test_schemes_see_the_same_context_as_in_training(start):
    trainer, contexts = start(), []
    for block in trainer.state.dit.blocks:
        for residual in block.residuals:
            residual.register_forward_pre_hook(lambda _, args: contexts.append((*args[2][:2], float(args[2].step))))
    trainer.advance(lambda step: side_pass(trainer, [1], step))
    assert len(contexts) == 12 and contexts[:6] == contexts[6:]
    assert contexts[:2] == [(SEGMENTS, "attn", 1.0), (SEGMENTS, "ffn", 1.0)]


def test_q_and_k_are_the_first_two_thirds_of_their_weight(start):
    trainer, found = start(clip=1e9), []
    advance(trainer, 2)
    weight = trainer.state.dit.blocks[1].wqkv
    trainer.advance(lambda step: found.extend([audit_step(trainer, [1], step)[0], weight.grad.clone()]))
    row, grad = found
    for name, first in (("q_grad", 0), ("k_grad", WIDTH)):
        values = [float(v) ** 2 for line in grad[first : first + WIDTH] for v in line]
        assert row[name] == pytest.approx(math.sqrt(sum(values) / len(values)), rel=1e-4)
    assert abs(row["q_grad"] / row["k_grad"] - 1) > 1e-3


def test_mvsplit_at_alpha_0_has_no_mean_gradient_and_plain_has(start):
    shares = {}
    for scheme in ("mvsplit", "plain"):
        trainer = start(scheme, lr=0.0)
        rows = []
        trainer.advance(lambda step, t=trainer, r=rows: r.extend(audit_step(t, [0, 1], step)))
        shares[scheme] = [r["g_mean"] / r["g_ctr"] for r in rows]
        assert len(shares[scheme]) == 12
    assert max(shares["mvsplit"]) < 1e-6 and min(shares["plain"]) > 1e-3


def test_update_rms_is_adams_own_ratio(start):
    """Naive Adam: v from the clipped gradients of all steps so far, this one with them, bias-corrected."""
    trainer, rows, grads = start("mvsplit"), [], []

    def look(step):
        grads.append({n: p.grad.double().clone() for n, p in trainer.state.dit.named_parameters()})
        rows.append(audit_step(trainer, [0, 1], step))

    advance(trainer, 6, look)
    p = trainer.run.protocol
    for step, found in enumerate(rows, 1):
        for row in (r for r in found if r["segment"] == "all"):
            total, count = 0.0, 0
            for short in ("wqkv", "wo") if row["site"] == "attn" else ("w13", "w2"):
                name = f"blocks.{row['layer']}.{short}"
                v = sum((1 - p.beta2) * p.beta2 ** (step - i) * grads[i - 1][name] ** 2 for i in range(1, step + 1))
                ratio = grads[step - 1][name] / ((v / (1 - p.beta2**step)).sqrt() + p.adam_eps)
                total, count = total + ratio.square().sum().item(), count + ratio.numel()
            assert row["update_rms"] == pytest.approx(math.sqrt(total / count), rel=1e-3), (step, row["site"])
    assert all(r["update_rms"] == pytest.approx(1, rel=0.05) for r in rows[0] if "update_rms" in r)  # eps counts where gradients are small
    assert any(abs(r["update_rms"] - 1) > 0.05 for r in rows[-1] if "update_rms" in r)


# --- the stride -------------------------------------------------------------------------------------------------------


def test_the_stride_and_full_depth(start):
    trainer = start(audit_every=2, audit_layers=2, audit_full=("plain",), depth=4)
    trainer.train(before_update=Auditor(trainer).before_update)
    layers = {}
    for row in trainer.state.log["audit"]:
        assert row["segment"] == "all" and row["window"] is False
        layers.setdefault(row["step"], set()).add(row["layer"])
    assert set(layers) == {1, *range(2, 27, 2)}
    whole = {s for s, found in layers.items() if found == {0, 1, 2, 3}}
    assert whole == {s for s in layers if s % (2 * FULL_EVERY) == 0}
    assert all(found in ({0, 3}, {0, 1, 2, 3}) for found in layers.values())


@pytest.mark.parametrize("scheme, seed", [("plain", 1), ("mvsplit", 0)])
def test_full_depth_is_for_the_first_seed_of_the_named_schemes(start, scheme, seed):
    trainer = start(scheme, seed=seed, audit_every=1, audit_layers=2, audit_full=("plain",), depth=4)
    advance(trainer, FULL_EVERY, Auditor(trainer).before_update)
    assert {row["layer"] for row in trainer.state.log["audit"]} == {0, 3}


# --- interruption and replay ------------------------------------------------------------------------------------------


def test_an_interrupted_runs_rows_are_those_of_an_undisturbed_one(start, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainStep, "loss", loud(TrainStep.loss, {24: 50, 25: 50, 28: 80, 45: 60}))
    fields = {"audit_every": 4, "horizon": 44, "checkpoint_every": 10, "depth": 2}
    whole = start(**fields)
    whole.train(before_update=Auditor(whole).before_update)
    assert {r["step"] for r in whole.state.log["spikes"]} == {24, 28, 45} and len(whole.state.curve) == 50

    class Killed(Exception):
        pass

    def kill(step):
        if step == 37:  # the rows of the first spikes come through the checkpoint at 30
            raise Killed

    first = start(folder=tmp_path / "again", **fields)
    with pytest.raises(Killed):
        first.train(before_update=Auditor(first).before_update, after_update=kill)
    second = start(folder=tmp_path / "again", **fields)
    assert second.restore() and second.state.step == 30
    second.train(before_update=Auditor(second).before_update)
    assert json.dumps(second.state.log, sort_keys=True) == json.dumps(whole.state.log, sort_keys=True)
    assert second.state.curve == whole.state.curve
