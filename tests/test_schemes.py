"""Residual schemes: what every one must do, what each paper says of its own, what a plugin file may get wrong.

T tokens, D width. Projectors are explicit T x T matrices here, so nothing is checked against `token_mean` itself.
"""

import csv
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from suite import registry
from suite.cli import main
from suite.optim import FlatParameters
from suite.plan import Selection, SelectionError, make_plan
from suite.residual import Context, Residual, Site, centered, rms_norm, token_mean

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = [(name, arm) for arm in registry.ARMS for name in registry.names(arm)]
every_scheme = pytest.mark.parametrize(("name", "arm"), ENTRIES, ids=["-".join(e) for e in ENTRIES])
SEGMENTS = (4, 3)


def build(name, arm="controlled", *, site="attn", width=8, depth=4, block=1, params=""):
    entry = registry.get(name, arm)
    return entry.cls(Site(width, depth, block, site), **registry.parse_params(entry, params))


def context(segments=SEGMENTS, site="attn"):
    return Context(segments, site, torch.zeros(()))


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shake(module, seed=0):
    """Move every gate to a random place, so that no test passes because a gate is 0 or 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if isinstance(module, Residual) or ".residuals." in name:
                p.copy_(0.5 + torch.rand(p.shape, generator=draw))
    return module


def projector(segments):
    """J of Eq. 3 and 43 as a (T, T) float64 matrix: block-diagonal, each block 1/t everywhere."""
    return torch.block_diag(*[torch.full((t, t), 1 / t, dtype=torch.float64) for t in segments if t])


def inputs(model, batch=2, seed=5):
    """An image and captions for a model, in the type of its weights."""
    c = model.embed.in_features // model.patch**2
    size = model.patch * int(model.segments[0] ** 0.5)
    d = model.embed.out_features
    image = normal(batch, c, size, size, seed=seed)
    caption = normal(batch, model.segments[1], d, seed=seed + 1)
    return image.to(model.final.weight.dtype), caption.to(model.final.weight.dtype)


def backward(model, seed=5):
    """Gradients of a squared error against a random target."""
    image, caption = inputs(model, seed=seed)
    out = model(image, caption)
    (out - normal(*out.shape, seed=9, dtype=out.dtype)).square().mean().backward()
    return out.detach()


# --- the contract, for every scheme in the registry -------------------------------------------------------------------


@every_scheme
@pytest.mark.parametrize("site", ["attn", "ffn"])
def test_merge_is_finite_keeps_its_shape_and_passes_gradients_to_trunk_branch_and_gates(name, arm, site):
    scheme = shake(build(name, arm, site=site))
    x, f = normal(2, 7, 8).requires_grad_(), normal(2, 7, 8, seed=1).requires_grad_()
    trunk = scheme.open(x)
    out = scheme(trunk, lambda _: f, context(site=site))
    assert out.shape == trunk.shape and out.dtype == x.dtype and out.isfinite().all()
    folded = scheme.fold(out)
    assert folded.shape == x.shape and folded.isfinite().all()
    (folded * normal(*folded.shape, seed=2)).sum().backward()
    for tensor in (x, f):
        assert tensor.grad.isfinite().all() and (tensor.grad.norm(dim=-1) > 1e-4).all()  # every token
    for key, gate in scheme.named_parameters():
        if key.startswith("gate_"):
            assert gate.grad.isfinite().all() and gate.grad.abs().max() > 1e-6, key


@every_scheme
def test_scheme_parameters_are_gates_and_never_decay(name, arm, tiny_model):
    model = shake(tiny_model(name, arm))
    owned = {id(p) for r in model.modules() if isinstance(r, Residual) for p in r.parameters()}
    names = [n for n, p in model.named_parameters() if id(p) in owned]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    flat = FlatParameters(model)
    optimizer = flat.adamw(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    assert bool(names) == ("gates" in flat.leaves)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()  # all gradients are zero: only decay moves anything
    for n, p in model.named_parameters():
        if n in names or p.ndim < 2:
            assert torch.equal(p, before[n]), n
        else:
            torch.testing.assert_close(p.detach(), before[n] * (1 - 0.5 * 0.1), msg=n)


@every_scheme
def test_weights_shared_with_plain_at_the_same_seed_up_to_the_factor_of_the_scheme(name, arm, tiny_model):
    cls = registry.get(name, arm).cls
    ours, plain = tiny_model(name, arm, seed=3), tiny_model("plain", seed=3)
    for part in ("embed", "final"):
        assert torch.equal(getattr(ours, part).weight, getattr(plain, part).weight)
        assert torch.equal(getattr(ours, part).bias, getattr(plain, part).bias)
    for mine, theirs in zip(ours.blocks, plain.blocks, strict=True):
        for site in ("attn", "ffn"):
            for key, w in mine.weights(site).items():
                reference = theirs.weights(site)[key]
                if cls.init_weights is Residual.init_weights:
                    assert torch.equal(w, reference), key
                else:  # one number per matrix, so the random direction is shared
                    factor = (w * reference).sum() / reference.square().sum()
                    torch.testing.assert_close(w, factor * reference)


@every_scheme
def test_state_dict_holds_every_tensor_once_and_restores_the_model(name, arm, tiny_model):
    model = shake(tiny_model(name, arm, depth=3))
    state = model.state_dict()
    places = [t.untyped_storage().data_ptr() for t in state.values()]
    assert len(places) == len(set(places))
    assert len(state) == len(list(model.parameters())) + sum(1 for _ in model.buffers()) - 2  # rope and step are not saved
    other = tiny_model(name, arm, depth=3, seed=8)
    image, caption = inputs(model)
    with torch.no_grad():
        assert not torch.equal(other(image, caption), model(image, caption))
        other.load_state_dict(state, strict=True)
        assert torch.equal(other(image, caption), model(image, caption))


@every_scheme
def test_a_block_merges_twice_attention_first(name, arm, tiny_model):
    model, calls = tiny_model(name, arm, depth=3), []
    for index, block in enumerate(model.blocks):
        for residual in block.residuals:
            residual.register_forward_pre_hook(lambda _, args, i=index: calls.append((i, args[2])))
    model(*inputs(model))
    assert [(i, c.site) for i, c in calls] == [(i, s) for i in range(3) for s in ("attn", "ffn")]
    assert all(c.segments == (4, 3) and isinstance(c.step, torch.Tensor) for _, c in calls)


@every_scheme
def test_plan_gives_each_scheme_its_legal_default_writers(name, arm):
    (run,) = make_plan(Selection(protocol="smoke", schemes=(name,), arms=(arm,), depths=(2,)))
    assert run.writers == ("std" if arm == "native" or registry.get(name, arm).cls.zero_writers else "zero")


# --- plain, LayerScale ------------------------------------------------------------------------------------------------


def test_plain_is_the_norm_of_the_sum():
    x, f = normal(2, 7, 8), normal(2, 7, 8, seed=1)
    z = (x + f).double()
    expected = z / (z.pow(2).sum(-1, keepdim=True) / 8 + 1e-6).sqrt()
    torch.testing.assert_close(build("plain")(x, lambda _: f, context()).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "params"), [("layerscale", "init=1"), ("deepnorm", "alpha=1,beta=1")])
def test_neutral_parameters_are_plain_bit_for_bit(name, params, tiny_model):
    ours, plain = tiny_model(name, params=params, depth=3), tiny_model("plain", depth=3)
    image, caption = inputs(ours)
    assert torch.equal(ours(image, caption), plain(image, caption))
    assert not torch.equal(tiny_model(name, depth=3)(image, caption), plain(image, caption))  # the defaults are not neutral


def test_layerscale_scales_channels_and_their_gradients():
    scheme = shake(build("layerscale"))
    x, f = normal(2, 7, 8), normal(2, 7, 8, seed=1).requires_grad_()
    g = normal(2, 7, 8, seed=2)
    z = scheme.merge(x, f, context())
    z.backward(g)
    gate = scheme.gate_lambda.detach()
    torch.testing.assert_close(z.detach(), torch.stack([x[..., d] + gate[d] * f[..., d].detach() for d in range(8)], -1))
    torch.testing.assert_close(f.grad, gate * g)
    torch.testing.assert_close(scheme.gate_lambda.grad, (f.detach() * g).sum((0, 1)))
    assert torch.equal(build("layerscale").gate_lambda, torch.full((8,), 0.01))


def test_layerscale_has_a_vector_per_merge(tiny_model):
    model = tiny_model("layerscale", depth=3)
    assert [p.shape for n, p in model.named_parameters() if "gate_" in n] == [(16,)] * 6


def layer_norm(x, eps):
    """Non-affine LayerNorm in float64."""
    x = x.double()
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def test_native_layerscale_is_cait_pre_norm_with_a_final_norm(tiny_model):
    scheme = shake(build("layerscale", "native"))
    torch.nn.init.ones_(scheme.norm.weight), torch.nn.init.zeros_(scheme.norm.bias)
    x, w = 3 + 2 * normal(2, 7, 8), normal(8, 8, seed=1)
    expected = x.double() + scheme.gate_lambda.double() * (layer_norm(x, 1e-6) @ w.double())
    torch.testing.assert_close(scheme(x, lambda h: h @ w, context()).double(), expected, rtol=1e-5, atol=1e-5)
    rule = {18: 0.1, 19: 1e-5, 24: 1e-5, 25: 1e-6, 1000: 1e-6}  # CaiT section 3
    for depth, init in rule.items():
        assert build("layerscale", "native", depth=depth).gate_lambda.eq(init).all(), depth
    model = tiny_model("layerscale", "native", "init=1e-6", depth=3)  # tiny gates: the trunk is the input
    image, caption = inputs(model)
    seen = []
    model.final.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(image, caption)
    tokens = model.tokens(image, caption)
    trunk = model._blocks(tokens, 0, 3)
    torch.testing.assert_close(trunk, tokens, rtol=0, atol=1e-4)
    assert not torch.equal(trunk, tokens)
    torch.testing.assert_close(seen[0].double(), layer_norm(trunk[:, :4], 1e-6), rtol=1e-5, atol=1e-5)  # fold was used
    assert sum("final_norm" in n for n, _ in model.named_parameters()) == 2


# --- DeepNorm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", registry.ARMS)
@pytest.mark.parametrize(("blocks", "alpha", "beta"), [(100, 3.7606, 0.1880), (400, 5.3183, 0.1330), (1000, 6.6874, 0.1057)])
def test_deepnorm_constants_of_the_published_table(arm, blocks, alpha, beta):
    scheme = build("deepnorm", arm, depth=blocks)
    x, f = normal(1, 7, 8), normal(1, 7, 8, seed=1)
    torch.testing.assert_close(scheme.merge(x, f, context()), alpha * x + f, rtol=2e-5, atol=2e-5)
    weights = {n: torch.ones(2, 2) for n in ("q", "k", "v", "o", "w13", "w2")}
    build("deepnorm", depth=blocks).init_weights("attn", weights)
    for n, w in weights.items():
        assert w[0, 0].item() == pytest.approx(1 if n in "qk" else beta, rel=4e-4), n


def test_deepnorm_is_post_norm_with_the_branch_over_alpha_and_eps_over_alpha_squared():
    x, f = normal(2, 7, 8, dtype=torch.float64), normal(2, 7, 8, seed=1, dtype=torch.float64)
    x, f = 1e-3 * x, 1e-3 * f  # so small that eps counts
    scheme = build("deepnorm", depth=400).double()
    a = scheme.alpha.item()
    out = scheme(x, lambda _: f, context())
    torch.testing.assert_close(out, rms_norm(x + f / a, eps=1e-6 / a**2), rtol=1e-12, atol=1e-14)
    assert (out - rms_norm(x + f / a)).abs().max() > 1e-2  # and not with eps itself
    assert (out - rms_norm(x + a * f, eps=1e-6 / a**2)).abs().max() > 1e-2


def test_deepnorm_scales_exactly_v_o_w13_w2_by_beta(tiny_model):
    ours, plain = tiny_model("deepnorm", depth=5, width=64, seed=4), tiny_model("plain", depth=5, width=64, seed=4)
    beta = (8 * 5) ** -0.25
    for mine, theirs in zip(ours.blocks, plain.blocks, strict=True):
        for site in ("attn", "ffn"):
            for key, w in mine.weights(site).items():
                assert torch.equal(w, theirs.weights(site)[key] * (1 if key in "qk" else beta)), key
    weights = ours.blocks[0].weights("attn")
    assert (weights["v"].std() / weights["q"].std()).item() == pytest.approx(beta, rel=0.05)  # 4096 draws each
    assert (weights["o"].std() / weights["k"].std()).item() == pytest.approx(beta, rel=0.05)


def test_native_deepnorm_is_affine_layernorm_with_xavier_gains(tiny_model):
    scheme = build("deepnorm", "native", depth=100)
    x, f = normal(2, 7, 8), normal(2, 7, 8, seed=1)
    torch.testing.assert_close(scheme(x, lambda _: f, context()).double(), layer_norm(200**0.25 * x + f, 1e-5), rtol=1e-5, atol=1e-5)
    assert {n for n, _ in scheme.named_parameters()} == {"norm.weight", "norm.bias"}
    beta = (8 * 2) ** -0.25
    for writers in ("std", "zero"):
        block = tiny_model("deepnorm", "native", width=64, writers=writers).blocks[0]
        for key, w in block.weights("attn").items():
            gain = 1 if key in "qk" else beta
            assert w.std().item() == pytest.approx(0 if (key, writers) == ("o", "zero") else gain * 64**-0.5, rel=1e-4), key


# --- ReZero -----------------------------------------------------------------------------------------------------------


def test_rezero_starts_as_the_identity_with_one_scalar_a_block(tiny_model):
    for arm in registry.ARMS:
        model = tiny_model("rezero", arm, depth=3)
        gates = [p for n, p in model.named_parameters() if "gate_" in n]
        assert [g.shape for g in gates] == [(1,)] * 3 and all(g.item() == 0 for g in gates)
        tokens = model.tokens(*inputs(model))
        trunk = model._blocks(tokens, 0, 3)
        if arm == "native":
            assert torch.equal(trunk, tokens)
            x = 100 * normal(2, 7, 16)  # norm-free: any size passes through
            assert torch.equal(model._blocks(x, 0, 3), x)
            torch.testing.assert_close(model.blocks[-1].residuals[-1].fold(x).square().mean(-1), torch.ones(2, 7))
        else:
            x = normal(2, 7, 16, dtype=torch.float64)
            x = x / x.square().mean(-1, keepdim=True).sqrt()  # normalised exactly
            trunk = model.double()._blocks(x, 0, 3)
            torch.testing.assert_close(trunk, x, rtol=1e-6, atol=0)  # off by eps / 2
            assert not torch.equal(trunk, x)


def test_rezero_scalar_is_shared_by_both_merges_of_a_block(tiny_model):
    model = tiny_model("rezero", depth=2)
    for block in model.blocks:
        block.residuals[0].gate_alpha.data.fill_(0.7)
    backward(model)
    summed = [b.residuals[0].gate_alpha.grad.item() for b in model.blocks]
    for block, total in zip(model.blocks, summed, strict=True):  # the two merges' own gradients add up to it
        parts = {}
        for site in ("attn", "ffn"):
            copies = [torch.tensor([0.7], requires_grad=True) for _ in range(2)]
            calls = itertools.count()
            block.residuals[0].merge = lambda x, f, c, s=copies, k=calls: x + s[next(k)] * f
            backward(model)
            del block.residuals[0].merge
            parts[site] = copies[site == "ffn"].grad.item()
        assert sum(parts.values()) == pytest.approx(total, rel=1e-4, abs=1e-7)
        assert all(abs(p) > 1e-6 for p in parts.values())


@pytest.mark.parametrize("arm", registry.ARMS)
def test_rezero_refuses_zero_writers_which_would_be_dead_for_ever(arm, tiny_model):
    with pytest.raises(SelectionError, match="rezero refuses zero writers.*zero gradient"):
        make_plan(Selection(protocol="smoke", schemes=("rezero",), arms=(arm,), params=("rezero:writers=zero",)))
    (run,) = make_plan(Selection(protocol="smoke", schemes=("rezero",), arms=(arm,), params=("rezero:writers=std",), depths=(2,)))
    assert run.writers == "std"
    dead, alive = (tiny_model("rezero", arm) for _ in range(2))
    for block in dead.blocks:  # native writers are rescaled by their own std, so they are zeroed after the draw
        block.wo.data.zero_(), block.w2.data.zero_()
    backward(dead), backward(alive)
    for block in dead.blocks:
        for p in block.parameters():
            assert p.grad.count_nonzero() == 0
    for block in alive.blocks:  # the gate moves first, the writers one step later
        assert block.residuals[0].gate_alpha.grad.abs() > 1e-6
        assert block.wo.grad.count_nonzero() == block.w2.grad.count_nonzero() == 0
    assert dead.embed.weight.grad.abs().max() > 1e-6  # the loss itself does reach the trunk


# --- MV-Split: the paper's equations ----------------------------------------------------------------------------------


def mvsplit_case(segments, seed=0):
    """A float64 scheme with random gates, and x, f, g = dL/dZ or dL/d output, (2, T, 8)."""
    scheme = shake(build("mvsplit"), seed).double()
    tokens = sum(segments)
    x, f, g = (normal(2, tokens, 8, seed=seed + i, dtype=torch.float64) + i for i in range(3))  # means differ from 0
    return scheme, x, f, g


CASES = [(7,), (4, 3), (4, 0), (0, 3), (1, 1), (4, 1)]


@pytest.mark.parametrize("segments", CASES, ids=str)
def test_token_mean_is_the_projector_of_eq_3_and_43(segments):
    x, J = normal(2, sum(segments), 8, dtype=torch.float64), projector(segments)
    torch.testing.assert_close(token_mean(x, segments), J @ x)
    torch.testing.assert_close(centered(x, segments), x - J @ x)


@pytest.mark.parametrize("segments", CASES, ids=str)
def test_mvsplit_decouples_the_modes_eq_9_and_10(segments):
    scheme, x, f, g = mvsplit_case(segments)
    a, b, J = scheme.gate_alpha.detach(), scheme.gate_beta.detach(), projector(segments)
    whole = projector((sum(segments),))
    x.requires_grad_(), f.requires_grad_()
    z = scheme.merge(x, f, context(segments))
    z.backward(g)
    torch.testing.assert_close(f.grad, b * (g - J @ g) + a * (J @ g))
    torch.testing.assert_close(x.grad, g - a * (J @ g))
    x, f, z = x.detach(), f.detach(), z.detach()
    torch.testing.assert_close(J @ z, (1 - a) * (J @ x) + a * (J @ f))
    torch.testing.assert_close(whole @ z, (1 - a) * (whole @ x) + a * (whole @ f))  # Eq. 45: the global mean too
    torch.testing.assert_close(z - J @ z, (x - J @ x) + b * (f - J @ f))


@pytest.mark.parametrize("segments", CASES, ids=str)
def test_mvsplit_backward_is_the_closed_form_of_eq_50_to_54(segments):
    scheme, x, f, g = mvsplit_case(segments)
    scale = 1e-3  # so small that eps = 1e-6 counts in r
    x, f = (scale * x).requires_grad_(), (scale * f).requires_grad_()
    scheme(x, lambda _: f, context(segments)).backward(g)
    a, b, J, eps = scheme.gate_alpha.detach(), scheme.gate_beta.detach(), projector(segments), 1e-6
    with torch.no_grad():
        z = x + b * (f - J @ f) + a * (J @ (f - x))
        r = (z.pow(2).sum(-1, keepdim=True) / 8 + eps).pow(-0.5)
        delta = r * g - z * (r**3 / 8) * (g * z).sum(-1, keepdim=True)
        mean = J @ delta
        closed = {
            "x": delta - a * mean,
            "f": b * delta + (a - b) * mean,
            "alpha": (delta * (J @ f - J @ x)).sum((0, 1)),
            "beta": (delta * (f - J @ f)).sum((0, 1)),
        }
    autograd = {"x": x.grad, "f": f.grad, "alpha": scheme.gate_alpha.grad, "beta": scheme.gate_beta.grad}
    for key, expected in closed.items():
        torch.testing.assert_close(autograd[key], expected, rtol=1e-9, atol=1e-12 * g.abs().max().item() / scale, msg=key)


@pytest.mark.parametrize("segments", [(7,), (4, 3), (4, 1)], ids=str)
def test_mvsplit_gradcheck(segments):
    scheme, x, f, _ = mvsplit_case(segments)
    tensors = [t.detach().clone().requires_grad_() for t in (x, f, scheme.gate_alpha, scheme.gate_beta)]

    def through(x, f, alpha, beta):
        gates = {"gate_alpha": alpha, "gate_beta": beta}
        return torch.func.functional_call(scheme, gates, (x, lambda _: f, context(segments)))

    assert torch.autograd.gradcheck(through, tensors)


def test_mvsplit_special_gates():
    x, f = (normal(2, 7, 8, seed=i, dtype=torch.float64) + 1 for i in range(2))
    J = projector(SEGMENTS)

    def z(alpha, beta):
        return build("mvsplit", params=f"alpha={alpha},beta={beta}").double().merge(x, f, context())

    torch.testing.assert_close(build("plain").merge(x, f, context()) - z(1, 1), J @ x)  # (1, 1) is PX + F, not plain
    torch.testing.assert_close(z(0, 1), x + f - J @ f)
    assert torch.equal(z(0, 0), x)
    torch.testing.assert_close(z(1, 0), x - J @ x + J @ f)
    assert registry.get("mvsplit").defaults == {"alpha": 0.0, "beta": 1.0, "sites": "both"}  # Table 3


def test_mvsplit_segments_do_not_touch_each_other():
    scheme, x, f, _ = mvsplit_case(SEGMENTS)
    z = scheme.merge(x, f, context())
    for moved, kept in ((slice(4, 7), slice(0, 4)), (slice(0, 4), slice(4, 7))):
        x2, f2 = x.clone(), f.clone()
        x2[:, moved] += 10
        f2[:, moved] *= -3
        z2 = scheme.merge(x2, f2, context())
        assert torch.equal(z2[:, kept], z[:, kept])
        assert (z2[:, moved] != z[:, moved]).any(-1).all()
    x2, f2 = x.clone(), f.clone()
    x2[1] += 10
    f2[1] *= -3
    assert torch.equal(scheme.merge(x2, f2, context())[0], z[0])  # samples neither


def test_mvsplit_merge_and_block_are_equivariant_to_token_order_within_a_segment(tiny_model):
    scheme, x, f, _ = mvsplit_case(SEGMENTS)
    within, across = [2, 0, 3, 1, 6, 4, 5], [4, 0, 3, 1, 6, 2, 5]
    z = scheme.merge(x, f, context())
    torch.testing.assert_close(scheme.merge(x[:, within], f[:, within], context()), z[:, within])
    assert (scheme.merge(x[:, across], f[:, across], context()) - z[:, across]).abs().max() > 1e-3
    model = shake(tiny_model("mvsplit")).double()
    block, x = model.blocks[0], normal(2, 7, 16, dtype=torch.float64)
    out = block(x, model.rope, model.segments, model.step)
    captions = [0, 1, 2, 3, 6, 4, 5]
    torch.testing.assert_close(block(x[:, captions], model.rope, model.segments, model.step), out[:, captions])
    images = [2, 0, 3, 1, 4, 5, 6]  # image tokens have places: RoPE tells them apart
    assert (block(x[:, images], model.rope, model.segments, model.step) - out[:, images]).abs().max() > 1e-3


def writer_modes(model, monkeypatch):
    """(|mean part|, |whole|) of every writer's gradient by Eq. 5, per segment and global, from a real backward."""
    seen = []
    for block in model.blocks:
        for inner, outer, weight in (("heads_out", "attention", block.wo), ("ffn_hidden", "ffn", block.w2)):
            record = {"weight": weight}
            seen.append(record)

            def keep(*args, call, record, key):
                out = call(*args)
                out.retain_grad()
                record[key] = out
                return out

            for attribute, key in ((inner, "y"), (outer, "f")):
                call = getattr(block, attribute)
                monkeypatch.setattr(block, attribute, lambda *a, c=call, r=record, k=key: keep(*a, call=c, record=r, key=k))
    backward(model)
    parts = []
    for record in seen:
        y, d = record["y"].detach(), record["f"].grad
        whole = torch.einsum("btd,bte->de", d, y)
        torch.testing.assert_close(whole, record["weight"].grad)  # what was caught is the writer's own gradient
        slices = [slice(0, 4), slice(4, 7), slice(0, 7)]
        means = [sum((s.stop - s.start) * torch.outer(d[b, s].mean(0), y[b, s].mean(0)) for b in range(len(d))).norm() for s in slices]
        parts.append((max(means), whole.norm()))
    return parts


