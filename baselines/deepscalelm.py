"""DeepScaleLM: trunk and branch shrink so that variances stay one, and V, O and the FFN start where theory has that (arXiv:2403.09635)."""

import math
from functools import cache

import numpy as np
import torch

from baselines.prenorm import PreNorm
from suite.registry import register

TOKENS = 0.221  # correlation of two tokens behind the embedding, of the paper's code


@cache
def nodes_and_weights():
    """Of the expectation over a standard normal number, float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def silu_moments(r):
    """(E silu(a)^2, E silu(a) silu(b)) of two standard normal numbers with correlation r, by quadrature."""
    a, weights = nodes_and_weights()
    b = r * a[:, None] + math.sqrt(max(0.0, 1 - r * r)) * a
    silu = torch.nn.functional.silu
    return (weights @ silu(a) ** 2).item(), (weights @ (silu(a) * (silu(b) @ weights))).item()


@cache
def correlations(depth, beta2):
    """For each block the correlation of two tokens that its attention reads.

    Attention that looks at all tokens alike gives each the same; SwiGLU, unlike the paper's ReLU, gives r E[silu(a)
    silu(b)] / E[silu(a)^2], since its value is a second factor of correlation r.
    """
    out, r = [], TOKENS
    for _ in range(depth):
        out.append(r)
        r = (1 - beta2) * r + beta2
        square, product = silu_moments(r)
        r = (1 - beta2) * r + beta2 * r * product / square
    return out


@register("deepscalelm", paper="arXiv:2403.09635")
class DeepScaleLM(PreNorm):
    """l X + b F(N X), l^2 + b^2 = 1, b^2 = 1/N, N blocks. Stds of weights: V, O (sqrt r D)^-1/2, FFN in D^-1/2, out so that F has variance
    one.

    r: the correlation of two tokens at that block (`correlations`). Q and K are normalised here, so their scale means
    nothing. At b^2 = 0 the trunk stays as it is.
    """

    zero_writers = "its point is a branch of variance one at the start"

    def __init__(self, site, beta2: float = 0.0):  # 0 = 1 / N, as in the paper
        super().__init__(site)
        beta2 = beta2 or 1 / site.depth
        self.inputs = site.inner
        self.register_buffer("trunk", torch.tensor(1 - beta2).sqrt())
        self.register_buffer("branch_scale", torch.tensor(beta2).sqrt())
        r = correlations(site.depth, beta2)[site.block]
        self.register_buffer("std_vo", torch.tensor((r**0.5 * site.width) ** -0.5))

    def merge(self, x_BTD, f_BTD, ctx):
        return self.trunk * x_BTD + self.branch_scale * f_BTD

    @torch.no_grad()
    def init_weights(self, site, weights):
        width = weights["o" if site == "attn" else "w2"].shape[0]
        square = silu_moments(0.0)[0]
        stds = {"v": self.std_vo, "o": self.std_vo, "w1": width**-0.5, "w3": width**-0.5, "w2": (self.inputs * square) ** -0.5}
        for name in stds.keys() & weights.keys():
            weights[name].mul_(stds[name] / weights[name].square().mean().sqrt())
