"""DeepScaleLM, whose point is how it starts, and AdaLN-Zero, which starts as the identity: by hand, by simulation, and as pre-norm."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import build, close, context, inputs, norm, normal, shake

from baselines.deepscalelm import correlations, silu_moments

# ---- DeepScaleLM

def test_deepscalelm_by_hand_and_without_its_branch(given):
    x, w = given
    for depth, params, b2 in ((100, "", 0.01), (4, "", 0.25), (4, "beta2=0.005", 0.005)):
        out = build("deepscalelm", depth=depth, params=params)(x, lambda h: h @ w, context())
        close(out, math.sqrt(1 - b2) * x.double() + math.sqrt(b2) * (norm(x) @ w.double()))
    close(build("deepscalelm").fold(x), norm(x))


def pair(r, *shape, seed=0):
    """Standard normal numbers (2, ...) whose two rows have correlation r."""
    a, b = normal(2, *shape, seed=seed, dtype=torch.float64)
    return torch.stack([a, r * a + math.sqrt(1 - r * r) * b])


@pytest.mark.parametrize("r", [0.0, 0.3, 0.9])
def test_moments_of_silu_are_those_of_a_million_draws(r):
    a, b = F.silu(pair(r, 1_000_000))
    square, product = silu_moments(r)
    assert (a * a).mean().item() == pytest.approx(square, rel=0.01) and (a * b).mean().item() == pytest.approx(product, rel=0.01)


def weights_of(tiny_model, block, **sizes):
    model = tiny_model("deepscalelm", width=256, heads=4, ffn=768, depth=4, **sizes)
    return {name: w.double() for site in ("attn", "ffn") for name, w in model.blocks[block].weights(site).items()}


def test_its_ffn_gives_unit_variance_and_the_correlation_that_it_counts_on(tiny_model):
    w, r = weights_of(tiny_model, 1), 0.6
    x = pair(r, 64, 256)  # 64 pairs of tokens
    out = (F.silu(x @ w["w1"].T) * (x @ w["w3"].T)) @ w["w2"].T
    square, product = silu_moments(r)
    assert out.square().mean().item() == pytest.approx(1, rel=0.1)
    assert (out[0] * out[1]).mean().item() == pytest.approx(r * product / square, abs=0.07)


@pytest.mark.parametrize("block", [0, 3])
def test_its_attention_gives_unit_variance_where_it_looks_at_all_tokens_alike(tiny_model, block):
    w, r = weights_of(tiny_model, block), correlations(4, 0.25)[block]
    common, own = normal(1, 256, seed=3, dtype=torch.float64), normal(4000, 256, seed=4, dtype=torch.float64)
    x = math.sqrt(r) * common + math.sqrt(1 - r) * own  # any two tokens have correlation r
    out = x.mean(0) @ w["v"].T @ w["o"].T
    assert out.square().mean().item() == pytest.approx(1, rel=0.3)  # one draw of `common`


def test_correlations_rise_from_the_embeddings_and_stay_below_one():
    found = correlations(100, 0.01)
    assert found[0] == 0.221 and len(found) == 100 and all(0 < r < 1 for r in found)
    assert found == correlations(100, 0.01) and found[1] > found[0]


# ---- AdaLN-Zero

def test_adaln_is_the_identity_at_the_start_and_pre_norm_at_a_gain_of_one(tiny_model):
    ours, pre = tiny_model("adaln", depth=3), tiny_model("prenorm", depth=3, writers="std")
    given, seen = inputs(ours), []
    for model in (ours, pre):
        model.final.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(*given)
    tokens = ours.tokens(*given[:2])
    close(seen[0], norm(tokens)[:, : ours.segments[0]])
    for block in ours.blocks:
        for residual in block.residuals:
            residual.gate_own.data[0] = 1.0
    torch.testing.assert_close(ours(*given), pre(*given), rtol=1e-4, atol=1e-5)


def test_adaln_by_hand(given):
    x, w = given
    first, ffn = shake(build("adaln", block=0)), shake(build("adaln", block=2, site="ffn"), seed=1)
    trunk = first.open(x, context())
    for sample, t in enumerate((0.25, 0.75)):  # the context's
        angles = [1000 * t * 10000 ** (-i / 4) for i in range(4)]
        features = torch.tensor([f(a) for f in (math.cos, math.sin) for a in angles], dtype=torch.float64)
        parts = (first.gate_map.double() @ F.silu(first.gate_time.double() @ features)).reshape(6, 8)
        close(trunk[sample, :7], x[sample])
        torch.testing.assert_close(trunk[sample, 7:].detach().double(), parts.detach(), rtol=1e-3, atol=1e-3)  # fp32 angles of hundreds
        gain, scale, shift = (trunk[sample, 10:].double() + ffn.gate_own.double()).unsqueeze(1)
        out = ffn(trunk, lambda h: h @ w, context(site="ffn"))[sample]
        close(out[:7], x[sample].double() + gain * (((1 + scale) * norm(x[sample]) + shift) @ w.double()))
        assert torch.equal(out[7:], trunk[sample, 7:])
