"""The side pass against the ordinary backward; what it may not touch; replay, spikes, signature, final state."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from suite import audit, execute, registry, schema
from suite.auditor import FULL_EVERY, REPLAY_AFTER, SPIKE_FACTOR, Auditor, recovered, signature, spike_threshold
from suite.crash import Verdict
from suite.data import _standardise
from suite.protocol import PROTOCOLS, Run
from suite.sidepass import anchor_layers, audit_step, final_state, side_pass
from suite.train import REPLAY_BEFORE, Trainer

WIDTH, SEGMENTS = 16, (4, 3)


@pytest.fixture(scope="module")
def data():
    """60 images of 4 x 4 pixels in three classes, brighter by class."""
    labels = np.arange(60) % 3
    pixels = np.random.default_rng(0).random((60, 1, 4, 4)) + 0.3 * labels[:, None, None, None]
    return _standardise("toy", pixels.astype(np.float32), labels, 3)


@pytest.fixture
def start(data, tmp_path):
    """Factory of trainers: start("mvsplit", lr=1e-2, audit_every=2, ...), protocol fields among the keywords."""
    count = iter(range(100))

    def make(scheme="plain", *, params="", writers="std", depth=3, lr=3e-3, seed=0, folder=None, **fields):
        fields = {"width": WIDTH, "ffn": 24, "caption_tokens": 3, "horizon": 20, "final": "std"} | fields
        protocol = replace(PROTOCOLS["smoke"], **fields)
        entry = registry.get(scheme, "controlled")
        params = registry.format_params(entry, registry.parse_params(entry, params))
        source = ("toy", data.digest, entry.code_digest)
        run = Run(protocol, scheme, "controlled", params, writers, depth, lr, seed, *source, compiled=False)
        return Trainer(run, data, folder or tmp_path / str(next(count)))

    return make


def advance(trainer, steps, observe=None):
    for _ in range(steps):
        trainer.advance(observe)


def crash_at(step):
    return Verdict("collapsed", step, True, 0.7, 2.0, 1.3, 0, 100)


def loud(loss, factors):
    """A training loss that is multiplied at some steps, and with it the gradient norm: {step: factor}."""
    return lambda self, *args: loss(self, *args) * factors.get(int(self.dit.step), 1)


def state_of(trainer):
    """All that an audit must leave as it is."""
    grads = [p.grad.clone() for p in trainer.dit.parameters()]
    return [trainer.flat.values.clone(), trainer.flat.grads.clone(), *grads, torch.get_rng_state()]


def unchanged(before, after):
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- where it looks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [2, 3, 7, 12, 16])
def test_anchor_layers_are_few_distinct_even_and_hold_both_ends(most):
    for depth in (*range(1, 60), 100, 128, 200, 400, 1000):
        layers = anchor_layers(depth, most)
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
        block = trainer.dit.blocks[site.layer]
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
    weight = trainer.dit.blocks[1].wqkv
    advance(trainer, 4, lambda step: rows.append((audit_step(trainer, [1], step), weight.grad.clone())))
    for (row, *_), clipped in rows:
        ratio = row["q_grad"] / clipped[:WIDTH].square().mean().sqrt().item()
        assert ratio > 10
        clipped_k = clipped[WIDTH : 2 * WIDTH].square().mean().sqrt().item()
        assert row["k_grad"] / clipped_k == pytest.approx(ratio, rel=1e-3)


def test_nothing_is_touched(start):
    trainer = start("mvsplit")
    advance(trainer, 2)
    trainer.forward_backward(3)
    before, moments = state_of(trainer), trainer.second_moment.clone()
    audit_step(trainer, [0, 1, 2], 3)
    final_state(trainer)
    assert unchanged(before, state_of(trainer)) and torch.equal(moments, trainer.second_moment)
    assert all(len(m._forward_hooks) + len(m._backward_hooks) == 0 for m in trainer.dit.modules())


@pytest.mark.parametrize("scheme", ["plain", "mvsplit"])
def test_audited_and_unaudited_curves_are_the_same_bytes(start, scheme):
    audited, bare = start(scheme, audit_every=2, audit_full=(scheme,)), start(scheme)
    audited.train(before_update=Auditor(audited).before_update)
    bare.train()
    assert len(bare.curve) == bare.last == 26
    assert np.asarray(audited.curve).tobytes() == np.asarray(bare.curve).tobytes()
    assert np.asarray(audited.evals).tobytes() == np.asarray(bare.evals).tobytes() and bare.evals
    assert torch.equal(audited.flat.values, bare.flat.values)
    assert audited.counts["audit"] == 14 and audited.seconds["audit"] > 0 and "audit" not in bare.log


# --- the rows ---------------------------------------------------------------------------------------------------------


def traffic(trainer, step):
    """Trunk, writer's input, output and output gradient of every merge, from hooks and an ordinary backward."""
    names = {id(w): (i, s) for i, b in enumerate(trainer.dit.blocks) for w, s in ((b.wo, "attn"), (b.w2, "ffn"))}
    trunk, seen, original, handles = {}, {}, F.linear, []

    def linear(x, weight, bias=None):
        out = original(x, weight, bias)
        if id(weight) in names:
            out.retain_grad()
            seen[names[id(weight)]] = (x.detach(), out)
        return out

    for i, block in enumerate(trainer.dit.blocks):
        for residual in block.residuals:

            def hook(_, args, i=i):
                trunk[i, args[2].site] = args[0].detach()

            handles.append(residual.register_forward_pre_hook(hook))
    kept = trainer.flat.grads.clone()
    trainer.flat.grads.zero_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", linear)
        trainer.loss(trainer.batch(step)).backward()
    for handle in handles:
        handle.remove()
    trainer.flat.grads.copy_(kept)
    attention = {}
    for i, block in enumerate(trainer.dit.blocks):
        q, k, _ = (part.detach().double() for part in block.qkv(trunk[i, "attn"], trainer.dit.rope))
        attention[i] = torch.softmax(torch.einsum("bntk,bnsk->bnts", q, k) / math.sqrt(q.shape[-1]), -1)
    return {key: (trunk[key], y, out.detach(), out.grad, attention[key[0]]) for key, (y, out) in seen.items()}


