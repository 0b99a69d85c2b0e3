"""AdaLN-Zero with one map for all blocks: a branch's gain, scale and shift follow from the diffusion time (DiT, arXiv:2212.09748; the
shared map is PixArt's, arXiv:2310.00426)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from suite.registry import register
from suite.residual import Residual, rms_norm

PARTS = 6  # gain, scale, shift of either branch
SLOWEST, UNIT = 1e4, 1e3  # DiT's features: t in thousandths at frequencies from 1 down to one in SLOWEST


def time_features(t_B, width):
    """Cosines and sines of the time, (B, width)."""
    half = width // 2
    angle_BH = UNIT * t_B[:, None] * torch.exp(-math.log(SLOWEST) / half * torch.arange(half, device=t_B.device, dtype=t_B.dtype))
    return torch.cat([angle_BH.cos(), angle_BH.sin()], -1)


@register("adaln", paper="arXiv:2212.09748")
class SharedAdaLN(Residual):
    """X + g F((1 + s) N X + b), (g, s, b)(t) = W silu(V features(t)) + what each block adds; N behind the last block.

    W and what blocks add start at zero, so that each block is the identity; at g = 1 and s = b = 0 it is pre-norm. Of
    all schemes this one alone reads the time, which it carries along as six more tokens.
    """

    zero_writers = "a zero gate times a zero writer has zero gradient on both sides for ever"

    def __init__(self, site):
        super().__init__(site)
        self.at = 0 if site.site == "attn" else PARTS // 2
        self.gate_own = nn.Parameter(torch.zeros(PARTS // 2, site.width))
        if (site.block, site.site) == (0, "attn"):
            width, draw = site.width - site.width % 2, torch.Generator().manual_seed(0)
            self.gate_time = nn.Parameter(torch.empty(site.width, width).normal_(std=0.02, generator=draw))  # as DiT's
            self.gate_map = nn.Parameter(torch.zeros(PARTS * site.width, site.width))

    def open(self, x_BTD, ctx):
        hidden_BD = F.silu(time_features(ctx.t_B, self.gate_time.shape[1]).to(x_BTD.dtype) @ self.gate_time.T)
        return torch.cat([x_BTD, (hidden_BD @ self.gate_map.T).unflatten(-1, (PARTS, -1))], 1)

    def forward(self, x_BUD, branch, ctx):
        x_BTD, time_B6D = x_BUD[:, :-PARTS], x_BUD[:, -PARTS:]
        gain, scale, shift = (time_B6D[:, self.at : self.at + PARTS // 2] + self.gate_own).unsqueeze(2).unbind(1)
        return torch.cat([x_BTD + gain * branch((1 + scale) * rms_norm(x_BTD) + shift), time_B6D], 1)

    def fold(self, x_BUD):
        return rms_norm(x_BUD[:, :-PARTS])
