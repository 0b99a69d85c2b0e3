"""What each paper says of its scheme: plain, LayerScale, DeepNorm, ReZero."""

import itertools

import pytest
import torch
from cases import backward, build, context, inputs, normal, shake

from suite import registry
from suite.residual import rms_norm
from suite.sweep.plan import Selection, SelectionError, make_plan

# --- plain, LayerScale ------------------------------------------------------------------------------------------------


def test_plain_is_the_norm_of_the_sum():
    x, f = normal(2, 7, 8), normal(2, 7, 8, seed=1)
    z = (x + f).double()
    expected = z / (z.pow(2).sum(-1, keepdim=True) / 8 + 1e-6).sqrt()
    torch.testing.assert_close(build("plain")(x, lambda _: f, context()).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "params"), [("layerscale", "init=1"), ("deepnorm", "alpha=1,beta=1")])
def test_neutral_parameters_are_plain_bit_for_bit(name, params, tiny_model):
    ours, plain = tiny_model(name, params=params, depth=3), tiny_model("plain", depth=3)
    given = inputs(ours)
    assert torch.equal(ours(*given), plain(*given))
    assert not torch.equal(tiny_model(name, depth=3)(*given), plain(*given))  # the defaults are not neutral


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
    image, caption, t = inputs(model)
    seen = []
    model.final.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(image, caption, t)
    tokens = model.tokens(image, caption)
    trunk = model._blocks(tokens, t, 0, 3)
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
    weights = {n: torch.ones(2, 2) for n in ("q", "k", "v", "o", "w1", "w3", "w2")}
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


def test_deepnorm_scales_exactly_v_o_w1_w3_w2_by_beta(tiny_model):
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
        fan = 64 + len(block.weights("ffn")["w1"])
        for key, w in block.weights("ffn").items():  # each matrix by its own fans, though w1 and w3 lie in one
            assert w.std().item() == pytest.approx(0 if (key, writers) == ("w2", "zero") else beta * (2 / fan) ** 0.5, rel=1e-4), key


# --- ReZero -----------------------------------------------------------------------------------------------------------


def test_rezero_starts_as_the_identity_with_one_scalar_a_block(tiny_model):
    for arm in registry.ARMS:
        model = tiny_model("rezero", arm, depth=3)
        gates = [p for n, p in model.named_parameters() if "gate_" in n]
        assert [g.shape for g in gates] == [(1,)] * 3 and all(g.item() == 0 for g in gates)
        tokens = model.tokens(*inputs(model)[:2])
        trunk = model._blocks(tokens, torch.zeros(2), 0, 3)
        if arm == "native":
            assert torch.equal(trunk, tokens)
            x = 100 * normal(2, 7, 16)  # norm-free: any size passes through
            assert torch.equal(model._blocks(x, torch.zeros(2), 0, 3), x)
            torch.testing.assert_close(model.blocks[-1].residuals[-1].fold(x).square().mean(-1), torch.ones(2, 7))
        else:
            x = normal(2, 7, 16, dtype=torch.float64)
            x = x / x.square().mean(-1, keepdim=True).sqrt()  # normalised exactly
            trunk = model.double()._blocks(x, torch.zeros(2), 0, 3)
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
