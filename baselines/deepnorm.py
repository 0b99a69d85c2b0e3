"""DeepNorm: up-weighted trunk and down-scaled init, by depth (DeepNet, arXiv:2203.00555, encoder-only constants).

`controlled` uses the backbone's RMSNorm and scales its init by beta; `native` has affine LayerNorm and Xavier init.
"""

import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual


@register("deepnorm", paper="arXiv:2203.00555")
class DeepNorm(Residual):
    """Z = a X + F, a = (2N)^(1/4); weights of v, o, w1, w3 and w2 start times b = (8N)^(-1/4); N counts blocks."""

    def __init__(self, site, alpha: float = 0.0, beta: float = 0.0):  # 0 = DeepNet's constant for this depth
        super().__init__(site)
        self.register_buffer("alpha", torch.tensor(alpha or (2 * site.depth) ** 0.25))
        self.register_buffer("beta", torch.tensor(beta or (8 * site.depth) ** -0.25))

    def merge(self, x_BTD, f_BTD, ctx):
        return self.alpha * x_BTD + f_BTD

    @torch.no_grad()
    def init_weights(self, site, weights):
        for name in ("v", "o", "w1", "w3", "w2"):
            if name in weights:
                weights[name].mul_(self.beta)


@register("deepnorm", arm="native", paper="arXiv:2203.00555")
class DeepNormLayerNorm(DeepNorm):
    """LayerNorm(a X + F), affine; Xavier variance with gain 1 on q, k and b elsewhere."""

    def __init__(self, site, alpha: float = 0.0, beta: float = 0.0):
        super().__init__(site, alpha, beta)
        self.norm = nn.LayerNorm(site.width)

    def forward(self, x_BTD, branch, ctx):
        return self.norm(self.merge(x_BTD, branch(x_BTD), ctx))

    @torch.no_grad()
    def init_weights(self, site, weights):
        for w in weights.values():
            if w.count_nonzero():  # zero writers stay zero
                w.mul_((2 / (w.shape[0] + w.shape[1])) ** 0.5 / w.std())
        super().init_weights(site, weights)
