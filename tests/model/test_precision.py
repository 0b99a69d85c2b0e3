"""Under bf16 autocast the statistics, the gates and the trunk stay fp32, and only branches are bf16."""

import pytest
import torch
from entries import ENTRIES

from suite.residual import EPS, centered, rms_norm, token_mean


@pytest.fixture
def half():
    """bf16 values whose mean and square do not fit into bf16."""
    x = 3 + torch.randn(2, 60, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.bfloat16()


@pytest.mark.parametrize("autocast", [False, True])
def test_statistics_of_half_input_are_single(half, autocast):
    x, u = half.double(), 2**-24
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        normed, mean, rest = rms_norm(half), token_mean(half, (50, 10)), centered(half, (50, 10))
    expected = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    assert normed.dtype == torch.bfloat16
    half_step = 2**-8 * expected.abs().log2().floor().exp2()  # bf16 has 8 significant bits
    assert ((normed.double() - expected).abs() <= half_step + 8 * u * expected.abs()).all()  # one rounding, of the result
    means = torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in x.split((50, 10), 1)], 1)
    assert mean.dtype == rest.dtype == torch.float32
    assert (mean - means).abs().max() <= 16 * u * 3 and (rest - (x - means)).abs().max() <= 16 * u * 3


@pytest.mark.parametrize(("scheme", "arm"), ENTRIES)
def test_the_trunk_of_a_half_run_is_single(tiny_model, scheme, arm):
    model, trunks, branches = tiny_model(scheme, arm, depth=3), [], []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, out: trunks.extend([inputs[0].dtype, out.dtype]))
        ffn = block.ffn
        block.ffn = lambda x, ctx, ffn=ffn: branches.append(ffn(x, ctx)) or branches[-1]
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 2, 4, 4), torch.randn(2, 3, 16), torch.rand(2)).square().mean().backward()
    assert set(trunks) == {torch.float32} and {f.dtype for f in branches} == {torch.bfloat16}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
