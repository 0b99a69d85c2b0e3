"""The fused kernel against the plain scheme differentiated in float64: on the GPU if there is one, else interpreted.

Tolerances. u is what one rounding to the tensor's dtype may cost: 2^-24 for fp32, 2^-8 for bf16 on a GPU and 2^-7 in
Triton's interpreter, which truncates. out is rounded once: u of each element (and a few fp32 u for the sums).
Gradients pass through the rounded out (twice, in out*mean(dOut*out)) and are rounded once: 4 u, in fp32 64 u for
sums of up to D or T numbers, of the largest element or of the terms that it is a sum of (at D = 1 they cancel).
"""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from baselines.mvsplit import MVSplit
from suite.environment import ROOT
from suite.residual import EPS, FUSED, Context, Site, centered, rms_norm, token_mean

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="no triton for this platform: the fused kernel is not tested")
import triton  # noqa: E402

from suite.model import kernels  # noqa: E402
from suite.model.fused import use_kernels  # noqa: E402

INTERPRETED = not isinstance(kernels._narrow_forward, triton.JITFunction)
assert DEVICE == "cuda" or INTERPRETED, "triton was imported before TRITON_INTERPRET=1: set it in conftest.py"
U = {torch.float32: 2**-24, torch.bfloat16: 2**-7 if INTERPRETED else 2**-8}
NARROW = [(2, (16, 4), 32), (3, (1, 0), 7), (1, (1,), 1), (2, (5, 1), 33), (2, (9, 0), 96), (1, (0, 3), 130)]
WIDE = [(2, (24, 8), 1024), (1, (3, 0), 8192), (1, (37, 1), 500), (1, (130, 70), 129)]  # too large for one program
FORCED = [(2, (16, 4), 32), (3, (1, 0), 7), (2, (5, 1), 33), (1, (0, 70), 96), (2, (3, 4, 0, 2), 20)]


def draw(B, segments, D, dtype=torch.float32, *, f_dtype=None, seed=0):
    """x, f, alpha, beta that want gradients, and the gradient of the output. x and f have means worth removing."""
    g = torch.Generator().manual_seed(seed)
    x, f, up = (torch.randn(B, sum(segments), D, generator=g) for _ in range(3))
    alpha, beta = torch.randn(D, generator=g), 1 + torch.randn(D, generator=g)
    x, f = x + 2 * torch.randn(B, 1, D, generator=g), 3 * f + torch.randn(D, generator=g)
    x, f, up = x.to(dtype), f.to(f_dtype or dtype), up.to(dtype)
    return [t.to(DEVICE).requires_grad_() for t in (x, f, alpha, beta)], up.to(DEVICE)


def fused(inputs, up, segments, eps=EPS):
    out = kernels.mvsplit_rms_norm(*inputs, segments, eps)
    return [out, *torch.autograd.grad(out, inputs, up)]


def plain(inputs, up, segments):
    """The scheme's own formulas and autograd, in float64; last the size of the terms that each result is a sum of."""
    x, f, alpha, beta = (t.detach().double().requires_grad_() for t in inputs)
    scheme = MVSplit(Site(x.shape[2], 1, 0, "ffn"))
    scheme.gate_alpha, scheme.gate_beta = torch.nn.Parameter(alpha.detach()), torch.nn.Parameter(beta.detach())
    z = scheme.merge(x, f, Context(segments, "ffn", torch.zeros(())))
    r = torch.rsqrt(z.square().mean(-1, keepdim=True) + EPS)
    out = z * r  # not rms_norm, whose backward is our own
    dz = (r * up).abs().max().item()
    gap = (token_mean(f, segments) - token_mean(x, segments)).abs().max().item()
    deviation = centered(f, segments).abs().max().item()
    a, b = alpha.abs().max().item(), beta.abs().max().item()
    sizes = [0, dz * (1 + a), dz * (a + b), dz * gap, dz * deviation]
    return [out, *torch.autograd.grad(out, (x, f, scheme.gate_alpha, scheme.gate_beta), up.double())], sizes


