"""One fused operator: the MV-Split merge and the RMSNorm after it (arXiv:2605.06169, Eq. 7-8, 43-45), both directions.

    Z = X + beta*(F - J F) + alpha*J(F - X);   out = Z * rsqrt(mean(Z^2) + eps)         J: token mean of a segment
    dZ = r*(dOut - out*mean(dOut*out)), r the saved rsqrt;   m = J dZ                   (Eq. 50-54, rewritten for out)
    dX = dZ - alpha*m;   dF = beta*dZ + (alpha - beta)*m;   dalpha = sum dZ*J(F - X);   dbeta = sum dZ*(F - J F)

Saved for the backward: out (which the next layer keeps anyway), F, r (4 bytes per token), J(F - X) and, on the wide
path, J F (4 bytes per segment and channel each); neither X nor Z. Statistics, gates and sums are fp32 also when x or f
is bf16; out and dX have x's dtype, dF has f's. In bf16 the backward starts from the rounded out.

Traffic in tensor passes (one read or write of B*T*D elements; a test counts them):

    narrow   forward 3: read x, f; write out.   backward 5: read dOut, out, f; write dX, dF.   One launch each (and the
             sum of the gates). A program holds a whole (sample, segment), so what is needed twice stays in registers.
             Taken when the tile, rounded up to powers of two, has at most NARROW elements.
    wide     forward 5: read x, f for the means; read x, f again; write out. Row sums have to wait for the last token's
             share of the means; storing x + beta*f meanwhile saves nothing (2 + 1 + 1 + 1). 4 without a cache needs
             a mean of x that comes with x: the site before has it in registers, but it would have to travel beside the
             trunk through the blocks, their checkpoints and every side pass, of every scheme. So 5 loads and stores.
             backward 7: read dOut, out, f; read dOut, out again; write dX, dF.
             Two launches forward, three backward (and the sum of the gates). The last of them goes through the batch from
             its end, so that it begins with what the L2 cache has kept of the first. (Groups of samples that fit in the
             cache ask for less memory traffic, and lost on an H100 by their launches: 434 us a forward at the paper's shape
             from Python, 123 in a CUDA graph, where torch.compile takes 161 from Python and a copy 24.)
             Partial sums add 16 bytes per channel and BACKWARD_CHUNK tokens, written and read.

Deterministic: no atomics; sums run in a fixed order, the gates' per (sample, segment) and then over a fixed axis.
Nothing is tuned at run time. Not measured on a GPU in this form: it ran in Triton's interpreter and was compiled for sm_90,
nothing more; `tests/gpu/check.sh` has the measurement by which it stays or goes. Launch constants are reasoned, not tuned.

Shapes: B batch, T tokens, D width, S segments that are not empty, C chunks of a segment's tokens, R rows of a tile.
"""

# no `from __future__ import annotations`: Triton reads tl.constexpr from the annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

jit = triton.jit
DTYPES = (torch.float32, torch.bfloat16)
MAX_WIDTH = 8192  # a row has to fit one program
NARROW = 16384  # elements of a tile that one program holds: two such fp32 tiles are half of an SM's registers
TILE = 4096  # elements of a tile in the row-wise kernels of the wide path
FORWARD_CHUNK, BACKWARD_CHUNK = 16, 32  # tokens per program there; powers of two
MEAN_ROWS, MEAN_COLUMNS = 64, 64  # tile of the kernel that takes the means


# --- device code ------------------------------------------------------------------------------------------------------


@jit
def _span(pid, T, SEGMENTS: tl.constexpr):
    """First row and number of tokens of the pid-th (sample, segment) pair."""
    start, count = pid // len(SEGMENTS) * T, 0
    for i in tl.static_range(len(SEGMENTS)):
        start += tl.where(i < pid % len(SEGMENTS), SEGMENTS[i], 0)
        count += tl.where(i == pid % len(SEGMENTS), SEGMENTS[i], 0)
    return start, count


@jit
def _tile(start, token, count, d, D):
    """Rows of these tokens and which of them exist; the same for the elements of their tile."""
    row, real = start + token, token < count
    return row, real, row[:, None] * D + d[None, :], real[:, None] & (d < D)[None, :]


@jit
def _load(ptr, at, live):
    return tl.load(ptr + at, mask=live, other=0.0).to(tl.float32)


