"""Hyper-connections whose streams mix by a doubly stochastic matrix (mHC, arXiv:2512.24880; biases, which it does not
give, as in lucidrains/hyper-connections)."""

import torch
from torch import nn

from baselines.ihc import IdentityHyperConnections
from suite.registry import register

ROUNDS = 20  # of Sinkhorn's normalisation, as in the paper


def doubly_stochastic(logits_SS: torch.Tensor) -> torch.Tensor:
    """Sinkhorn's limit of exp(logits), (..., S, S): columns, then rows are divided by their sums, so that rows sum to one exactly."""
    mix_SS = (logits_SS - logits_SS.amax((-2, -1), keepdim=True)).exp()
    for _ in range(ROUNDS):
        mix_SS = mix_SS / mix_SS.sum(-2, keepdim=True)
        mix_SS = mix_SS / mix_SS.sum(-1, keepdim=True)
    return mix_SS


@register("mhc", paper="arXiv:2512.24880")
class ManifoldHyperConnections(IdentityHyperConnections):
    """y = sum_j pre_j X_j; X' = H X + post F(N y), H = Sinkhorn(exp(alpha W N(X) + b)), for every token; pre and post as in iHC.

    b is `diagonal` times the identity: at 1 it keeps .48 of a stream in its place, so that all are their mean again a
    few branches later; as it grows H becomes the identity, and this iHC. Branch k reads more of stream k modulo n,
    which tells the streams apart at the start. The first branch mixes nothing, for its streams are equal, nor does
    the last, for their mean is the output and stays.
    """

    zero_writers = "all streams would be equal, and rounding errors the gradients of what mixes them"

    def __init__(self, site, streams: int = 4, alpha: float = 0.01, diagonal: float = 1.0):
        super().__init__(site, streams, alpha)
        branch = 2 * site.block + (site.site == "ffn")
        self.gate_bias.data[0, branch % streams] = 1.0
        self.mixes = 0 < branch < 2 * site.depth - 1
        if self.mixes:
            draw = torch.Generator().manual_seed(branch + 1_000_000)  # not the numbers of gate_map
            self.gate_mix_map = nn.Parameter(torch.empty(streams**2, streams * site.width).normal_(std=0.02, generator=draw))
            self.gate_mix_alpha = nn.Parameter(torch.full((1,), alpha))
            self.gate_mix_bias = nn.Parameter(diagonal * torch.eye(streams))

    def carried(self, x_BTSD, flat_BTd):
        if not self.mixes:
            return x_BTSD
        logits_BTSS = (flat_BTd @ self.gate_mix_map.T).unflatten(-1, self.gate_mix_bias.shape)
        return doubly_stochastic(self.gate_mix_alpha * logits_BTSS + self.gate_mix_bias) @ x_BTSD