def assert_close(mine, reference_and_sizes, u):
    slack = 64 * 2**-24
    for name, a, b, size in zip(("out", "dX", "dF", "dalpha", "dbeta"), mine, *reference_and_sizes, strict=True):
        error, size = (a.double() - b).abs(), max(b.abs().max().item(), size)
        bound = u * b.abs() + slack * size if name == "out" else torch.full_like(b, max(4 * u, slack) * size)
        assert (error <= bound).all(), f"{name}: off by {error.max():.3g}, of size {size:.3g}"


def force_wide(monkeypatch):
    monkeypatch.setattr(kernels, "NARROW", 0)


# --- against float64 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("B", "segments", "D"), NARROW + WIDE)
def test_forward_and_backward_match_float64(B, segments, D, dtype):
    assert kernels._narrow(D, segments) == ((B, segments, D) in NARROW)
    inputs, up = draw(B, segments, D, dtype)
    mine = fused(inputs, up, segments)
    assert [t.dtype for t in mine] == [dtype] * 3 + [torch.float32] * 2
    assert_close(mine, plain(inputs, up, segments), U[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("B", "segments", "D"), FORCED)
def test_the_wide_path_matches_float64_also_where_it_would_not_be_taken(monkeypatch, B, segments, D, dtype):
    force_wide(monkeypatch)
    inputs, up = draw(B, segments, D, dtype)
    assert_close(fused(inputs, up, segments), plain(inputs, up, segments), U[dtype])


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    B=st.integers(1, 3),
    segments=st.lists(st.integers(0, 20), min_size=1, max_size=3).filter(any).map(tuple),
    D=st.integers(1, 40),
    wide=st.booleans(),
)
def test_any_shape(B, segments, D, wide):
    inputs, up = draw(B, segments, D)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "NARROW", 0 if wide else 16384)
        assert_close(fused(inputs, up, segments), plain(inputs, up, segments), U[torch.float32])


@pytest.mark.parametrize("D", [48, 1024])
def test_mixed_dtypes_keep_their_own(D):
    inputs, up = draw(1, (16, 4), D, torch.float32, f_dtype=torch.bfloat16)
    mine = fused(inputs, up, (16, 4))
    assert [t.dtype for t in mine[:3]] == [torch.float32, torch.float32, torch.bfloat16]
    assert_close(mine, plain(inputs, up, (16, 4)), U[torch.bfloat16])


@pytest.mark.parametrize("wide", [False, True])
def test_input_that_is_not_contiguous(monkeypatch, wide):
    if wide:
        force_wide(monkeypatch)
    (x, f, alpha, beta), up = draw(2, (6, 3), 20)
    expected = fused([x, f, alpha, beta], up, (6, 3))
    strided = [x.mT.contiguous().mT, f.repeat_interleave(2, 1)[:, ::2], alpha.repeat_interleave(2)[::2], beta]
    strided = [t.detach().requires_grad_() for t in strided]
    assert [t.is_contiguous() for t in strided] == [False, False, False, True]
    up = up.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert all(torch.equal(a, b) for a, b in zip(expected, fused(strided, up, (6, 3)), strict=True))


def test_a_gradient_that_is_expanded():
    inputs, _ = draw(2, (6, 3), 20)
    kernels.mvsplit_rms_norm(*inputs, (6, 3), EPS).sum().backward()
    reference = plain(inputs, torch.ones_like(inputs[0]), (6, 3))
    assert_close([reference[0][0], *(t.grad for t in inputs)], reference, U[torch.float32])


