"""LayerScale: one learnable scale per channel on each branch (CaiT, arXiv:2103.17239).

`controlled` is arXiv:2605.06169's adaptation: post-norm, Z = X + lambda * F. `native` is CaiT's own: pre-norm with
affine LayerNorm, init by depth, a final norm.
"""

import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual


def cait_init(depth: int) -> float:
    """CaiT section 3: 0.1 up to 18 blocks, 1e-5 at 24, 1e-6 deeper (never validated past 48 blocks)."""
    return 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6


@register("layerscale", paper="arXiv:2103.17239")
class LayerScale(Residual):
    """Z = X + lambda * F, lambda in R^D, then RMSNorm (arXiv:2605.06169 Eq. 40)."""

    def __init__(self, site, init: float = 0.01):  # the largest of the paper's sweep 1e-2..1e-5; which won is not stated
        super().__init__(site)
        self.gate_lambda = nn.Parameter(torch.full((site.width,), init))

    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD + self.gate_lambda * f_BTD


@register("layerscale", arm="native", paper="arXiv:2103.17239")
class LayerScalePreNorm(Residual):
    """X + lambda * F(LayerNorm(X)); a LayerNorm after the last block."""

    def __init__(self, site, init: float = 0.0):  # 0 = CaiT's rule by depth
        super().__init__(site)
        self.gate_lambda = nn.Parameter(torch.full((site.width,), init or cait_init(site.depth)))
        self.norm = nn.LayerNorm(site.width, eps=1e-6)  # deit cait_models.py
        last = site.block == site.depth - 1 and site.site == "ffn"
        self.final_norm = nn.LayerNorm(site.width, eps=1e-6) if last else nn.Identity()

    def forward(self, x_BTD, branch, ctx):
        return x_BTD + self.gate_lambda * branch(self.norm(x_BTD))

    def fold(self, x_BTD):
        return self.final_norm(x_BTD)
