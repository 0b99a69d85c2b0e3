"""MV-Split taken apart: each of its parts can be fixed, left out, or put differently (ablations of arXiv:2605.06169, Eq. 43-45)."""

import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual, token_mean

CHOICES = {
    "learn": ("both", "alpha", "beta", "none"),
    "mean": ("leaky", "branch", "leak", "none"),
    "trunk": ("whole", "centered"),
    "over": ("segment", "all"),
}


@register("split", paper="arXiv:2605.06169")
class Split(Residual):
    """Z = T + beta * P F + alpha * M, then RMSNorm; as it stands it is MV-Split.

    learn: which of alpha and beta, each in R^D, are learned; the others stay as they start. mean: what M is; "leaky":
    J (F - X), as MV-Split; "branch": J F, without the leak; "leak": -J X, and beta then scales the whole of F, so that
    the leak is all that is left of the scheme; "none": nothing. trunk: T is X, or P X ("hard centering", App. F).
    over: J is the mean of each segment, or of all tokens.
    """

    def __init__(self, site, alpha: float = 0.0, beta: float = 1.0, learn: str = "both", mean: str = "leaky", trunk: str = "whole",
                 over: str = "segment"):  # fmt: skip
        super().__init__(site)
        for name, value in (("learn", learn), ("mean", mean), ("trunk", trunk), ("over", over)):
            if value not in CHOICES[name]:
                raise ValueError(f"split: {name}={value!r} is not one of {', '.join(CHOICES[name])}")
        self.mean, self.centers, self.over_all = mean, trunk == "centered", over == "all"
        self._gate("gate_beta", beta, site.width, learn in ("both", "beta"))
        if mean != "none":
            self._gate("gate_alpha", alpha, site.width, learn in ("both", "alpha"))

    def _gate(self, name: str, start: float, width: int, learned: bool) -> None:
        value = torch.full((width,), start)
        if learned:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def merge(self, x_BTD, f_BTD, ctx):
        segments = (sum(ctx.segments),) if self.over_all else ctx.segments
        mean_f_BTD, mean_x_BTD = token_mean(f_BTD, segments), token_mean(x_BTD, segments)
        trunk_BTD = x_BTD - mean_x_BTD if self.centers else x_BTD
        if self.mean == "leak":
            return trunk_BTD + self.gate_beta * f_BTD - self.gate_alpha * mean_x_BTD
        z_BTD = trunk_BTD + self.gate_beta * (f_BTD - mean_f_BTD)
        if self.mean == "none":
            return z_BTD
        return z_BTD + self.gate_alpha * (mean_f_BTD - mean_x_BTD if self.mean == "leaky" else mean_f_BTD)