@pytest.mark.parametrize("wide", [False, True])
def test_identities(monkeypatch, wide):
    if wide:
        force_wide(monkeypatch)
    (x, f, alpha, beta), up = draw(2, (12, 5), 24)
    zero, one = torch.zeros_like(alpha), torch.ones_like(beta)
    with torch.no_grad():  # alpha = beta = 0 is the norm alone; alpha = 0 keeps the trunk's means; T = 1 ignores beta
        torch.testing.assert_close(kernels.mvsplit_rms_norm(x, f, zero, zero, (12, 5), EPS), rms_norm(x))
        alone = kernels.mvsplit_rms_norm(x[:, 12:], f[:, 12:], alpha, beta, (5,), EPS)
        torch.testing.assert_close(kernels.mvsplit_rms_norm(x, f, alpha, beta, (12, 5), EPS)[:, 12:], alone)
        single = [kernels.mvsplit_rms_norm(x[:, :1], f[:, :1], alpha, b, (1, 0), EPS) for b in (zero, beta)]
        assert torch.equal(*single)
    _, _, df, *_ = fused([x, f, zero.requires_grad_(), one.requires_grad_()], up, (12, 5))
    for part in df.split((12, 5), 1):  # at alpha = 0 the branch's gradient has no mean in any segment
        assert part.mean(1).abs().max() < 1e-6 * df.abs().max()


# --- determinism, memory, traffic -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
def test_the_same_bytes_twice_and_in_any_batch(monkeypatch, wide):
    if wide:
        force_wide(monkeypatch)
    segments = (36, 3)
    inputs, up = draw(3, segments, 70, torch.bfloat16)
    first = fused(inputs, up, segments)
    assert all(torch.equal(a, b) for a, b in zip(first, fused(inputs, up, segments), strict=True))
    alone = fused([t[1:2].detach().requires_grad_() for t in inputs[:2]] + inputs[2:], up[1:2], segments)
    assert all(torch.equal(a[1:2], b) for a, b in zip(first[:3], alone[:3], strict=True))


