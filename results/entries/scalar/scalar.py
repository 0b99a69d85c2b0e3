"""One learned scalar gain on every branch."""

import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual


@register("scalar", paper="none")
class Scalar(Residual):
    """Z = X + g * F with one learned scalar g a branch; the RMSNorm behind it is the network's."""

    def __init__(self, site, gain: float = 0.1):
        super().__init__(site)
        self.gain = nn.Parameter(torch.full((1,), gain))

    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD + self.gain * f_BTD
