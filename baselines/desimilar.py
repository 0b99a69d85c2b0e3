"""Removal of similarity: the mean of the tokens is taken out of the trunk behind every attention (arXiv:2312.06182).

The paper gives the operation, (I - tau J) with tau = 1 as a rule; behind which sum it stands is read from its abstract
and summaries alone, so the place is ours.
"""

import torch

from suite.registry import register
from suite.residual import Residual, token_mean


@register("desimilar", paper="arXiv:2312.06182")
class Desimilar(Residual):
    """Z = (I - tau J) (X + A) behind attention, J per segment, tau fixed; plain behind the FFN."""

    def __init__(self, site, tau: float = 1.0):
        super().__init__(site)
        self.removes = site.site == "attn"
        self.register_buffer("tau", torch.tensor(tau))

    def merge(self, x_BTD, f_BTD, ctx):
        z_BTD = x_BTD + f_BTD
        return z_BTD - self.tau * token_mean(z_BTD, ctx.segments) if self.removes else z_BTD
