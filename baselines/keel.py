"""Keel: post-norm with the trunk weighted by the number of branches, and a norm inside (arXiv:2601.19895).

No official code is known. Its norms must be affine: without a scale of its own the inner norm would do nothing
to a trunk that the outer one has just normalised.
"""

import torch
from torch import nn

from suite.registry import register
from suite.residual import EPS, Residual


@register("keel", paper="arXiv:2601.19895")
class Keel(Residual):
    """N(a X + F(N X)), a = 2 depth, affine RMSNorms. The first attention is pre-norm without the outer N, the first FFN has a = 1."""

    def __init__(self, site, a: float = 0.0):  # 0 = the paper's, the number of branches
        super().__init__(site)
        self.norm_in = nn.RMSNorm(site.width, eps=EPS)
        self.norm_out = nn.Identity() if site.block == 0 and site.site == "attn" else nn.RMSNorm(site.width, eps=EPS)
        self.register_buffer("a", torch.tensor(1.0 if site.block == 0 else a or 2.0 * site.depth))

    def merge(self, x_BTD, f_BTD, ctx):
        return self.a * x_BTD + f_BTD

    def forward(self, x_BTD, branch, ctx):
        return self.norm_out(self.merge(x_BTD, branch(self.norm_in(x_BTD)), ctx))