def test_mvsplit_writers_have_no_mean_mode_gradient_at_alpha_zero(tiny_model, monkeypatch):
    for mean, whole in writer_modes(tiny_model("mvsplit", depth=3).double(), monkeypatch):
        assert whole > 1e-4 and mean < 1e-12 * whole
    for other in (
        tiny_model("plain", depth=3),
        tiny_model("layerscale", params="init=1", depth=3),
        tiny_model("mvsplit", params="alpha=0.5", depth=3),
    ):
        for mean, whole in writer_modes(other.double(), monkeypatch):
            assert mean > 1e-3 * whole  # the control: others have one


def test_mvsplit_with_zero_writers_moves_alpha_before_beta(tiny_model):
    model = tiny_model("mvsplit", writers="zero")
    backward(model)
    for residual in (r for b in model.blocks for r in b.residuals):
        assert residual.gate_beta.grad.count_nonzero() == 0
        assert residual.gate_alpha.grad.abs().max() > 1e-6


def test_mvsplit_with_an_empty_caption_segment_runs_and_trains(tiny_model):
    model = shake(tiny_model("mvsplit", caption_tokens=0))
    assert backward(model).isfinite().all()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters())


def test_mvsplit_in_a_segment_of_one_token_sees_only_the_mean():
    scheme, x, f, _ = mvsplit_case((1, 1))
    z = scheme.merge(x, f, context((1, 1)))
    torch.testing.assert_close(z, (1 - scheme.gate_alpha) * x + scheme.gate_alpha * f)  # PF = 0: beta is nowhere


