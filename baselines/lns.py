"""LayerNorm Scaling: what a branch reads shrinks with the root of its block's number (Sun et al. 2025, arXiv:2502.05795)."""

import torch

from baselines.prenorm import PreNorm
from suite.registry import register
from suite.residual import rms_norm


@register("lns", paper="arXiv:2502.05795")
class LayerNormScaling(PreNorm):
    """X + F(N X / sqrt(l)), l = 1 in the first block, the same for both of its branches."""

    def __init__(self, site):
        super().__init__(site)
        self.register_buffer("shrink", torch.tensor((site.block + 1) ** -0.5))

    def read(self, x_BTD):
        return self.shrink * rms_norm(x_BTD)
