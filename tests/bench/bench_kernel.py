"""Fused MV-Split + RMSNorm against eager, torch.compile and a copy, forward and backward.

Run with `python -m pytest tests/bench/bench_kernel.py -o addopts=`. `extra_info` holds the bytes that the shape cannot
do without (3 passes forward and 5 backward; a copy 2) and the bandwidth that they make of the median time: compare
it with the copy's. Wall clock around CALLS calls and one synchronisation, so launches count; L2 is not flushed.
"""

import pytest
import torch

from suite import kernels
from suite.residual import EPS, rms_norm, token_mean

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: not measured")
SHAPES = {"paper": (32, (256, 256), 1024, torch.bfloat16), "ours": (16, (16, 4), 32, torch.float32)}
CALLS = 20  # per round: one is too short for the clock


def plain(x_BTD, f_BTD, alpha_D, beta_D, segments, eps):
    """What baselines/mvsplit.py and rms_norm do, the result in the trunk's dtype as the kernel's is."""
    mean_f_BTD, mean_x_BTD = token_mean(f_BTD, segments), token_mean(x_BTD, segments)
    z_BTD = x_BTD + beta_D * (f_BTD - mean_f_BTD) + alpha_D * (mean_f_BTD - mean_x_BTD)
    return rms_norm(z_BTD, eps).to(x_BTD.dtype)


def timed(benchmark, call, moved):
    def several():
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()

    benchmark.pedantic(several, rounds=30, warmup_rounds=5)
    seconds = benchmark.stats.stats.median / CALLS
    benchmark.extra_info |= {"ms": 1e3 * seconds, "bytes": moved, "GB_per_s": moved / seconds / 1e9}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("what", ["kernel", "eager", "compiled", "copy"])
def test_mvsplit_rms_norm(benchmark, what, direction, shape):
    B, segments, D, dtype = SHAPES[shape]
    x, f, up = (torch.randn(B, sum(segments), D, device="cuda", dtype=dtype) for _ in range(3))
    inputs = [x, f, torch.zeros(D, device="cuda"), torch.ones(D, device="cuda")]
    benchmark.group = f"{shape} {direction}"
    benchmark.extra_info["device"] = torch.cuda.get_device_name()
    size = x.numel() * x.element_size()
    if what == "copy":
        if direction != "forward":
            pytest.skip("a copy has no backward")
        return timed(benchmark, lambda: up.copy_(x), 2 * size)
    compiled = torch.compile(plain, fullgraph=True, dynamic=False)
    function = {"kernel": kernels.mvsplit_rms_norm, "eager": plain, "compiled": compiled}[what]
    backward = direction != "forward"
    for t in inputs:
        t.requires_grad_(backward)

    def call():
        out = function(*inputs, segments, EPS)
        if backward:
            torch.autograd.grad(out, inputs, up)

    timed(benchmark, call, (8 if backward else 3) * size)
