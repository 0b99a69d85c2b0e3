"""A fixed gain: the null model that every learned gain, and every split of the branch, must beat.

The gains that others learn or derive start between 1e-6 (CaiT) and 1 (plain); here nothing is learned and nothing
split, so that what the size of the branch does by itself can be seen.
"""

import torch

from suite.registry import register
from suite.residual import Residual


@register("gain")
class Gain(Residual):
    """Z = X + g F, g one fixed number for all blocks, then RMSNorm; g = 1 is plain."""

    def __init__(self, site, g: float = 0.1):  # DeepNorm's branch at 100 blocks is .27 of its trunk, LayerScale's starts at .01
        super().__init__(site)
        self.register_buffer("g", torch.tensor(g))

    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD + self.g * f_BTD
