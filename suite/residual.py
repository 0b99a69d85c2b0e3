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
WEIGHTS = {"attn": ("q", "k", "v", "o"), "ffn": ("w1", "w3", "w2")}  # by site, the names of the branch weights that schemes know


class Context(NamedTuple):
    """What a scheme may look at besides x and f; everything that changes over a run is a tensor, so nothing recompiles.

    segments: token counts per segment in sequence order, (image, caption); their sum is T.
    site: "attn" or "ffn", the merge of the block this is; "attn" in `open`.
    step: optimiser step, 0-dim float tensor, for schemes with a schedule.
    t_B: diffusion time of every sample, (B,) float tensor; 0 is data, 1 is noise.
    """

    segments: tuple[int, ...]
    site: str
    step: Tensor
    t_B: Tensor


class Site(NamedTuple):
    """Where a scheme instance lives, given to its constructor.

    width: D. depth: number of blocks. block: counts from 0. site: "attn" or "ffn". inner: width of what the writer of
    this site reads (attention: D, its heads side by side; FFN: F), as `Residual.inner` gets it. heads: attention
    heads.
    """

    width: int
    depth: int
    block: int
    site: str
    inner: int
    heads: int


class Factors(NamedTuple):
    """What the optimiser multiplies for one weight: its learning rate, and Adam's epsilon. Finite numbers above 0."""

    rate: float = 1.0
    eps: float = 1.0


class _RMSNorm(torch.autograd.Function):
    """y = r x with r = rsqrt(mean(x^2) + eps); dx = r (dy - y mean(dy y)), which needs y, kept by the next layer anyway, and no x.

    Returns (y, r). Written so that torch.func.vmap can batch it: runs that are trained as one model have a leading
    axis.
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

    Most schemes override `merge` alone; pre-norm ones override `forward`, those with several streams or a memory of
    earlier outputs `open` and `fold` too. One class serves all blocks: a first block that differs asks `site.block`
    in its constructor. Keyword arguments of the constructor are the scheme's parameters: they become the `params`
    column. Numbers that differ by block, or depend on depth, must be buffers, not Python attributes (a Python number
    read in `forward` recompiles every block). Every parameter a scheme owns is a gate: never decayed. No method may
    draw random numbers but the constructor and `init_weights`.

    Shapes: B batch, T tokens, D width. The trunk x is (B, T, D), or whatever `open` made of it, from the first block
    to the last.
    """

    shared = False  # True: one instance serves both merges of a block (ReZero)
    zero_writers = ""  # why zero-initialised writers are illegal; empty = legal

    def __init__(self, site: Site) -> None:
        super().__init__()

    def merge(self, x_BTD: Tensor, f_BTD: Tensor, ctx: Context) -> Tensor:
        """z from trunk and branch output, all (B, T, D)."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither merge nor forward")

    def forward(self, x_BTD: Tensor, branch: Callable[[Tensor], Tensor], ctx: Context) -> Tensor:
        """The trunk behind this merge, of the shape of x. branch: attention or FFN, (B, T, D) -> (B, T, D), to be called once."""
        return rms_norm(self.merge(x_BTD, branch(x_BTD), ctx))

    def open(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        """The trunk that the first block reads, from its tokens (B, T, D). Called once a forward, on the first block's first instance.

        Streams, or slots for earlier outputs, are a further axis: (B, T, S, D). What all blocks share (an embedding
        of ctx.t_B that modulates them) may be made here, of parameters of site.block 0 alone, and travel along as
        more tokens: (B, T + K, D).
        """
        return x_BTD

    def fold(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) from the trunk behind the last block: folds streams, or adds the final norm that pre-norm needs.

        Called on the last block's last instance. Measurements see a trunk of another shape than (B, T, D) as this
        gives it, at any depth.
        """
        return x_BTD

    def inner(self, h: Tensor, ctx: Context) -> Tensor:
        """What the writer of this site reads, from what it would read: (B, T, site.inner) in and out. For a norm inside the branch."""
        return h

    @torch.no_grad()
    def init_weights(self, site: str, weights: dict[str, Tensor]) -> None:
        """Rescale the freshly drawn weights of this site in place, by the names in WEIGHTS, each (fan_out, fan_in)."""

    def factors(self, site: str) -> dict[str, Factors]:
        """Factors of the learning rate and of Adam's epsilon at this site, by the names in WEIGHTS[site] and those of its own parameters.

        Asked once, before training. What is not named has none. Decay is by the rate, as in AdamW.
        """
        return {}

    def gates(self) -> dict[str, Tensor]:
        """What the table `gates.csv` follows, by kind: here its own parameters named gate_KIND. Read at every held-out evaluation."""
        return {name.removeprefix("gate_"): p for name, p in self.named_parameters() if name.startswith("gate_")}
