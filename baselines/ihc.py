"""Hyper-connections with identity mixing: several trunks, of which each branch reads a sum and to which it adds its output
(iHC, arXiv:2607.28611; gates as in its public implementations: sigmoids of a linear map of the normalised trunks)."""

import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual, rms_norm

FLOOR = 1e-6  # below which no gate falls, as in the public implementations


@register("ihc", paper="arXiv:2607.28611")
class IdentityHyperConnections(Residual):
    """y = sum_j pre_j X_j; X'_j = X_j + post_j F(N y); pre = sigmoid(.) and post = 2 sigmoid(.) of alpha W N(X) + b, for every token.

    Every stream starts as the tokens, and their mean is the output, behind one more N. At alpha = b = 0 all streams
    stay equal and it is pre-norm.
    """

    def __init__(self, site, streams: int = 4, alpha: float = 0.01):  # n and alpha of the public implementations
        super().__init__(site)
        self.streams = streams
        draw = torch.Generator().manual_seed(2 * site.block + (site.site == "ffn"))  # the same of every run: it only makes streams differ
        self.gate_map = nn.Parameter(torch.empty(2 * streams, streams * site.width).normal_(std=0.02, generator=draw))
        self.gate_alpha = nn.Parameter(torch.full((2, 1), alpha))
        self.gate_bias = nn.Parameter(torch.zeros(2, streams))

    def open(self, x_BTD, ctx):
        return x_BTD.unsqueeze(2).expand(-1, -1, self.streams, -1)

    def forward(self, x_BTSD, branch, ctx):
        flat_BTd = rms_norm(x_BTSD.flatten(2))
        logits_BT2S = (flat_BTd @ self.gate_map.T).unflatten(-1, (2, self.streams))
        pre_BTS, post_BTS = (torch.sigmoid(self.gate_alpha * logits_BT2S + self.gate_bias)).unbind(2)
        f_BTD = branch(rms_norm(((pre_BTS + FLOOR).unsqueeze(-1) * x_BTSD).sum(2)))
        return self.carried(x_BTSD, flat_BTd) + (2 * post_BTS + FLOOR).unsqueeze(-1) * f_BTD.unsqueeze(2)

    def carried(self, x_BTSD, flat_BTd):
        """What of the streams goes on, (B, T, S, D). flat_BTd: the normalised streams of a token side by side."""
        return x_BTSD

    def fold(self, x_BTSD):
        return rms_norm(x_BTSD.mean(2))
