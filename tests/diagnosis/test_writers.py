"""The decomposition of writer gradients on a real backward pass; Lemma 1 on a real attention layer."""

import pytest
import torch
import torch.nn.functional as F
from naive import B, D, N, T, draw

from suite.diagnosis import metrics
from suite.model.backbone import attention_matrix
from suite.residual import Context

# --- a real backward pass ---------------------------------------------------------------------------------------------


def writer_traffic(model, call, *names):
    """Input and output gradient of the named weights, and the weights' own gradients, from one ordinary backward."""
    weights = {id(dict(model.named_parameters())[n]): n for n in names}
    seen, original = {}, F.linear

    def linear(x, weight, bias=None):
        out = original(x, weight, bias)
        if id(weight) in weights:
            out.retain_grad()
            seen[weights[id(weight)]] = (x.detach(), out)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", linear)
        call().backward()
    return {n: (out.grad, y, dict(model.named_parameters())[n].grad) for n, (y, out) in seen.items()}


def dit_loss(model, seed=0):
    image, caption = draw(B, 2, 4, 4, seed=seed), draw(B, 3, 16, seed=seed + 1)
    target = draw(B, 2, 4, 4, seed=seed + 2)
    return lambda: (model(image, caption, torch.linspace(0, 1, B)) - target).square().mean()


WRITERS = ("blocks.0.wo", "blocks.0.w2", "blocks.1.wo", "blocks.1.w2")


@pytest.mark.parametrize("scheme, params", [("plain", ""), ("mvsplit", "alpha=0.3"), ("layerscale", "init=0.5")])
def test_the_two_parts_add_up_to_the_gradient_of_a_real_backward(tiny_model, scheme, params):
    model = tiny_model(scheme, params=params).double()
    traffic = writer_traffic(model, dit_loss(model), *WRITERS)
    assert set(traffic) == set(WRITERS)
    for d, y, grad in traffic.values():
        mean, centered = metrics.writer_gradient(d, y)
        assert (mean + centered - grad).norm() < 1e-12 * grad.norm()
        assert mean.norm() > 1e-3 * grad.norm() and centered.norm() > 1e-3 * grad.norm()
        for d_TD, y_TF in zip(d, y, strict=True):
            cross = sum(torch.outer(d_TD.mean(0), y_t - y_TF.mean(0)) for y_t in y_TF)
            assert cross.norm() < 1e-12 * grad.norm()


def mean_shares(model):
    """g_mean / g_ctr by writer and segment of a model (4 image and 3 caption tokens).

    The last block's captions reach no output: their gradient is 0.
    """
    shares = {}
    for name, (d, y, _) in writer_traffic(model, dit_loss(model), *WRITERS).items():
        for cut in (slice(None), slice(4), slice(4, None))[: 3 if name.startswith("blocks.0") else 2]:
            found = metrics.writer_metrics(d[:, cut], y[:, cut])
            shares[name, cut.start, cut.stop] = found["g_mean"] / found["g_ctr"]
    return shares


def test_mvsplit_at_alpha_0_has_no_mean_gradient_in_any_segment(tiny_model):
    assert max(mean_shares(tiny_model("mvsplit").double()).values()) < 1e-12


@pytest.mark.parametrize("scheme, params", [("plain", ""), ("layerscale", "init=1.0"), ("mvsplit", "alpha=0.1")])
def test_others_have_a_mean_gradient(tiny_model, scheme, params):
    assert min(mean_shares(tiny_model(scheme, params=params).double()).values()) > 1e-3


def test_mvsplit_on_attention_alone_leaves_the_ffn_its_mean_gradient(tiny_model):
    for (name, *_), share in mean_shares(tiny_model("mvsplit", params="sites=attn").double()).items():
        assert share < 1e-12 if name.endswith("wo") else share > 1e-3


# --- Lemma 1 ----------------------------------------------------------------------------------------------------------


def test_lemma_1_on_the_logits():
    """All value rows equal: the gradient with respect to the logits is 0; V off by eps makes it linear in eps."""
    v_NK, g = draw(N, 1, D), draw(N, T, D, seed=1)
    noise = draw(N, T, D, seed=2)

    def logit_gradient(eps):
        s = draw(N, T, T, seed=3).requires_grad_()
        (torch.softmax(s, -1) @ (v_NK.expand(N, T, D) + eps * noise)).mul(g).sum().backward()
        return s.grad

    assert logit_gradient(0.0).norm() < 1e-14
    one = logit_gradient(1.0)
    assert one.norm() > 0.1
    torch.testing.assert_close(logit_gradient(1e-4), 1e-4 * one, rtol=1e-8, atol=1e-15)


def qkv_gradients(block, rope, x_BTD):
    """Norms of the gradients of W_Q, W_K, W_V and W_O of a real attention layer under a loss that is not linear."""
    block.zero_grad()
    target = draw(*x_BTD.shape, seed=5)
    (block.attention(x_BTD, rope, Context((4, 3), "attn", torch.zeros(()), torch.zeros(len(x_BTD)))) - target).square().mean().backward()
    return [part.norm().item() for part in (*block.wqkv.grad.chunk(3), block.wo.grad)]


def test_lemma_1_on_a_real_attention_layer(tiny_model):
    model = tiny_model().double()
    block, rope = model.blocks[0], model.rope
    same, noise = draw(B, 1, 16).expand(B, 7, 16), draw(B, 7, 16, seed=1)
    q, k, v = block.qkv(same, rope)
    a = attention_matrix(q, k)
    assert metrics.row_div(a) > 1e-3  # RoPE keeps the rows of A apart: the zero below is the values' doing
    assert (v - v[:, :, :1]).abs().max() < 1e-12
    q0, k0, v0, o0 = qkv_gradients(block, rope, same)
    assert q0 < 1e-15 and k0 < 1e-15 and v0 > 1e-3 and o0 > 1e-3  # the writer's gradient is not zeroed (Eq. 39)
    small, smaller = (qkv_gradients(block, rope, same + eps * noise) for eps in (1e-4, 1e-5))
    for i in (0, 1):
        assert small[i] / smaller[i] == pytest.approx(10, rel=0.01)
        assert small[i] > 1e-9
