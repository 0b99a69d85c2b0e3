"""ReZero: one scalar per block, shared by both branches, that starts at zero (arXiv:2003.04887).

`controlled` keeps the post-norm of the backbone: RMSNorm(X + a F). `native` has no norm in the blocks, as published,
and one RMSNorm before the output so that its scale is comparable.
"""

import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual, rms_norm


@register("rezero", paper="arXiv:2003.04887")
class ReZero(Residual):
    """Z = X + a F, a scalar, 0 at the start, then RMSNorm."""

    shared = True
    zero_writers = "a zero gate times a zero writer has zero gradient on both sides for ever"

    def __init__(self, site):
        super().__init__(site)
        self.gate_alpha = nn.Parameter(torch.zeros(1))

    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD + self.gate_alpha * f_BTD


@register("rezero", arm="native", paper="arXiv:2003.04887")
class ReZeroNormFree(ReZero):
    """X + a F with no norm; RMSNorm after the last block. Gaussian weights of Xavier's variance (the authors draw them uniform)."""

    def forward(self, x_BTD, branch, ctx):
        return self.merge(x_BTD, branch(x_BTD), ctx)

    def fold(self, x_BTD):
        return rms_norm(x_BTD)

    @torch.no_grad()
    def init_weights(self, site, weights):
        for w in weights.values():  # same random direction, Xavier's variance 2 / (fan_in + fan_out)
            w.mul_((2 / (w.shape[0] + w.shape[1])) ** 0.5 / w.std())
