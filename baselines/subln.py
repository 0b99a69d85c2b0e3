"""SubLN: pre-norm with a second norm before each writer, and larger weights for it (Magneto, arXiv:2210.06423)."""

import torch
from torch import nn

from baselines.prenorm import PreNorm
from suite.registry import register


@register("subln", paper="arXiv:2210.06423")
class SubLN(PreNorm):
    """X + W N(h(N X)), N before the writer an affine LayerNorm; v, o, w1, w3 and w2 start times sqrt(log 2N), N blocks (encoder)."""

    def __init__(self, site):
        super().__init__(site)
        self.norm = nn.LayerNorm(site.inner)
        self.register_buffer("scale", torch.tensor(2.0 * site.depth).log().sqrt())

    def inner(self, h, ctx):
        return self.norm(h)

    @torch.no_grad()
    def init_weights(self, site, weights):
        for name in {"v", "o", "w1", "w3", "w2"} & weights.keys():
            weights[name].mul_(self.scale)
