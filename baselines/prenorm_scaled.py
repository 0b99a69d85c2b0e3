"""Pre-norm with GPT-2's initialisation: writers smaller by the root of the number of branches (Radford et al. 2019, section 2.3)."""

import torch

from baselines.prenorm import PreNorm
from suite.registry import register


@register("prenorm_scaled", paper="Radford et al. 2019")
class PreNormScaled(PreNorm):
    """X + F(N X); W_O and W_2 start times 1 / sqrt(2N), N blocks of two branches each, so that the trunk's variance stays bounded."""

    zero_writers = "a factor on writers of zero is none: that is prenorm"

    def __init__(self, site):
        super().__init__(site)
        self.register_buffer("scale", torch.tensor((2 * site.depth) ** -0.5))

    @torch.no_grad()
    def init_weights(self, site, weights):
        weights["o" if site == "attn" else "w2"].mul_(self.scale)