def gates(trainer):
    """Mean of every gate by layer and site."""
    named = {(i, s): b.residuals[j] for i, b in enumerate(trainer.dit.blocks) for s, j in (("attn", 0), ("ffn", -1))}
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
        expected = audit.writer_metrics(d, y) | {
            "rho": audit.rho(x), "r_tr": audit.r_tr(x, f), "var_gain": audit.var_gain(x, f), "tcs": audit.tcs(x),
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
        kept, leaked = audit.retention_leakage(a, x.double())
        expected = {"mu_eff": audit.mu_eff(a), "row_div": audit.row_div(a), "retention": kept, "leakage": leaked}
        for name, value in expected.items():
            assert row[name] == pytest.approx(value.item(), rel=1e-3), name
        assert "w2_grad" not in row
    assert set(row) <= {c.name for c in schema.AUDIT}
    assert set(row) >= {"update_rms", "g_mean", "g_ctr", "rho"}


def test_schemes_see_the_same_context_as_in_training(start):
    trainer, contexts = start(), []
    for block in trainer.dit.blocks:
        for residual in block.residuals:
            residual.register_forward_pre_hook(lambda _, args: contexts.append((*args[2][:2], float(args[2].step))))
    trainer.advance(lambda step: side_pass(trainer, [1], step))
    assert len(contexts) == 12 and contexts[:6] == contexts[6:]
    assert contexts[:2] == [(SEGMENTS, "attn", 1.0), (SEGMENTS, "ffn", 1.0)]


def test_q_and_k_are_the_first_two_thirds_of_their_weight(start):
    trainer, found = start(clip=1e9), []
    advance(trainer, 2)
    weight = trainer.dit.blocks[1].wqkv
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
        grads.append({n: p.grad.double().clone() for n, p in trainer.dit.named_parameters()})
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
    assert all(r["update_rms"] == pytest.approx(1, rel=1e-3) for r in rows[0] if "update_rms" in r)
    assert any(abs(r["update_rms"] - 1) > 0.05 for r in rows[-1] if "update_rms" in r)


# --- the stride -------------------------------------------------------------------------------------------------------


def test_the_stride_and_full_depth(start):
    trainer = start(audit_every=2, audit_layers=2, audit_full=("plain",), depth=4)
    trainer.train(before_update=Auditor(trainer).before_update)
    layers = {}
    for row in trainer.log["audit"]:
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
    assert {row["layer"] for row in trainer.log["audit"]} == {0, 3}


# --- interruption and replay ------------------------------------------------------------------------------------------


def test_an_interrupted_runs_rows_are_those_of_an_undisturbed_one(start, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "loss", loud(Trainer.loss, {24: 50, 25: 50, 28: 80, 45: 60}))
    fields = {"audit_every": 4, "horizon": 44, "checkpoint_every": 10, "depth": 2}
    whole = start(**fields)
    whole.train(before_update=Auditor(whole).before_update)
    assert {r["step"] for r in whole.log["spikes"]} == {24, 28, 45} and len(whole.curve) == 50

    class Killed(Exception):
        pass

    def kill(step):
        if step == 37:  # the rows of the first spikes come through the checkpoint at 30
            raise Killed

    first = start(folder=tmp_path / "again", **fields)
    with pytest.raises(Killed):
        first.train(before_update=Auditor(first).before_update, after_update=kill)
    second = start(folder=tmp_path / "again", **fields)
    assert second.restore() and second.step == 30
    second.train(before_update=Auditor(second).before_update)
    assert json.dumps(second.log, sort_keys=True) == json.dumps(whole.log, sort_keys=True)
    assert second.curve == whole.curve


LONG = {"horizon": 54, "checkpoint_every": 12, "depth": 2}  # checkpoints at 12, 24, ..., 60


def test_a_replayed_window_is_the_run_byte_for_byte(start):
    trainer, rows = start(audit_every=10, **LONG), {}
    auditor = Auditor(trainer)

    def look(step):
        auditor.before_update(step)
        rows[step] = audit_step(trainer, auditor.anchors, step, window=True) if step >= 15 else []

    trainer.train(before_update=look)
    values, seconds = trainer.flat.values.clone(), dict(trainer.seconds)
    curve, evals = list(trainer.curve), list(trainer.evals)
    assert auditor.replay(crash_at(45)) == ""
    first = 45 - REPLAY_BEFORE
    assert (first, trainer.step) == (15, 60)
    assert torch.equal(trainer.flat.values, values)
    window = [r for r in trainer.log["audit"] if r["window"]]
    assert json.dumps(window) == json.dumps([row for step in range(first, 61) for row in rows[step]])
    assert {r["step"] for r in trainer.log["audit"] if not r["window"]} == {1, 10}  # the rest is in the window
    assert trainer.curve == curve and trainer.evals == evals
    assert trainer.counts["replay"] == 46 and trainer.seconds["replay"] > 0
    assert {k: v for k, v in trainer.seconds.items() if k != "replay"} == seconds


def test_a_window_ends_30_steps_behind_the_crash_and_keeps_every_segment(start):
    trainer = start(audit_every=50, horizon=36, checkpoint_every=20, depth=2)
    trainer.train(before_update=Auditor(trainer).before_update)
    assert Auditor(trainer).replay(crash_at(8)) == ""
    window = [r for r in trainer.log["audit"] if r["window"]]
    assert {r["step"] for r in window} == set(range(1, 8 + REPLAY_AFTER + 1))
    assert {r["segment"] for r in window} == {"all", "image", "caption"}
    rows = trainer.log["audit"]
    assert len({(r["step"], r["layer"], r["site"], r["segment"]) for r in rows}) == len(rows)


def test_a_window_at_full_depth_is_global_only(start):
    trainer = start(audit_every=50, audit_full=("plain",), audit_layers=2, horizon=6, checkpoint_every=20)
    trainer.train(before_update=Auditor(trainer).before_update)
    assert Auditor(trainer).replay(crash_at(5)) == ""
    window = [r for r in trainer.log["audit"] if r["window"]]
    assert {r["segment"] for r in window} == {"all"} and {r["layer"] for r in window} == {0, 1, 2}


def test_a_replay_that_differs_is_refused(start):
    trainer = start(audit_every=20, **LONG)
    trainer.train(before_update=Auditor(trainer).before_update)
    original, restore = list(trainer.curve), trainer.restore
    step, loss, norm = original[30]
    for last_bit in ((step, np.nextafter(loss, 9), norm), (step, loss, np.nextafter(norm, 9)), None):
        trainer.curve[30] = last_bit or original[30]
        if last_bit is None:  # then it is the weights that differ

            def changed(at_most=None):
                found = restore(at_most)
                trainer.flat.values[0] += 1e-3
                return found

            trainer.restore = changed
        curve, log = list(trainer.curve), json.dumps(trainer.log)
        assert "differs" in Auditor(trainer).replay(crash_at(45))
        assert trainer.curve == curve and json.dumps(trainer.log) == log  # nothing of the window is kept
    trainer.restore = restore
    assert Auditor(trainer).replay(crash_at(45)) == ""


def test_a_replay_without_a_checkpoint_is_refused(start):
    trainer = start(audit_every=10)
    advance(trainer, 10)
    before = state_of(trainer)
    assert "no checkpoint" in Auditor(trainer).replay(crash_at(9))
    assert unchanged(before, state_of(trainer)) and len(trainer.curve) == 10


def test_a_real_crash_by_a_learning_rate_without_measure_is_replayed(start):
    trainer = start(audit_every=1, lr=1e30, horizon=100)
    trainer.train(before_update=Auditor(trainer).before_update)
    verdict = trainer.judge()
    assert verdict.outcome == "nonfinite" and verdict.crash_step == len(trainer.curve) < 10
    assert Auditor(trainer).replay(verdict) == ""
    assert {r["step"] for r in trainer.log["audit"] if r["window"]} == set(range(1, verdict.crash_step + 1))


def test_a_crashed_runs_record(start, data, tmp_path, monkeypatch):
    """From training to the rows: a verdict of collapse at step 45 once the run is long enough."""
    trainer = start(audit_every=10, **LONG)
    monkeypatch.setattr(Trainer, "loss", loud(Trainer.loss, {25: 50, 40: 80}))
    monkeypatch.setattr(execute, "load_data", lambda name: data)
    alive, judge = crash_at(None), lambda self: crash_at(45) if len(self.curve) > 55 else alive
    monkeypatch.setattr(Trainer, "judge", lambda self: replace(judge(self), confirmed=False))
    run = replace(trainer.run, protocol=replace(trainer.run.protocol, fid_samples=0))
    record = execute.execute(run, tmp_path / "results", "digits")
    assert (record["run"]["crash_step"], record["run"]["reason"], record["run"]["last_step"]) == (45, "", 60)
    assert record["run"]["state"] in ("mean_dominated", "mean_free", "other")
    assert {r["step"] for r in record["audit"] if r["window"]} == set(range(15, 61))
    assert record["run"]["mms_signature"] is signature(record["audit"], crash_at(45), deep_from=1) is not None
    assert {(r["step"], r["recovered"]) for r in record["spikes"]} == {(25, True), (40, False)}
    json.dumps(record)
    phases = {r["phase"]: r["count"] for r in record["throughput"]}
    assert phases["audit"] == 7 and phases["replay"] == 46


# --- spikes -----------------------------------------------------------------------------------------------------------


def test_the_threshold_is_four_times_the_median_of_the_last_hundred():
    assert spike_threshold([1.0] * 19) is None
    assert spike_threshold([1.0] * 20) == SPIKE_FACTOR == 4
    assert spike_threshold([9.0] * 50 + [1.0] * 51 + [2.0] * 49) == 4.0
    assert spike_threshold([9.0] * 50 + [1.0] * 49 + [2.0] * 51) == 8.0


def spike_steps(trainer, norms):
    """Steps for which an auditor that sees the norms one by one lays down spike rows, and the thresholds there."""
    auditor, found = Auditor(trainer), {}

    def families(step, norm, threshold):
        found[step] = threshold
        return []

    auditor.families = families
    for step, norm in enumerate(norms, 1):
        trainer.curve.append((step, 1.0, norm))
        auditor.before_update(step)
    return found


@pytest.fixture
def quiet(start, monkeypatch):
    """A trainer whose auditor audits nothing."""
    monkeypatch.setattr("suite.auditor.audit_step", lambda *_, **__: [])
    return start(audit_every=10**6)


def test_only_upward_crossings_are_spikes(quiet):
    norms = [1.0] * 30
    norms += [4.5, 5.0, 100.0]  # one spike, however long and high
    norms += [1.0] * 10 + [4.0]  # not above
    norms += [4.001, 3.9, 4.1]  # up, down, and up again
    assert list(spike_steps(quiet, norms)) == [31, 45, 47]


def test_spikes_need_twenty_norms_before_them(quiet):
    assert list(spike_steps(quiet, [1.0] * 19 + [99.0] + [1.0, 99.0])) == [22]


def test_spikes_of_a_wild_series_by_the_definition(quiet):
    norms = np.exp(np.random.default_rng(0).standard_normal(400)).tolist()
    expected = {}
    for k in range(20, 400):
        level = 4 * np.median(norms[max(0, k - 100) : k])
        before = 4 * np.median(norms[max(0, k - 101) : k - 1]) if k > 20 else np.inf
        if norms[k] > level and not norms[k - 1] > before:
            expected[k + 1] = level
    assert len(expected) > 5
    assert spike_steps(quiet, norms) == pytest.approx(expected)


def families(trainer, seed=0):
    """Rows for gradients drawn at random and clipped, with the gradients before clipping."""
    trainer.flat.grads.zero_()
    for name, place in trainer.flat.slices.items():
        draw = torch.randn(place.stop - place.start, generator=torch.Generator().manual_seed(seed + hash_of(name)))
        trainer.flat.grads[place] = draw * (1 + hash_of(name) % 7)
    raw = {n: p.grad.double().clone() for n, p in trainer.dit.named_parameters()}
    norm = trainer.flat.clip(trainer.run.protocol.clip).item()
    return Auditor(trainer).families(7, norm, 0.5), raw, norm


def hash_of(name):
    return sum(map(ord, name))


@pytest.mark.parametrize("clip", [0.5, 1e9])
@pytest.mark.parametrize("scheme, gates", [("plain", 0), ("mvsplit", 1)])
def test_squares_of_the_families_add_up_to_the_raw_norm(start, clip, scheme, gates):
    rows, raw, norm = families(start(scheme, depth=1, clip=clip))
    assert {r["family"] for r in rows} == {
        "Embed", "Final", "L0 Q", "L0 K", "L0 V", "L0 WO", "L0 W13", "L0 W2", *["L0 gates"] * gates}  # fmt: skip
    assert sum(r["family_grad_norm"] ** 2 for r in rows) == pytest.approx(norm**2, rel=1e-4)
    assert norm**2 == pytest.approx(sum(g.square().sum().item() for g in raw.values()), rel=1e-4)
    assert [r["rank"] for r in rows] == list(range(1, len(rows) + 1))
    sizes = [r["family_grad_norm"] for r in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert all((r["step"], r["grad_norm"], r["threshold"]) == (7, norm, 0.5) for r in rows)
    assert set(rows[0]) | {"run_id", "recovered"} == {c.name for c in schema.SPIKES}


def test_the_fifteen_largest_families_are_named_by_what_they_hold(start):
    rows, raw, _ = families(start("mvsplit", depth=4))
    expected = {
        "Embed": [raw["embed.weight"], raw["embed.bias"]], "Final": [raw["final.weight"], raw["final.bias"]],
    }  # fmt: skip
    for i in range(4):
        for third, label in enumerate("QKV"):
            expected[f"L{i} {label}"] = [raw[f"blocks.{i}.wqkv"][third * WIDTH : (third + 1) * WIDTH]]
        for short in ("wo", "w13", "w2"):
            expected[f"L{i} {short.upper()}"] = [raw[f"blocks.{i}.{short}"]]
        expected[f"L{i} gates"] = [raw[f"blocks.{i}.residuals.{j}.gate_{n}"] for j in (0, 1) for n in ("alpha", "beta")]
    sizes = {k: math.sqrt(sum(v.square().sum().item() for v in parts)) for k, parts in expected.items()}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:15]
    assert {r["family"]: r["family_grad_norm"] for r in rows} == pytest.approx({k: sizes[k] for k in largest}, rel=1e-4)


def test_recovery_is_told_by_the_distance_to_the_crash():
    rows = [{"step": s} for s in (10, 49, 50, 100)]
    assert [r["recovered"] for r in recovered(rows, crash_at(100), 50)] == [True, True, False, False]
    assert all(r["recovered"] for r in recovered(rows, crash_at(None), 50))


# --- the signature of our own runs ------------------------------------------------------------------------------------


def window_rows(crash=100, spike=50.0, at=0, fall=1e-6, site="attn", layers=(3, 4, 5), **fields):
    """Audit rows of steps 70 to 130: g_mean times `spike` at step crash + at; Q and K times `fall` from 5 on."""
    rows = []
    for step in range(70, 131):
        for layer in layers:
            dead = fall if step >= crash + 5 else 1.0
            rows.append({
                "step": step, "layer": layer, "site": site, "segment": "all", "window": True,
                "g_mean": 1e-3 * (spike if step == crash + at else 1), "q_grad": 1e-2 * dead, "k_grad": 2e-2 * dead,
            } | fields)  # fmt: skip
    return rows


@pytest.mark.parametrize("changes, expected", [
    ({}, True),
    ({"at": -10}, True),
    ({"at": -11}, False),  # that is before the event
    ({"spike": 5.01}, True),
    ({"spike": 4.99}, False),
    ({"fall": 0.0099}, True),
    ({"fall": 0.0101}, False),
    ({"k_grad": 1.0}, False),
    ({"q_grad": 1.0}, False),
    ({"fall": 0.0}, True),
])  # fmt: skip
def test_signature_needs_the_spike_and_both_extinctions(changes, expected):
    assert signature(window_rows(**changes), crash_at(100), deep_from=3) is expected


def test_signature_is_that_of_deep_attention_in_the_window():
    dull = window_rows(spike=1, layers=(0, 1, 2, 6, 7))
    assert signature(window_rows() + dull, crash_at(100), deep_from=3) is True  # medians: three layers of five
    assert signature(window_rows(layers=(3,)) + dull, crash_at(100), deep_from=3) is False  # one of three
    others = window_rows(site="ffn") + window_rows(segment="image")
    others += window_rows(layers=(0,)) + window_rows(window=False)
    assert signature(others, crash_at(100), deep_from=3) is None
    assert signature(window_rows(spike=1) + others, crash_at(100), deep_from=3) is False
    assert signature(window_rows(), crash_at(None), deep_from=3) is None
    assert signature(window_rows(), crash_at(75), deep_from=3) is None  # nothing from before the event


# --- the final state --------------------------------------------------------------------------------------------------


class Replace(nn.Module):
    """A block that writes a given trunk; None passes the trunk through."""

    def __init__(self, x_TD):
        super().__init__()
        self.x_TD, self.residuals = x_TD, [SimpleNamespace(open=lambda x: x)]

    def forward(self, x, rope, segments, step):
        return x if self.x_TD is None else self.x_TD.expand(len(x), *self.x_TD.shape)


def state_from(data, *trunks):
    blocks = [Replace(x) for x in trunks]
    dit = SimpleNamespace(blocks=blocks, rope=None, segments=SEGMENTS, step=None,
                          tokens=lambda z, c: torch.zeros(len(z), 7, 7))  # fmt: skip
    return final_state(SimpleNamespace(dit=dit, data=data, captions=torch.zeros(4, 3, 7), device="cpu"))


def trunk_of_cosine(c):
    """7 tokens any two of which meet at cosine c: a common direction and one of each token's own."""
    own = torch.eye(7)
    return torch.linalg.cholesky((1 - c) * own + c).float() if c > -1 / 6 else own - 1 / 7


@pytest.mark.parametrize("cosine, state", [
    (1.0 - 1e-6, "mean_dominated"), (0.91, "mean_dominated"), (0.89, "other"), (0.5, "other"), (0.0, "other"),
    (-1 / 6, "mean_free"), (-1 / 6 + 0.019, "mean_free"), (-1 / 6 + 0.021, "other"),
])  # fmt: skip
def test_state_of_a_trunk(data, cosine, state):
    assert state_from(data, trunk_of_cosine(cosine)) == state


def test_state_is_the_mean_over_the_deeper_half(data):
    equal, orthogonal = trunk_of_cosine(1 - 1e-6), trunk_of_cosine(0.0)
    assert state_from(data, orthogonal, orthogonal, equal, equal) == "mean_dominated"
    assert state_from(data, equal, equal, equal, orthogonal) == "other"
    assert state_from(data, orthogonal, equal, equal) == "mean_dominated"  # of three blocks, the last two
    assert state_from(data, equal, equal, orthogonal) == "other"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_state_of_a_broken_trunk_is_other(data, value):
    assert state_from(data, torch.full((7, 7), value)) == "other"


def test_state_of_a_healthy_model_is_other(start):
    assert final_state(start()) == "other"
