"""Admin: post-norm whose trunk has a learned weight per channel, large at the start (Liu et al. 2020, arXiv:2004.08249).

The paper profiles its start from the variances of the branches; this is the closed form of the authors' admin-torch.
"""

import math

import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual


@register("admin", paper="arXiv:2004.08249")
class Admin(Residual):
    """Z = w * X + F, w in R^D learned, then RMSNorm; w starts at sqrt((n + 1) / log(n + 1) - 1), n = 2 depth branches."""

    def __init__(self, site, init: float = 0.0):  # 0 = the closed form, output change of order log n
        super().__init__(site)
        n = 2 * site.depth
        self.gate_omega = nn.Parameter(torch.full((site.width,), init or math.sqrt((n + 1) / math.log(n + 1) - 1)))

    def merge(self, x_BTD, f_BTD, ctx):
        return self.gate_omega * x_BTD + f_BTD
