"""mHC and block attention residuals, by hand and as pre-norm, or iHC, at a special setting."""

import pytest
import torch
from cases import build, close, context, inputs, norm, normal, shake

from baselines.mhc import doubly_stochastic


def streams(n):
    return torch.stack([normal(2, 7, 8, seed=10 + i) for i in range(n)], 2)


# ---- mHC

def test_what_mixes_the_streams_is_doubly_stochastic():
    mix = doubly_stochastic(normal(5, 4, 4, dtype=torch.float64))
    assert (mix > 0).all()
    torch.testing.assert_close(mix.sum(-1), torch.ones(5, 4).double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mix.sum(-2), torch.ones(5, 4).double(), rtol=1e-6, atol=1e-6)
    large = doubly_stochastic(torch.tensor([[300.0, 0.0], [0.0, 300.0]]))  # exp(300) is not finite in fp32
    torch.testing.assert_close(large, torch.eye(2))
    kept = torch.e / (torch.e + 3)  # rows and columns of exp(identity) sum to e + 3
    torch.testing.assert_close(doubly_stochastic(torch.eye(4)), (torch.eye(4) * (torch.e - 1) + 1) / (torch.e + 3))
    assert kept == pytest.approx(0.4754, abs=1e-4)  # as published with this bias


def test_mhc_by_hand(given):
    x, w = streams(4), given[1]
    scheme = build("mhc")
    with torch.no_grad():
        for p in scheme.parameters():
            p.copy_(normal(*p.shape, seed=p.numel()))
    out = scheme(x, lambda h: h @ w, context())
    gate, flat = {k: p.double() for k, p in scheme.named_parameters()}, norm(x.flatten(2))
    for sample in range(2):
        for token in range(7):
            X, n = x[sample, token].double(), flat[sample, token]
            mix = (gate["gate_mix_alpha"] * (gate["gate_mix_map"] @ n).reshape(4, 4) + gate["gate_mix_bias"]).exp()
            for _ in range(20):
                mix = mix / mix.sum(0)
                mix = mix / mix.sum(1)[:, None]
            logits = (gate["gate_map"] @ n).reshape(2, 4)
            pre, post = torch.sigmoid(gate["gate_alpha"] * logits + gate["gate_bias"])
            f = norm((pre + 1e-6) @ X) @ w.double()
            close(out[sample, token], mix @ X + (2 * post + 1e-6)[:, None] * f)


def test_mhc_whose_matrix_is_the_identity_is_ihc(given):
    w, ours, other = given[1], build("mhc", params="diagonal=60"), build("ihc")
    assert ours.gate_bias.tolist() == [[0, 0, 1, 0], [0] * 4]  # the third branch
    other.gate_bias.data.copy_(ours.gate_bias)
    close(ours(streams(4), lambda h: h @ w, context()), other(streams(4), lambda h: h @ w, context()))


def test_mhc_of_equal_streams_and_open_gates_is_pre_norm(given, tiny_model):
    """Rows of H sum to one, so it keeps equal streams as they are, whatever it is."""
    x, w = given
    scheme = build("mhc", params="alpha=0,diagonal=.3")
    out = scheme(scheme.open(x, context()), lambda h: h @ w, context())
    close(out, (x.double() + norm(x) @ w.double()).unsqueeze(2).expand(-1, -1, 4, -1))
    model = tiny_model("mhc", depth=3)
    assert not any("mix" in name for name, _ in model.blocks[0].residuals[0].named_parameters())  # all streams are equal there


def test_gradients_of_what_mixes_the_streams_are_no_rounding_errors(tiny_model):
    """At the start all streams are all but equal, and what mixes equal streams has no gradient: Adam would make full steps of noise."""
    single, double = tiny_model("mhc", depth=3), tiny_model("mhc", depth=3).double()
    for model in (single, double):
        out = model(*inputs(model))
        (out - normal(*out.shape, seed=9)).square().mean().backward()
    for (name, a), b in zip(single.named_parameters(), double.parameters(), strict=True):
        if "gate_mix" in name:
            assert (a.grad - b.grad).norm() < 0.2 * b.grad.norm(), name


# ---- block attention residuals

@pytest.mark.parametrize("params", ["", "parts=1", "parts=3"])
def test_attention_residuals_with_queries_of_zero_are_pre_norm(tiny_model, params):
    ours, pre = tiny_model("attn_residuals", depth=6, params=params), tiny_model("prenorm", depth=6, writers="std")
    given = inputs(ours)
    torch.testing.assert_close(ours(*given), pre(*given), rtol=1e-4, atol=1e-5)


def test_attention_residuals_by_hand(tiny_model):
    """A list of what was added, as the paper has it: no slots, no masks."""
    model = shake(tiny_model("attn_residuals", depth=3, params="parts=3"))
    seen = {}
    model.blocks[0].residuals[0].register_forward_pre_hook(lambda _, args: seen.update(x=args[0][:, :, 0], ctx=args[2]))
    residuals = [residual for block in model.blocks for residual in block.residuals]
    for residual in residuals:
        residual.register_forward_pre_hook(lambda at, args: seen.update({at: args[1]}))
    given = inputs(model)
    out = model(*given)
    kept = [seen["x"]]

    def attended(query):
        logits = [(norm(v) * query.double()).sum(-1) for v in kept]
        total = sum(torch.exp(logit) for logit in logits)
        return norm(sum((torch.exp(logit) / total).unsqueeze(-1) * v.double() for logit, v in zip(logits, kept, strict=True)))

    for index, residual in enumerate(residuals):
        f = seen[residual](attended(residual.gate_query).float())
        if index % 2 == 0:  # a part of this network is a block: two branches
            kept.append(f)
        else:
            kept[-1] = kept[-1] + f
    y = attended(residuals[-1].gate_last).float()
    torch.testing.assert_close(out, model.pixels(model.final(y[:, : model.segments[0]]), given[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("parts", "depth"), [(8, 50), (8, 100), (8, 2), (3, 4)])
def test_parts_are_of_one_length_and_read_from_their_first_branch_on(parts, depth):
    rows = [build("attn_residuals", site=s, block=b, depth=depth, params=f"parts={parts}") for b in range(depth) for s in ("attn", "ffn")]
    now = [r.now_S1.flatten().nonzero().item() for r in rows]
    count = min(parts, 2 * depth)
    assert now == sorted(now) and set(now) == set(range(1, count + 1))
    assert max(map(now.count, set(now))) - min(map(now.count, set(now))) <= 1
    for before, row in zip([0, *now], rows, strict=False):
        assert row.unread_S.isfinite().tolist() == [slot <= before for slot in range(count + 1)]
