"""MV-Split: separate gains for the mean and the centered mode of the branch (arXiv:2605.06169)."""

import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual, token_mean


@register("mvsplit", paper="arXiv:2605.06169")
class MVSplit(Residual):
    """Z = X + beta * P F + alpha * J (F - X), then RMSNorm; J per segment (Eq. 7-8, 43-45)."""

    def __init__(self, site, alpha: float = 0.0, beta: float = 1.0, sites: str = "both"):  # Table 3, 400 blocks
        super().__init__(site)
        if sites not in ("both", "attn", "ffn"):
            raise ValueError(f"mvsplit: sites={sites!r} is not one of both, attn, ffn")
        self.plain = sites not in ("both", site.site)  # App. F: protecting attention alone does not hold
        if not self.plain:
            self.gate_alpha = nn.Parameter(torch.full((site.width,), alpha))
            self.gate_beta = nn.Parameter(torch.full((site.width,), beta))

    def merge(self, x_BTD, f_BTD, ctx):
        if self.plain:
            return x_BTD + f_BTD
        mean_f_BTD, mean_x_BTD = token_mean(f_BTD, ctx.segments), token_mean(x_BTD, ctx.segments)
        return x_BTD + self.gate_beta * (f_BTD - mean_f_BTD) + self.gate_alpha * (mean_f_BTD - mean_x_BTD)
