"""ProRes: pre-norm whose branches are switched on one after another, from the first block to the last (arXiv:2603.05369)."""

import torch

from baselines.prenorm import PreNorm
from suite.registry import register

DEEP = 96  # blocks from which the paper halves T


@register("prores", paper="arXiv:2603.05369")
class ProRes(PreNorm):
    """X + min(t / (T l), 1) F(N X); t: the optimiser's step, l = 1 in the first block, the same for both of its branches.

    t_one: T, the steps in which the first block comes on; 0: the paper's, 1000, and 500 from 96 blocks on. It comes
    from runs of hundreds of thousands of steps: the last block is fully on at step T times the depth.
    """

    def __init__(self, site, t_one: float = 0.0):
        super().__init__(site)
        t_one = t_one or (500.0 if site.depth >= DEEP else 1000.0)
        self.register_buffer("until", torch.tensor(t_one * (site.block + 1)))

    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD + (ctx.step / self.until).clamp(max=1) * f_BTD
