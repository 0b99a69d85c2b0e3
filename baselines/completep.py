"""CompleteP: pre-norm whose branches shrink with depth, and rate and epsilon with them (Dey et al. 2025, arXiv:2505.01618, Table 1).

With a = .5 it is depth-muP (Yang et al. 2023, arXiv:2310.02244).
"""

import torch

from baselines.prenorm import PreNorm
from suite.registry import register
from suite.residual import WEIGHTS, Factors


@register("completep", paper="arXiv:2505.01618")
class CompleteP(PreNorm):
    """X + m^-a F(N X), m = depth / base; branch weights have the rate times m^(a - 1) and Adam's epsilon times m^-a.

    The paper's factors of width are 1: all of a protocol's networks have one width.
    """

    def __init__(self, site, a: float = 1.0, base: float = 2.0):  # the paper's CompleteP, and the depth that it is tuned at
        super().__init__(site)
        m = site.depth / base
        self.register_buffer("scale", torch.tensor(m**-a))
        self.register_buffer("rate", torch.tensor(m ** (a - 1)))

    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD + self.scale * f_BTD

    def factors(self, site):
        return dict.fromkeys(WEIGHTS[site], Factors(self.rate.item(), self.scale.item()))
