"""ReZero from a small start instead of zero, so that its writers may start at zero as those of other schemes do."""

import torch

from baselines.rezero import ReZero
from suite.registry import register


@register("rezero_start", paper="arXiv:2003.04887")
class ReZeroStart(ReZero):
    """Z = X + a F, one scalar a per block, `start` at the start, then RMSNorm."""

    zero_writers = ""

    def __init__(self, site, start: float = 0.01):  # LayerScale's start in results/frontier
        super().__init__(site)
        with torch.no_grad():
            self.gate_alpha.fill_(start)
