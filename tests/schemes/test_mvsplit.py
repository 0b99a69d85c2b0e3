"""MV-Split against the paper's equations."""

import itertools

import pytest
import torch
from cases import SEGMENTS, backward, build, context, normal, projector, shake

from suite import registry
from suite.residual import centered, token_mean
from suite.sweep.plan import Selection, SelectionError, make_plan


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
    out = block(x, model.rope, model.segments, model.step, torch.zeros(2))
    captions = [0, 1, 2, 3, 6, 4, 5]
    torch.testing.assert_close(block(x[:, captions], model.rope, model.segments, model.step, torch.zeros(2)), out[:, captions])
    images = [2, 0, 3, 1, 4, 5, 6]  # image tokens have places: RoPE tells them apart
    assert (block(x[:, images], model.rope, model.segments, model.step, torch.zeros(2)) - out[:, images]).abs().max() > 1e-3


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
