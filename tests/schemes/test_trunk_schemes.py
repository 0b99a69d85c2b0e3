"""ProRes and nanochat's lambdas, by hand and as pre-norm at a special setting."""

import pytest
import torch
from cases import SEGMENTS, backward, build, close, context, inputs, norm, normal, shake

from suite.residual import Context

# ---- ProRes

def at(step):
    return Context(SEGMENTS, "attn", torch.tensor(float(step)), torch.tensor([0.25, 0.75]))


def test_prores_comes_on_block_by_block(given):
    x, w = given
    for block, depth, params, until in ((0, 4, "", 1000), (3, 4, "", 4000), (3, 96, "", 2000), (1, 4, "t_one=10", 20)):
        scheme = build("prores", block=block, depth=depth, params=params)
        f = x.double() * 0 + norm(x) @ w.double()
        assert torch.equal(scheme(x, lambda h: h @ w, at(0)), x)
        close(scheme(x, lambda h: h @ w, at(until / 4)), x.double() + f / 4)
        for late in (until, 10 * until):
            assert torch.equal(scheme(x, lambda h: h @ w, at(late)), build("prenorm")(x, lambda h: h @ w, at(late)))


# ---- gains on trunk and input

def test_lambdas_that_are_neutral_are_pre_norm_of_normalised_tokens(tiny_model):
    ours, pre = tiny_model("lambdas", depth=3), tiny_model("prenorm", depth=3)
    for block in ours.blocks:
        block.residuals[0].gate_trunk.data.fill_(1.0), block.residuals[0].gate_input.data.zero_()
    given = inputs(ours)
    torch.testing.assert_close(ours(*given), pre(*given), rtol=1e-4, atol=1e-5)  # tokens are normalised already


def test_lambdas_by_hand_and_their_published_start(given, tiny_model):
    x, w = given
    scheme, first = shake(build("lambdas")), normal(2, 7, 8, seed=4)
    trunk = scheme.gate_trunk.double() * x.double() + scheme.gate_input.double() * first.double()
    out = scheme(torch.stack([x, first], 2), lambda h: h @ w, context())
    close(out, torch.stack([trunk + norm(trunk) @ w.double(), first.double()], 2))
    other = build("lambdas", site="ffn")
    close(other(torch.stack([x, first], 2), lambda h: h @ w, context(site="ffn"))[:, :, 0], x.double() + norm(x) @ w.double())
    model = tiny_model("lambdas", depth=3)
    gains = [(b.residuals[0].gate_trunk.item(), b.residuals[0].gate_input.item()) for b in model.blocks]
    assert gains == [pytest.approx(pair) for pair in ((1.15, 0.2), (1.10, 0.125), (1.05, 0.05))]
    backward(model)
    assert all(b.residuals[0].gate_trunk.grad.abs() > 0 for b in model.blocks)
    assert scheme.factors("attn")["gate_trunk"].rate == 0.01 and not other.factors("ffn")
