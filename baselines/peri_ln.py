"""Peri-LN: a norm before and behind each branch, and one on the embedding (Kim et al. 2025, arXiv:2502.02732)."""

from baselines.prenorm import PreNorm
from suite.registry import register
from suite.residual import rms_norm


@register("peri_ln", paper="arXiv:2502.02732")
class PeriLN(PreNorm):
    """X + N(F(N X)), on a trunk that starts as N of the embedding. The paper's norms are affine, these are the backbone's."""

    zero_writers = "the norm behind a branch of zeros multiplies its gradient by a thousand"

    def open(self, x_BTD, ctx):
        return rms_norm(x_BTD)

    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD + rms_norm(f_BTD)