def test_mvsplit_on_one_site_is_plain_on_the_other():
    x, f = normal(2, 7, 8), normal(2, 7, 8, seed=1)
    for sites, site in itertools.product(("attn", "ffn"), repeat=2):
        scheme = build("mvsplit", site=site, params=f"sites={sites}")
        same = torch.equal(scheme.merge(x, f, context(site=site)), x + f)
        assert same == (sites != site) and bool(list(scheme.parameters())) == (sites == site)
    with pytest.raises(SelectionError, match="mvsplit.*sites='none'"):
        make_plan(Selection(protocol="smoke", schemes=("mvsplit",), params=("sites=none",)))


# --- plugins through the command line ---------------------------------------------------------------------------------

PLUGIN = """
from suite.registry import register
from suite.residual import Residual

@register({name!r}, paper="mine")
class Mine(Residual):
    def __init__(self, site, gain: float = 0.5):
        super().__init__(site)
        self.gain = gain

    def merge(self, x_BTD, f_BTD, ctx):
        return {z}
"""
SELECT = ["--protocol", "smoke", "--depths", "2"]


@pytest.fixture
def scratch_registry():
    """What a test registers is forgotten afterwards."""
    registry.discover()
    entries, modules = dict(registry._entries), set(sys.modules)
    yield
    registry._entries.clear()
    registry._entries.update(entries)
    for name in set(sys.modules) - modules:
        if name.startswith("screambench_plugin_"):
            del sys.modules[name]