@jit
def _narrow_forward(
    x_ptr, f_ptr, alpha_ptr, beta_ptr, out_ptr, r_ptr, means_ptr, eps, D,
    T: tl.constexpr, SEGMENTS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    start, count = _span(pid, T, SEGMENTS)
    d = tl.arange(0, BD)
    row, real, at, live = _tile(start, tl.arange(0, BT), count, d, D)
    x, f = _load(x_ptr, at, live), _load(f_ptr, at, live)
    alpha, beta = _load(alpha_ptr, d, d < D), _load(beta_ptr, d, d < D)
    mean_f, mean_x = tl.sum(f, 0) / count, tl.sum(x, 0) / count
    gap = mean_f - mean_x
    z = x + beta[None, :] * (f - mean_f[None, :]) + (alpha * gap)[None, :]
    r = tl.rsqrt(tl.sum(z * z, 1) / D + eps)
    tl.store(out_ptr + at, z * r[:, None], mask=live)
    tl.store(r_ptr + row, r, mask=real)
    tl.store(means_ptr + pid * D + d, gap, mask=d < D)


@jit
def _narrow_backward(
    g_ptr, out_ptr, f_ptr, r_ptr, means_ptr, alpha_ptr, beta_ptr, dx_ptr, df_ptr, gates_ptr, D,
    T: tl.constexpr, SEGMENTS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """gates (2, B*S, D) receives each program's share of dalpha and dbeta."""
    pid = tl.program_id(0).to(tl.int64)
    start, count = _span(pid, T, SEGMENTS)
    d = tl.arange(0, BD)
    row, real, at, live = _tile(start, tl.arange(0, BT), count, d, D)
    g, out, r = _load(g_ptr, at, live), _load(out_ptr, at, live), _load(r_ptr, row, real)
    dz = r[:, None] * (g - out * (tl.sum(g * out, 1) / D)[:, None])
    total = tl.sum(dz, 0)
    f, gap = _load(f_ptr, at, live), _load(means_ptr, pid * D + d, d < D)
    beta_share = tl.sum(dz * (f - (tl.sum(f, 0) / count)[None, :]), 0)
    tl.store(gates_ptr + pid * D + d, total * gap, mask=d < D)
    tl.store(gates_ptr + (tl.num_programs(0) + pid) * D + d, beta_share, mask=d < D)
    alpha, beta = _load(alpha_ptr, d, d < D), _load(beta_ptr, d, d < D)
    mean = total / count
    tl.store(dx_ptr + at, dz - (alpha * mean)[None, :], mask=live)
    tl.store(df_ptr + at, beta[None, :] * dz + ((alpha - beta) * mean)[None, :], mask=live)


@jit
def _wide_means(
    x_ptr, f_ptr, means_ptr, rows, D, T: tl.constexpr, SEGMENTS: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr
):
    """One program per (sample, segment, BD columns): means (2, B*S, D) receives J(F - X) and J F; rows is B*S."""
    pid = tl.program_id(0).to(tl.int64)
    start, count = _span(pid, T, SEGMENTS)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    sum_x, sum_f = tl.zeros([BT, BD], tl.float32), tl.zeros([BT, BD], tl.float32)
    for t in range(0, count, BT):
        _, _, at, live = _tile(start, t + tl.arange(0, BT), count, d, D)
        sum_x += _load(x_ptr, at, live)
        sum_f += _load(f_ptr, at, live)
    mean_f = tl.sum(sum_f, 0) / count
    tl.store(means_ptr + pid * D + d, mean_f - tl.sum(sum_x, 0) / count, mask=d < D)
    tl.store(means_ptr + (rows + pid) * D + d, mean_f, mask=d < D)


@jit
def _wide_apply(
    x_ptr, f_ptr, alpha_ptr, beta_ptr, out_ptr, r_ptr, means_ptr, eps, rows, D,
    T: tl.constexpr, SEGMENTS: tl.constexpr, C: tl.constexpr, CHUNK: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program per (sample, segment, chunk of tokens), as in all that follow but one."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # from the end, which the cache still holds
    pid = program.to(tl.int64) // C
    start, count = _span(pid, T, SEGMENTS)
    begin, d = program % C * CHUNK, tl.arange(0, BD)
    gap, mean_f = _load(means_ptr, pid * D + d, d < D), _load(means_ptr, (rows + pid) * D + d, d < D)
    alpha, beta = _load(alpha_ptr, d, d < D), _load(beta_ptr, d, d < D)
    for t in range(begin, tl.minimum(begin + CHUNK, count), R):
        row, real, at, live = _tile(start, t + tl.arange(0, R), count, d, D)
        x, f = _load(x_ptr, at, live), _load(f_ptr, at, live)
        z = x + beta[None, :] * (f - mean_f[None, :]) + (alpha * gap)[None, :]
        r = tl.rsqrt(tl.sum(z * z, 1) / D + eps)
        tl.store(out_ptr + at, z * r[:, None], mask=live)
        tl.store(r_ptr + row, r, mask=real)


@jit
def _wide_sums(
    g_ptr, out_ptr, f_ptr, r_ptr, means_ptr, dot_ptr, sums_ptr, rows, D,
    T: tl.constexpr, SEGMENTS: tl.constexpr, C: tl.constexpr, CHUNK: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Per chunk, sums (2, B*S*C, D) of dZ and dZ*(F - J F); per token, dot (B, T) = mean(dOut*out)."""
    pid = tl.program_id(0).to(tl.int64) // C
    start, count = _span(pid, T, SEGMENTS)
    begin, d = tl.program_id(0) % C * CHUNK, tl.arange(0, BD)
    mean_f = _load(means_ptr, (rows + pid) * D + d, d < D)
    total, share = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    for t in range(begin, tl.minimum(begin + CHUNK, count), R):
        row, real, at, live = _tile(start, t + tl.arange(0, R), count, d, D)
        g, out, r = _load(g_ptr, at, live), _load(out_ptr, at, live), _load(r_ptr, row, real)
        dot = tl.sum(g * out, 1) / D
        dz = r[:, None] * (g - out * dot[:, None])
        total += tl.sum(dz, 0)
        share += tl.sum(dz * (_load(f_ptr, at, live) - mean_f[None, :]), 0)
        tl.store(dot_ptr + row, dot, mask=real)
    chunk = pid * C + tl.program_id(0) % C
    tl.store(sums_ptr + chunk * D + d, total, mask=d < D)
    tl.store(sums_ptr + (rows * C + chunk) * D + d, share, mask=d < D)


@jit
def _wide_reduce(
    sums_ptr, means_ptr, mean_ptr, gates_ptr, rows, D,
    T: tl.constexpr, SEGMENTS: tl.constexpr, C: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Add a segment's chunks in order: mean (B*S, D) = J dZ; gates (2, B*S, D) = shares of dalpha and dbeta."""
    pid = tl.program_id(0).to(tl.int64)
    _, count = _span(pid, T, SEGMENTS)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    total, share = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
    for c in range(C):
        at = (pid * C + c) * D + d
        total += _load(sums_ptr, at, d < D)
        share += _load(sums_ptr, rows * C * D + at, d < D)
    tl.store(mean_ptr + pid * D + d, total / count, mask=d < D)
    tl.store(gates_ptr + pid * D + d, total * _load(means_ptr, pid * D + d, d < D), mask=d < D)
    tl.store(gates_ptr + (rows + pid) * D + d, share, mask=d < D)


@jit
def _wide_gradients(
    g_ptr, out_ptr, r_ptr, dot_ptr, mean_ptr, alpha_ptr, beta_ptr, dx_ptr, df_ptr, D,
    T: tl.constexpr, SEGMENTS: tl.constexpr, C: tl.constexpr, CHUNK: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # from the end, which the cache still holds
    pid = program.to(tl.int64) // C
    start, count = _span(pid, T, SEGMENTS)
    begin, d = program % C * CHUNK, tl.arange(0, BD)
    mean = _load(mean_ptr, pid * D + d, d < D)
    alpha, beta = _load(alpha_ptr, d, d < D), _load(beta_ptr, d, d < D)
    for t in range(begin, tl.minimum(begin + CHUNK, count), R):
        row, real, at, live = _tile(start, t + tl.arange(0, R), count, d, D)
        g, out = _load(g_ptr, at, live), _load(out_ptr, at, live)
        r, dot = _load(r_ptr, row, real), _load(dot_ptr, row, real)
        dz = r[:, None] * (g - out * dot[:, None])
        tl.store(dx_ptr + at, dz - (alpha * mean)[None, :], mask=live)
        tl.store(df_ptr + at, beta[None, :] * dz + ((alpha - beta) * mean)[None, :], mask=live)


# --- launches ---------------------------------------------------------------------------------------------------------


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _warps(elements: int) -> int:
    return min(16, max(1, elements // 1024))  # 32 elements a thread; a function of the shape alone


def _narrow(width: int, segments: Sequence[int]) -> bool:
    return _power(max(segments)) * _power(width) <= NARROW


def _spans(tokens: int, segments: Sequence[int]) -> dict:
    return {"T": tokens, "SEGMENTS": tuple(segments), "enable_fp_fusion": True}  # said, as Triton 3.10 changes it


def _whole(width: int, segments: Sequence[int]) -> dict[str, int]:
    """Constants of the narrow kernels."""
    bt, bd = _power(max(segments)), _power(width)
    return {"BT": bt, "BD": bd, "num_warps": _warps(bt * bd)}


def _rows(width: int, segments: Sequence[int], chunk: int) -> dict[str, int]:
    """Constants of the row-wise kernels: chunks per segment, rows per tile."""
    c, bd = math.ceil(max(segments) / chunk), _power(width)
    rows = min(chunk, max(1, TILE // bd), _power(max(segments)))
    return {"C": c, "CHUNK": chunk, "R": rows, "BD": bd, "num_warps": _warps(rows * bd)}


@torch.library.custom_op("screambench::mvsplit_rms_norm", mutates_args=())
def _forward(
    x_BTD: Tensor, f_BTD: Tensor, alpha_D: Tensor, beta_D: Tensor, segments: Sequence[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """out, r (B, T), and means: J(F - X) and, on the wide path, J F."""
    (B, T, D), S = x_BTD.shape, len(segments)
    narrow, spans = _narrow(D, segments), _spans(T, segments)
    out_BTD, r_BT = torch.empty_like(x_BTD), x_BTD.new_empty(B, T, dtype=torch.float32)
    means = x_BTD.new_empty(1 if narrow else 2, B * S, D, dtype=torch.float32)
    args = x_BTD, f_BTD, alpha_D, beta_D, out_BTD, r_BT, means, eps
    with torch.cuda.device_of(x_BTD):
        if narrow:
            _narrow_forward[(B * S,)](*args, D, **spans, **_whole(D, segments))
            return out_BTD, r_BT, means
        rows = _rows(D, segments, FORWARD_CHUNK)
        mean_tile = {"BT": min(MEAN_ROWS, _power(max(segments))), "BD": MEAN_COLUMNS, "num_warps": 4}
        _wide_means[(B * S, triton.cdiv(D, MEAN_COLUMNS))](x_BTD, f_BTD, means, B * S, D, **spans, **mean_tile)
        _wide_apply[(B * S * rows["C"],)](*args, B * S, D, **spans, **rows)
    return out_BTD, r_BT, means


@_forward.register_fake
def _(x_BTD, f_BTD, alpha_D, beta_D, segments, eps):
    B, T, D = x_BTD.shape
    means = x_BTD.new_empty(1 if _narrow(D, segments) else 2, B * len(segments), D, dtype=torch.float32)
    return torch.empty_like(x_BTD), x_BTD.new_empty(B, T, dtype=torch.float32), means


@torch.library.custom_op("screambench::mvsplit_rms_norm_backward", mutates_args=())
def _backward(
    g_BTD: Tensor, out_BTD: Tensor, f_BTD: Tensor, r_BT: Tensor, means: Tensor, alpha_D: Tensor, beta_D: Tensor,
    segments: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dX, dF, and (2, D) dalpha, dbeta."""
    (B, T, D), S = out_BTD.shape, len(segments)
    spans = _spans(T, segments)
    g_BTD = g_BTD.contiguous()  # autograd may hand over an expanded one
    dx_BTD, df_BTD = torch.empty_like(out_BTD), torch.empty_like(f_BTD)
    gates = means.new_empty(2, B * S, D)
    with torch.cuda.device_of(out_BTD):
        if _narrow(D, segments):
            args = g_BTD, out_BTD, f_BTD, r_BT, means, alpha_D, beta_D, dx_BTD, df_BTD, gates, D
            _narrow_backward[(B * S,)](*args, **spans, **_whole(D, segments))
        else:
            rows = _rows(D, segments, BACKWARD_CHUNK)
            C, dot_BT, mean = rows["C"], torch.empty_like(r_BT), torch.empty_like(gates[0])
            sums = means.new_empty(2, B * S * C, D)
            args = g_BTD, out_BTD, f_BTD, r_BT, means, dot_BT, sums, B * S, D
            _wide_sums[(B * S * C,)](*args, **spans, **rows)
            args = sums, means, mean, gates, B * S, D
            _wide_reduce[(B * S, triton.cdiv(D, 128))](*args, **spans, C=C, BD=128, num_warps=4)
            args = g_BTD, out_BTD, r_BT, dot_BT, mean, alpha_D, beta_D, dx_BTD, df_BTD, D
            _wide_gradients[(B * S * C,)](*args, **spans, **rows)
        return dx_BTD, df_BTD, gates.sum(1)


@_backward.register_fake
def _(g_BTD, out_BTD, f_BTD, r_BT, means, alpha_D, beta_D, segments):
    return torch.empty_like(out_BTD), torch.empty_like(f_BTD), alpha_D.new_empty(2, *alpha_D.shape)


def _save(ctx, inputs, output):
    _, f_BTD, alpha_D, beta_D, ctx.segments, _ = inputs
    out_BTD, r_BT, means = output
    ctx.save_for_backward(out_BTD, f_BTD, r_BT, means, alpha_D, beta_D)
    ctx.mark_non_differentiable(r_BT, means)


def _gradients(ctx, g_BTD, *_):
    out_BTD, f_BTD, r_BT, means, alpha_D, beta_D = ctx.saved_tensors
    dx_BTD, df_BTD, gates_2D = _backward(g_BTD, out_BTD, f_BTD, r_BT, means, alpha_D, beta_D, ctx.segments)
    return dx_BTD, df_BTD, *gates_2D.unbind(), None, None


_forward.register_autograd(_gradients, setup_context=_save)


def _check(x_BTD: Tensor, f_BTD: Tensor, alpha_D: Tensor, beta_D: Tensor, segments: tuple[int, ...]) -> None:
    shapes = [tuple(t.shape) for t in (x_BTD, f_BTD, alpha_D, beta_D)]
    dtypes = [t.dtype for t in (x_BTD, f_BTD, alpha_D, beta_D)]
    problem = ""
    if x_BTD.ndim != 3 or x_BTD.numel() == 0:
        problem = f"x must be (B, T, D) and not empty, got {shapes[0]}"
    elif shapes != [shapes[0], shapes[0], shapes[0][2:], shapes[0][2:]]:
        problem = f"x, f must be (B, T, D) and alpha, beta (D,), got {shapes}"
    elif x_BTD.shape[2] > MAX_WIDTH:
        problem = f"width {x_BTD.shape[2]} is above {MAX_WIDTH}"
    elif not set(dtypes[:2]) <= set(DTYPES) or set(dtypes[2:]) != {torch.float32}:
        problem = f"x, f must be float32 or bfloat16 and alpha, beta float32, got {dtypes}"
    elif any(n < 0 for n in segments) or sum(segments) != x_BTD.shape[1]:
        problem = f"segments {tuple(segments)} do not sum to the {x_BTD.shape[1]} tokens of x"
    elif len({t.device for t in (x_BTD, f_BTD, alpha_D, beta_D)}) > 1:
        problem = "x, f, alpha and beta must be on one device"
    elif not x_BTD.is_cuda and isinstance(_narrow_forward, triton.JITFunction):
        problem = f"needs a CUDA tensor, got {x_BTD.device} (TRITON_INTERPRET=1 runs it on a CPU)"
    if problem:
        raise ValueError(f"mvsplit_rms_norm: {problem}")


def mvsplit_rms_norm(
    x_BTD: Tensor, f_BTD: Tensor, alpha_D: Tensor, beta_D: Tensor, segments: tuple[int, ...], eps: float
) -> Tensor:
    """The next trunk. x, f fp32 or bf16, gates fp32; what is not contiguous is copied first; other input is refused."""
    _check(x_BTD, f_BTD, alpha_D, beta_D, segments)
    tensors = (t.contiguous() for t in (x_BTD, f_BTD, alpha_D, beta_D))
    return _forward(*tensors, [n for n in segments if n], eps)[0]
