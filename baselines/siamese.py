"""SiameseNorm: a post-norm and a pre-norm trunk side by side that share every branch (arXiv:2602.08064)."""

import torch

from suite.registry import register
from suite.residual import Residual, rms_norm


@register("siamese", paper="arXiv:2602.08064")
class SiameseNorm(Residual):
    """O = F(N(X + N Y)); X' = N(X + O / sqrt(l + 1)), Y' = Y + O, l = 1 at the first branch; the output is X + N Y, N the backbone's."""

    def __init__(self, site):
        super().__init__(site)
        place = 1 + 2 * site.block + (site.site == "ffn")
        self.register_buffer("shrink", torch.tensor((place + 1) ** -0.5))

    def open(self, x_BTD, ctx):
        return torch.stack([x_BTD, x_BTD], 2)

    def forward(self, x_BTSD, branch, ctx):
        x_BTD, y_BTD = x_BTSD.unbind(2)
        o_BTD = branch(rms_norm(x_BTD + rms_norm(y_BTD)))
        return torch.stack([rms_norm(x_BTD + self.shrink * o_BTD), y_BTD + o_BTD], 2)

    def fold(self, x_BTSD):
        x_BTD, y_BTD = x_BTSD.unbind(2)
        return x_BTD + rms_norm(y_BTD)