def cli(*words):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "suite", *words], cwd=ROOT, env=env, capture_output=True, text=True)


def test_a_scheme_in_a_file_of_its_own_gets_rows(tmp_path):
    plugin, results = tmp_path / "my_scheme.py", tmp_path / "results"
    plugin.write_text(PLUGIN.format(name="mine", z="x_BTD + self.gain * f_BTD"))
    flags = [*SELECT, "--schemes", "mine", "--plugin", str(plugin), "--results", str(results), "--params", "gain=0.25"]
    done = cli("run", *flags, "--workers", "1")
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((results / "smoke" / "runs.csv").open())
    assert (row["scheme"], row["params"], row["depth"], row["status"]) == ("mine", "gain=0.25", "2", "done")
    assert row["writers"] == "zero" and row["outcome"]
    curve = list(csv.DictReader((results / "smoke" / "curves" / "mine-L2.csv").open()))
    assert [int(r["step"]) for r in curve] == list(range(1, 15)) and {r["run_id"] for r in curve} == {row["run_id"]}
    assert (results / "smoke" / "evals.csv").read_text().count(row["run_id"]) >= 3


BAD = {  # file -> what the line must name
    "duplicate": (PLUGIN.format(name="plain", z="x_BTD + f_BTD"), "plain", ["f.py", "plain", "already registered"]),
    "malformed": (PLUGIN.format(name="My-Scheme", z="x_BTD + f_BTD"), "plain", ["f.py", "'My-Scheme'"]),
    "syntax": ("x = 1\ndef f(:\n    pass\n", "plain", ["f.py", "line 2", "SyntaxError"]),
    "import": ("import no_such_module_at_all\n", "plain", ["f.py", "no_such_module_at_all"]),
    "late": (PLUGIN.format(name="mine", z="x_BTD") + "\n1 / 0\n", "plain", ["f.py", "ZeroDivisionError"]),
    "no scheme": ("x = 1\n", "plain", ["f.py", "no scheme"]),
    "no default": (
        PLUGIN.format(name="mine", z="x_BTD").replace(": float = 0.5", ""),
        "mine",
        ["f.py", "mine", "gain"],
    ),
    "shape": (PLUGIN.format(name="mine", z="x_BTD[:, :1] + f_BTD[:, :1]"), "mine", ["mine", "(2, 6, 8)", "(2, 1, 8)"]),
    "type": (PLUGIN.format(name="mine", z="None"), "mine", ["mine"]),
    "nan": (PLUGIN.format(name="mine", z="x_BTD + f_BTD / 0"), "mine", ["mine", "nan"]),
    "raises": (PLUGIN.format(name="mine", z="x_BTD @ f_BTD"), "mine", ["mine", "RuntimeError"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_plugin_is_one_line_and_status_2_and_nothing_is_written(case, tmp_path, capsys, scratch_registry):
    text, scheme, needles = BAD[case]
    (tmp_path / "f.py").write_text(text)
    results, known = tmp_path / "results", dict(registry._entries)
    flags = [*SELECT, "--schemes", scheme, "--plugin", str(tmp_path / "f.py"), "--results", str(results)]
    assert main(["run", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1, err
    for needle in needles:
        assert needle in err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["f.py"]
    for key, entry in known.items():
        assert registry._entries[key] is entry  # the built-in schemes are as they were
    if scheme == "plain":
        assert registry._entries.keys() == known.keys()  # and a file that fails half-way leaves nothing behind


def test_the_exit_status_of_a_broken_plugin_reaches_the_shell(tmp_path):
    (tmp_path / "f.py").write_text(BAD["shape"][0])
    done = cli("run", *SELECT, "--schemes", "mine", "--plugin", str(tmp_path / "f.py"), "--results", str(tmp_path / "r"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "mine" in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_missing_plugin_and_an_unknown_scheme_are_named(tmp_path, capsys):
    assert main(["run", *SELECT, "--plugin", str(tmp_path / "gone.py"), "--results", str(tmp_path / "r")]) == 2
    assert "gone.py: no such file" in capsys.readouterr().err
    for typo, near in (("mvsplt", "mvsplit"), ("layer_scale", "layerscale"), ("re_zero", "rezero")):
        assert main(["run", *SELECT, "--schemes", typo, "--results", str(tmp_path / "r")]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and repr(typo) in err and f"did you mean {near}" in err
    assert main(["run", *SELECT, "--schemes", "zzzzzzzz", "--results", str(tmp_path / "r")]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and all(name in err for name in registry.names())
    assert main(["run", *SELECT, "--schemes", "plain", "--arms", "native", "--results", str(tmp_path / "r")]) == 2
    assert "plain has no native arm; it has controlled" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_plugin_digest_follows_the_code_not_its_comments(tmp_path):
    text = PLUGIN.format(name="mine", z="x_BTD + f_BTD")
    variants = {
        "base": text,
        "comment": "# hello\n" + text,
        "doc": text.replace("class Mine(Residual):", 'class Mine(Residual):\n    """Doc."""\n'),
        "layout": text.replace("x_BTD + f_BTD", "(x_BTD +\n            f_BTD)"),
        "code": text.replace("x_BTD + f", "x_BTD - f"),
    }
    digests = {}
    for key, source in variants.items():
        (tmp_path / f"{key}.py").write_text(source)
        digests[key] = registry.code_digest(tmp_path / f"{key}.py")
    assert digests["base"] == digests["comment"] == digests["doc"] == digests["layout"] != digests["code"]
