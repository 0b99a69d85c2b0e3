"""Attention over what earlier parts of the network have added (block attention residuals, arXiv:2603.15031)."""

import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual, rms_norm


def attended(x_BTSD, query_D, unread_S=0.0):
    """N of the sum of the slots that a query makes, (B, T, D). unread_S: -inf where a slot has nothing yet, else 0."""
    a_BTS = torch.softmax((rms_norm(x_BTSD) * query_D).sum(-1) + unread_S, -1)
    return rms_norm((a_BTS.unsqueeze(-1) * x_BTSD).sum(2))


@register("attn_residuals", paper="arXiv:2603.15031")
class AttentionResiduals(Residual):
    """h = sum_i softmax_i(w . N(v_i)) v_i, then v_now += F(N h). v_0: the tokens; v_1 to v_parts: sums of a run of branches each.

    A part is read from its first branch on. Behind the last block such a sum, with a query of its own, and N. At
    w = 0, where it starts, it is pre-norm.
    """

    zero_writers = "all v_i but the tokens would be zero, and rounding errors the gradients of w"

    def __init__(self, site, parts: int = 8):  # "about eight" in the paper
        super().__init__(site)
        branch, branches = 2 * site.block + (site.site == "ffn"), 2 * site.depth
        parts = min(parts, branches)
        self.slots = parts + 1
        self.gate_query = nn.Parameter(torch.zeros(site.width))
        now = 1 + branch * parts // branches
        begun = 1 + (branch - 1) * parts // branches if branch else 0
        at_S = torch.arange(self.slots)
        self.register_buffer("unread_S", torch.zeros(self.slots).masked_fill(at_S > begun, -torch.inf))
        self.register_buffer("now_S1", (at_S == now).float().unsqueeze(-1))
        if branch == branches - 1:
            self.gate_last = nn.Parameter(torch.zeros(site.width))

    def open(self, x_BTD, ctx):
        later_BTSD = x_BTD.new_zeros(()).expand(*x_BTD.shape[:2], self.slots - 1, x_BTD.shape[2])
        return torch.cat([x_BTD.unsqueeze(2), later_BTSD], 2)

    def forward(self, x_BTSD, branch, ctx):
        f_BTD = branch(attended(x_BTSD, self.gate_query, self.unread_S))
        return x_BTSD + self.now_S1 * f_BTD.unsqueeze(2)

    def fold(self, x_BTSD):
        return attended(x_BTSD, self.gate_last)
