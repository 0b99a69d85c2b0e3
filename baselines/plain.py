"""Plain post-norm residual (Vaswani et al. 2017, arXiv:1706.03762; the baseline of arXiv:2605.06169)."""

from suite.registry import register
from suite.residual import Residual


@register("plain", paper="arXiv:1706.03762")
class Plain(Residual):
    """Z = X + F, then RMSNorm."""

    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD + f_BTD
