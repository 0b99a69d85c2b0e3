"""The scheme contract: how a branch joins the trunk.

Shapes: B batch, T tokens (image tokens first, then caption tokens), D width.
x is the trunk, f what a branch adds to it, z their merge before the norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

EPS = 1e-6  # Table 3 of arXiv:2605.06169 (the released code has 1e-5)
HALF = (torch.bfloat16, torch.float16)  # what autocast makes of a linear map's output


class Context(NamedTuple):
    """What a scheme may look at besides x and f; everything that changes over a run is a tensor, so nothing recompiles.

    segments: token counts per segment in sequence order, (image, caption).
    site: "attn" or "ffn", the merge of the block this is.
    step: optimiser step, 0-dim float tensor, for schemes with a schedule.
    """

    segments: tuple[int, ...]
    site: str
    step: Tensor


class Site(NamedTuple):
    """Where a scheme instance lives, given to its constructor. block counts from 0; depth is the number of blocks."""

    width: int
    depth: int
    block: int
    site: str


class _RMSNorm(torch.autograd.Function):
    """y = r x with r = rsqrt(mean(x^2) + eps); dx = r (dy - y mean(dy y)), which needs y, kept by the next layer anyway, and no x.

    Returns (y, r). Written so that torch.func.vmap can batch it: runs that are trained as one model have a leading axis.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x_BTD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        r_BT1 = torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + eps)
        return x_BTD * r_BT1, r_BT1

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, d_BTD: Tensor, _):
        y_BTD, r_BT1 = ctx.saved_tensors
        return r_BT1 * (d_BTD - y_BTD * (d_BTD * y_BTD).mean(-1, keepdim=True)), None


def rms_norm(x_BTD: Tensor, eps: float = EPS) -> Tensor:
    """Non-affine RMSNorm over the last axis (arXiv:2605.06169, Table 3). Shape and dtype in = out; the statistic is never half."""
    if x_BTD.dtype in HALF:
        return rms_norm(x_BTD.float(), eps).to(x_BTD.dtype)
    return _RMSNorm.apply(x_BTD, eps)[0]


def token_mean(x_BTD: Tensor, segments: tuple[int, ...]) -> Tensor:
    """J x: every token replaced by the mean of its segment (Eq. 3 and 43), fp32 where x is half. An empty segment is allowed."""
    if x_BTD.dtype in HALF:
        x_BTD = x_BTD.float()
    parts_BtD = torch.split(x_BTD, [n for n in segments if n], dim=1)
    return torch.cat([p_BtD.mean(1, keepdim=True).expand_as(p_BtD) for p_BtD in parts_BtD], dim=1)


def centered(x_BTD: Tensor, segments: tuple[int, ...]) -> Tensor:
    """P x = x - J x (Eq. 3)."""
    return x_BTD - token_mean(x_BTD, segments)


class Residual(nn.Module):
    """Base of every scheme: post-norm, ``rms_norm(merge(x, branch(x), ctx))``.

    Most schemes override `merge` alone; pre-norm ones override `forward`, multi-stream ones `open` and `fold` too.
    Keyword arguments of the constructor are the scheme's parameters: they become the `params` column. Numbers that
    depend on depth must be buffers, not Python attributes (a Python number read in `forward` recompiles every block).
    Every parameter a scheme owns is a gate: never decayed.
    """

    shared = False  # True: one instance serves both merges of a block (ReZero)
    zero_writers = ""  # why zero-initialised writers are illegal; empty = legal

    def __init__(self, site: Site) -> None:
        super().__init__()

    def merge(self, x_BTD: Tensor, f_BTD: Tensor, ctx: Context) -> Tensor:
        """z from trunk and branch output, all (B, T, D)."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither merge nor forward")

    def forward(self, x_BTD: Tensor, branch: Callable[[Tensor], Tensor], ctx: Context) -> Tensor:
        return rms_norm(self.merge(x_BTD, branch(x_BTD), ctx))

    def open(self, x_BTD: Tensor) -> Tensor:
        """Called once on the first block's input; a multi-stream scheme opens its streams here."""
        return x_BTD

    def fold(self, x_BTD: Tensor) -> Tensor:
        """Called once on the last block's output; folds streams, or adds the final norm that pre-norm needs."""
        return x_BTD

    @torch.no_grad()
    def init_weights(self, site: str, weights: dict[str, Tensor]) -> None:
        """Rescale the freshly drawn weights of this site in place: q, k, v, o (attention) or w1, w3, w2 (FFN)."""