@pytest.mark.parametrize(("segments", "D", "means"), [((16, 4), 32, 1), ((200, 8), 128, 2)])
def test_what_is_saved(segments, D, means):
    inputs, _ = draw(2, segments, D, torch.bfloat16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = kernels.mvsplit_rms_norm(*inputs, segments, EPS)
    x, f, alpha, beta = (t.data_ptr() for t in inputs)
    at = {t.data_ptr(): t for t in saved}
    assert x not in at and {f, alpha, beta, out.data_ptr()} < set(at)
    rest = [t for p, t in at.items() if p not in (f, alpha, beta, out.data_ptr())]
    sizes = sorted([tuple(t.shape) for t in rest if t.dtype == torch.float32], key=len)
    assert sizes == [(2, sum(segments)), (means, 2 * 2, D)] and len(rest) == 2


@pytest.mark.skipif(not INTERPRETED, reason="counts what the interpreter loads and stores")
@pytest.mark.parametrize(("segments", "D", "passes"), [((16, 4), 32, (3, 5)), ((37, 5), 70, (5, 7))])
def test_tensor_passes(monkeypatch, segments, D, passes):
    """Elements loaded and stored, where the mask lets them: only the B*T*D tensors are bf16, so nothing else counts."""
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    load, store, moved = Builder.create_masked_load, Builder.create_masked_store, [0]

    def count(pointers, mask):
        if "bf16" in str(pointers.get_element_ty()):
            moved[0] += int(mask.data.sum())

    monkeypatch.setattr(Builder, "create_masked_load", lambda s, p, m, *a: count(p, m) or load(s, p, m, *a))
    monkeypatch.setattr(Builder, "create_masked_store", lambda s, p, v, m, *a: count(p, m) or store(s, p, v, m, *a))
    if passes == (5, 7):
        force_wide(monkeypatch)
    inputs, up = draw(2, segments, D, torch.bfloat16)
    out = kernels.mvsplit_rms_norm(*inputs, segments, EPS)
    forward, moved[0] = moved[0], 0
    torch.autograd.grad(out, inputs, up)
    assert (forward / out.numel(), moved[0] / out.numel()) == passes


COMPILE = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from suite.model import kernels

WIDTH, SEGMENTS = 1024, (256, 256)
for name in sorted(n for n in dir(kernels) if n.startswith(("_narrow_", "_wide_"))):
    kernel = getattr(kernels, name)
    segments, width = ((16, 4), 32) if name.startswith("_narrow") else (SEGMENTS, WIDTH)
    sizes = kernels._whole(width, segments) if "narrow" in name else kernels._rows(width, segments, 32)
    sizes |= {"BT": 64, "BD": 64} if name == "_wide_means" else {"BD": 128} if name == "_wide_reduce" else {}
    sizes |= kernels._spans(sum(segments), segments)
    options = {"num_warps": sizes["num_warps"], "enable_fp_fusion": True}
    big = ("x_ptr", "f_ptr", "g_ptr", "out_ptr", "dx_ptr", "df_ptr")
    kinds = {n: "*bf16" if n in big else "*fp32" if n.endswith("_ptr") else "fp32" if n == "eps" else "i32"
             for n in kernel.arg_names}
    signature = {n: "constexpr" if n in sizes else kinds[n] for n in kinds}
    constants = {(i,): sizes[n] for i, n in enumerate(kernel.arg_names) if n in sizes}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert not re.search(r"\\b(atom|red)\\.", ptx), name
    print(name)
"""


def test_every_kernel_compiles_for_a_gpu_and_uses_no_atomics(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    run = [sys.executable, "-c", COMPILE]
    done = subprocess.run(run, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 7


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
def test_compiles_without_a_graph_break(monkeypatch, wide):
    if wide:
        force_wide(monkeypatch)
    segments = (6, 3)
    inputs, up = draw(2, segments, 20)
    twice = torch.compile(
        lambda *t: kernels.mvsplit_rms_norm(t[0] * 2, t[1].mT.contiguous().mT, *t[2:], segments, EPS) + t[1],
        fullgraph=True,
        backend="aot_eager",
    )
    mine = twice(*inputs)
    eager = kernels.mvsplit_rms_norm(inputs[0] * 2, *inputs[1:], segments, EPS) + inputs[1]
    assert torch.equal(mine, eager)
    both = [torch.autograd.grad(out, inputs, up) for out in (mine, eager)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_registration():
    (x, f, alpha, beta), up = draw(2, (6, 3), 20)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(kernels._forward, (x, f, alpha, beta, [6, 3], EPS), test_utils=checks)
    with torch.no_grad():
        out, r, means = kernels._forward(x, f, alpha, beta, [6, 3], EPS)
    detached = [t.detach() for t in (up, out, f, r, means, alpha, beta)]
    torch.library.opcheck(kernels._backward, (*detached, [6, 3]), test_utils=("test_schema", "test_faketensor"))


# --- refusals and the switch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(9, 20)}, r"must be \(B, T, D\)"),
        ({"x": torch.zeros(0, 9, 20), "f": torch.zeros(0, 9, 20)}, "not empty"),
        ({"f": torch.zeros(2, 8, 20)}, r"x, f must be \(B, T, D\)"),
        ({"alpha": torch.zeros(19)}, r"alpha, beta \(D,\)"),
        ({"beta": torch.zeros(())}, r"alpha, beta \(D,\)"),
        ({"x": torch.zeros(2, 9, 20).double()}, "float32 or bfloat16.*float64"),
        ({"f": torch.zeros(2, 9, 20).half()}, "float32 or bfloat16.*float16"),
        ({"alpha": torch.zeros(20).bfloat16()}, "alpha, beta float32"),
        ({"segments": (6, 4)}, r"\(6, 4\) do not sum to the 9 tokens"),
        ({"segments": (10, -1)}, "do not sum"),
        ({"f": torch.zeros(2, 9, 20, device="meta")}, "on one device"),
        ({n: torch.zeros(1, 1, 8193) if n in "xf" else torch.zeros(8193) for n in ("x", "f", "alpha", "beta")}, "8192"),
    ],
)
def test_refuses_in_one_line(change, message):
    made = {"x": torch.zeros(2, 9, 20), "f": torch.zeros(2, 9, 20), "alpha": torch.zeros(20), "beta": torch.zeros(20)}
    made = {n: t if t.is_meta else t.to(DEVICE) for n, t in (made | change).items() if n != "segments"}
    with pytest.raises(ValueError, match=message) as error:
        kernels.mvsplit_rms_norm(*made.values(), change.get("segments", (6, 3)), EPS)
    assert str(error.value).startswith("mvsplit_rms_norm: ") and "\n" not in str(error.value)


def test_refuses_a_cpu_tensor(monkeypatch):
    inputs = [torch.zeros(2, 9, 20), torch.zeros(2, 9, 20), torch.zeros(20), torch.zeros(20)]
    monkeypatch.setattr(kernels, "_narrow_forward", object.__new__(triton.JITFunction))
    with pytest.raises(ValueError, match="needs a CUDA tensor, got cpu"):
        kernels.mvsplit_rms_norm(*inputs, (6, 3), EPS)


@pytest.fixture
def no_leftovers():
    yield
    FUSED.clear()


@pytest.mark.usefixtures("no_leftovers")
def test_the_switch(monkeypatch, tiny_model):
    """Which runs get the operator. The device is only looked at, so none is needed."""
    cuda, name = torch.device("cuda"), f"mvsplit_rms_norm, triton {triton.__version__}"
    assert use_kernels("auto", tiny_model("mvsplit"), cuda) == name
    assert list(FUSED.items()) == [("mvsplit_rms_norm", kernels.mvsplit_rms_norm)]
    assert use_kernels("off", tiny_model("mvsplit"), cuda) == "" and not FUSED
    assert use_kernels("auto", tiny_model("mvsplit", params="sites=attn"), cuda) == name
    for model, device in (("plain", cuda), ("layerscale", cuda), ("mvsplit", torch.device("cpu"))):
        FUSED["left"] = kernels.mvsplit_rms_norm  # by the run before
        assert use_kernels("auto", tiny_model(model), device) == "" and not FUSED
    with pytest.raises(ValueError, match="kernels='on' is not one of auto, off"):
        use_kernels("on", tiny_model(), cuda)
    monkeypatch.setattr(kernels, "MAX_WIDTH", 15)
    assert use_kernels("auto", tiny_model("mvsplit"), cuda) == "" and not FUSED


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("sites", "calls"), [("both", 6), ("attn", 3), ("ffn", 3)])
def test_the_model_with_the_operator_is_the_model_without(monkeypatch, tiny_model, sites, calls, autocast):
    model, g, seen = tiny_model("mvsplit", params=f"alpha=0.5,sites={sites}", depth=3).to(DEVICE), torch.Generator().manual_seed(3), []
    image, caption, up = torch.randn(3, 2, 4, 4, generator=g), torch.randn(3, 3, 16, generator=g), torch.randn(3, 2, 4, 4, generator=g)

    def run():
        model.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            out = model(image.to(DEVICE), caption.to(DEVICE)).float()
        (out * up.to(DEVICE)).sum().backward()
        return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    def operator(x, f, *rest):
        seen.append((x.dtype, f.dtype))
        return kernels.mvsplit_rms_norm(x, f, *rest)

    out, grads = run()
    monkeypatch.setitem(FUSED, "mvsplit_rms_norm", operator)
    fused_out, fused_grads = run()
    assert seen == [(torch.float32, torch.bfloat16 if autocast else torch.float32)] * calls  # the trunk stays fp32
    tolerance = 2**-5 if autocast else 1e-5
    assert (fused_out - out).abs().max() <= tolerance * out.abs().max()
    for name, grad in grads.items():
        assert (fused_grads[name] - grad).abs().max() <= tolerance * grad.abs().max(), name


def test_a_cpu_run_does_not_import_the_kernels():
    code = "import sys, torch; from suite.model.fused import use_kernels; import suite.sweep.execute, suite.sweep.worker;"
    code += "from suite import registry;"
    code += "from suite.residual import Site; scheme = registry.get('mvsplit').cls(Site(8, 2, 0, 'attn'));"
    code += "assert use_kernels('auto', scheme, torch.device('cpu')) == '' and 'suite.model.kernels' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
