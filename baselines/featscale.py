"""FeatScale: the mean and the centered part of attention's output, each with a gain of its own (arXiv:2203.05962, section 4.2).

An earlier split of the branch than MV-Split's: without the leak, and on attention alone. `controlled` keeps the
post-norm of the backbone; the authors' own is a pre-norm ViT.
"""

import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual, token_mean


@register("featscale", paper="arXiv:2203.05962")
class FeatScale(Residual):
    """Z = X + A + s * J A + t * (A - J A) behind attention, s and t in R^D, both 0 at the start; plain behind the FFN."""

    def __init__(self, site):
        super().__init__(site)
        self.scales = site.site == "attn"
        if self.scales:
            self.gate_mean = nn.Parameter(torch.zeros(site.width))
            self.gate_centered = nn.Parameter(torch.zeros(site.width))

    def merge(self, x_BTD, f_BTD, ctx):
        if not self.scales:
            return x_BTD + f_BTD
        mean_BTD = token_mean(f_BTD, ctx.segments)
        return x_BTD + f_BTD + self.gate_mean * mean_BTD + self.gate_centered * (f_BTD - mean_BTD)
