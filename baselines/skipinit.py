"""SkipInit: a scalar on each branch that starts at zero, in place of every norm (De and Smith 2020, arXiv:2002.10444)."""

import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual, rms_norm


@register("skipinit", paper="arXiv:2002.10444")
class SkipInit(Residual):
    """X + a F(X), a scalar a branch, 0 at the start, no norm; RMSNorm behind the last block, for an output of comparable scale."""

    zero_writers = "a zero gate times a zero writer has zero gradient on both sides for ever"

    def __init__(self, site):
        super().__init__(site)
        self.gate_alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x_BTD, branch, ctx):
        return x_BTD + self.gate_alpha * branch(x_BTD)

    def fold(self, x_BTD):
        return rms_norm(x_BTD)
