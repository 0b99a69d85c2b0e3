"""A learned gain on the trunk and one on the network's input, which every block gets again (nanochat's resid and x0 lambdas)."""

import torch
from torch import nn

from suite.registry import register
from suite.residual import Factors, Residual, rms_norm

TRUNK, INPUT = (1.15, 1.05), (0.2, 0.05)  # gains of the first block and of the last, evenly between
SLOWER = 0.01  # the learning rate of the trunk's gain over that of the weights


@register("lambdas", paper="nanochat")
class Lambdas(Residual):
    """Before each block X := r X + i X_0, then X + F(N X) for both branches; X_0: the normalised tokens. A norm behind the last block."""

    def __init__(self, site):
        super().__init__(site)
        at = site.block / max(site.depth - 1, 1)
        self.first = site.site == "attn"
        if self.first:
            self.gate_trunk, self.gate_input = (nn.Parameter(torch.tensor([a + at * (z - a)])) for a, z in (TRUNK, INPUT))

    def open(self, x_BTD, ctx):
        return torch.stack([rms_norm(x_BTD)] * 2, 2)

    def forward(self, x_BTSD, branch, ctx):
        x_BTD, first_BTD = x_BTSD.unbind(2)
        if self.first:
            x_BTD = self.gate_trunk * x_BTD + self.gate_input * first_BTD
        return torch.stack([x_BTD + branch(rms_norm(x_BTD)), first_BTD], 2)

    def fold(self, x_BTSD):
        return rms_norm(x_BTSD[:, :, 0])

    def factors(self, site):
        return {"gate_trunk": Factors(rate=SLOWER)} if self.first else {}
