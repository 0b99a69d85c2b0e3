"""Fused MV-Split + RMSNorm against eager, torch.compile and a copy, forward and backward.

`gb_per_s` is the traffic that the shape cannot do without (3 passes forward and 5 backward; a copy 2) over the median
time: compare it with the copy's. Wall clock around CALLS calls and one synchronisation, so launches count, except in the variants
called graph, which replay one captured call. L2 is not flushed.
"""

import pytest
import torch
from cases import FULL, case

kernels = pytest.importorskip("suite.model.kernels", reason="no triton for this platform: not measured", exc_type=ImportError)
from suite.residual import EPS, rms_norm, token_mean  # noqa: E402
from suite.training.cuda_graph import WARM_UP, capture  # noqa: E402

SHAPES = {"paper": (32, (256, 256), 1024, torch.bfloat16), "digits": (16, (16, 4), 32, torch.float32)}
CALLS = 20  # per round: one is too short for the clock


def cases(size):
    out = []
    for setting, (B, segments, D, dtype) in SHAPES.items() if size == FULL else ():
        shape = {"setting": setting, "batch": B, "width": D, "image_tokens": segments[0], "caption_tokens": segments[1],
                 "dtype": "bf16" if dtype == torch.bfloat16 else "fp32"}  # fmt: skip
        for phase in ("merge_forward", "merge_forward_backward"):
            variants = ("kernel", "eager", "compiled", "kernel_graph", "compiled_graph")
            variants += ("copy", "copy_graph") * (phase == "merge_forward")
            out += [case(phase, "mvsplit", None, variant=v, device="cuda") | shape for v in variants]
    return out


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
    benchmark.extra_info |= {"divisor": CALLS, "gb_per_s": moved * CALLS / benchmark.stats.stats.median / 1e9,
                             "hardware": torch.cuda.get_device_name()}  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_mvsplit_rms_norm(benchmark, case):
    B, segments, D, dtype = SHAPES[case["setting"]]
    x, f, up = (torch.randn(B, sum(segments), D, device="cuda", dtype=dtype) for _ in range(3))
    inputs = [x, f, torch.zeros(D, device="cuda"), torch.ones(D, device="cuda")]
    benchmark.extra_info |= case
    size = x.numel() * x.element_size()
    name, graphed = case["variant"].removesuffix("_graph"), case["variant"].endswith("_graph")
    if name == "copy":
        return timed(benchmark, capture(lambda: up.copy_(x), WARM_UP)[0] if graphed else lambda: up.copy_(x), 2 * size)
    compiled = torch.compile(plain, fullgraph=True, dynamic=False)
    function = {"kernel": kernels.mvsplit_rms_norm, "eager": plain, "compiled": compiled}[name]
    backward = case["phase"] == "merge_forward_backward"
    for t in inputs:
        t.requires_grad_(backward)

    def call():
        out = function(*inputs, segments, EPS)
        if backward:
            torch.autograd.grad(out, inputs, up)

    timed(benchmark, capture(call, WARM_UP)[0] if graphed else call, (8 if backward else 3) * size)
