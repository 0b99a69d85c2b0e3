"""Small schemes of every kind that the contract must carry, each as its author would write it: one class, nothing else to edit.

They stand in for hyper-connections, attention residuals, nanochat's lambdas, AdaLN (own and shared modulation), SubLN, CompleteP,
DeepScaleLM and Keel; constants are chosen so that a few steps show the mechanism, not for training.
Shapes: B batch, T tokens, D width, S streams or slots, K tokens of a scheme's own.
"""

import math

import torch
from torch import nn

from baselines.prenorm import PreNorm
from baselines.subln import SubLN
from suite import registry
from suite.data.dataset import NAMED
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.residual import WEIGHTS, Factors, Residual, rms_norm
from suite.sweep.tryout import try_out

STREAMS = 2


class Streams(Residual):
    """Hyper-connections with static weights: h = sum_j pre_j X_j, X' = A X + post F(N h). At the start pre-norm in every stream."""

    def __init__(self, site):
        super().__init__(site)
        self.gate_pre = nn.Parameter(torch.eye(STREAMS)[site.block % STREAMS])
        self.gate_post = nn.Parameter(torch.ones(STREAMS))
        self.gate_mix = nn.Parameter(torch.eye(STREAMS))

    def open(self, x_BTD, ctx):
        return x_BTD.unsqueeze(2).expand(-1, -1, STREAMS, -1)

    def forward(self, x_BTSD, branch, ctx):
        f_BTD = branch(rms_norm(torch.einsum("btsd,s->btd", x_BTSD, self.gate_pre)))
        return torch.einsum("btsd,rs->btrd", x_BTSD, self.gate_mix) + torch.einsum("btd,s->btsd", f_BTD, self.gate_post)

    def fold(self, x_BTSD):
        return rms_norm(x_BTSD.mean(2))

    def gates(self):
        mixed = self.gate_mix - torch.eye(STREAMS, device=self.gate_mix.device)
        return super().gates() | {"off_identity": mixed}


class Outputs(Residual):
    """Attention residuals: what a branch reads is softmax(w . N(v_i)) v_i over all earlier outputs v, kept in slots."""

    def __init__(self, site):
        super().__init__(site)
        place = 1 + 2 * site.block + (site.site == "ffn")  # slot 0 holds the tokens
        slots = torch.arange(1 + 2 * site.depth)
        self.register_buffer("here_S1", (slots == place).float()[:, None])
        self.register_buffer("unseen_S1", torch.where(slots < place, 0.0, -math.inf)[:, None])
        self.gate_query = nn.Parameter(torch.zeros(site.width))
        self.gate_last = nn.Parameter(torch.zeros(site.width))  # of the last instance alone, for `fold`
        self.slots = 1 + 2 * site.depth

    def open(self, x_BTD, ctx):
        return torch.cat([x_BTD.unsqueeze(2), x_BTD.new_zeros(*x_BTD.shape[:2], self.slots - 1, x_BTD.shape[2])], 2)

    def read(self, v_BTSD, query_D, unseen_S1):
        scores_BTS1 = (rms_norm(v_BTSD) * query_D).sum(-1, keepdim=True) + unseen_S1
        return (torch.softmax(scores_BTS1, 2) * v_BTSD).sum(2)

    def forward(self, v_BTSD, branch, ctx):
        f_BTD = branch(rms_norm(self.read(v_BTSD, self.gate_query, self.unseen_S1)))
        return v_BTSD + self.here_S1 * f_BTD.unsqueeze(2)

    def fold(self, v_BTSD):
        return rms_norm(self.read(v_BTSD, self.gate_last, 0 * self.here_S1))


class Lambdas(Residual):
    """nanochat: X' = l X + m X0 + F(N X); l learns a hundredth as fast."""

    def __init__(self, site):
        super().__init__(site)
        self.gate_resid = nn.Parameter(torch.tensor(1.1))  # a number has no axis
        self.gate_x0 = nn.Parameter(torch.full((1,), 0.1))

    def open(self, x_BTD, ctx):
        return torch.stack([x_BTD, x_BTD], 2)

    def forward(self, x_BTSD, branch, ctx):
        x_BTD, x0_BTD = x_BTSD.unbind(2)
        return torch.stack([self.gate_resid * x_BTD + self.gate_x0 * x0_BTD + branch(rms_norm(x_BTD)), x0_BTD], 2)

    def fold(self, x_BTSD):
        return rms_norm(x_BTSD[:, :, 0])

    def factors(self, site):
        return {"gate_resid": Factors(rate=0.01)}


def time_features(t_B, width):
    """(B, width) cosines of t at rates from 1 to 100."""
    return torch.cos(t_B[:, None] * torch.logspace(0, 2, width, device=t_B.device))


class AdaLN(Residual):
    """X + g(t) F((1 + s(t)) N X + b(t)); g, s, b by a zero linear map of t of each merge's own."""

    zero_writers = "a zero gate times a zero writer has zero gradient on both sides for ever"

    def __init__(self, site):
        super().__init__(site)
        self.width = site.width
        self.gate_modulation = nn.Parameter(torch.zeros(3 * site.width, site.width))

    def forward(self, x_BTD, branch, ctx):
        m_B1D = (time_features(ctx.t_B, self.width) @ self.gate_modulation.T).unsqueeze(1)
        gate, scale, shift = m_B1D.chunk(3, -1)
        return x_BTD + gate * branch((1 + scale) * rms_norm(x_BTD) + shift)

    def fold(self, x_BTD):
        return rms_norm(x_BTD)


class SharedAdaLN(Residual):
    """The same with one map for all blocks (PixArt's adaLN-single), in `open`: it travels as six tokens; each block adds its own."""

    zero_writers = AdaLN.zero_writers

    def __init__(self, site):
        super().__init__(site)
        self.first = 0 if site.site == "attn" else 3
        self.gate_own = nn.Parameter(torch.zeros(3, site.width))
        if site.block == 0 and site.site == "attn":
            self.gate_shared = nn.Parameter(torch.zeros(6 * site.width, site.width))

    def open(self, x_BTD, ctx):
        m_BKD = (time_features(ctx.t_B, x_BTD.shape[-1]) @ self.gate_shared.T).unflatten(-1, (6, -1))
        return torch.cat([x_BTD, m_BKD], 1)

    def forward(self, x, branch, ctx):
        x_BTD, m_BKD = x[:, :-6], x[:, -6:]
        gate, scale, shift = (m_BKD[:, self.first : self.first + 3] + self.gate_own).unsqueeze(2).unbind(1)
        return torch.cat([x_BTD + gate * branch((1 + scale) * rms_norm(x_BTD) + shift), m_BKD], 1)

    def fold(self, x):
        return rms_norm(x[:, :-6])


class CompleteP(PreNorm):
    """X + m^-a F(N X), m = depth / 2: rate m^(a-1) and epsilon m^-a on every branch weight."""

    def __init__(self, site, a: float = 0.5):
        super().__init__(site)
        self.m, self.a = site.depth / 2, a
        self.register_buffer("scale", torch.tensor(self.m**-a))

    def forward(self, x_BTD, branch, ctx):
        return x_BTD + self.scale * branch(rms_norm(x_BTD))

    def factors(self, site):
        return dict.fromkeys(WEIGHTS[site], Factors(self.m ** (self.a - 1), self.m**-self.a))


class Values(Residual):
    """DeepScaleLM in short: l X + b F with l^2 + b^2 = 1; V and O have an init of their own, some weights a rate or an epsilon."""

    def __init__(self, site):
        super().__init__(site)
        self.register_buffer("b", torch.tensor(0.3))
        self.rate = 0.25
        self.gate_scale = nn.Parameter(torch.ones(site.width))

    def merge(self, x_BTD, f_BTD, ctx):
        return (1 - self.b**2).sqrt() * x_BTD + self.b * self.gate_scale * f_BTD

    @torch.no_grad()
    def init_weights(self, site, weights):
        for name in {"v", "o"} & weights.keys():
            weights[name].mul_(0.5)

    def factors(self, site):
        weights = {"v": Factors(self.rate), "o": Factors(self.rate, 3.0)} if site == "attn" else {"w3": Factors(eps=2.0)}
        return weights | {"gate_scale": Factors(2.0)}


class Keel(Residual):
    """LN(a X + F(LN X)), a = 2 depth; the first attention is plain pre-norm, the first FFN has a = 1."""

    def __init__(self, site):
        super().__init__(site)
        self.norm_in = nn.LayerNorm(site.width)
        self.first = site.block == 0 and site.site == "attn"
        if not self.first:
            self.norm_out = nn.LayerNorm(site.width)
        self.register_buffer("a", torch.tensor(1.0 if site.block == 0 else 2.0 * site.depth))

    def forward(self, x_BTD, branch, ctx):
        f_BTD = branch(self.norm_in(x_BTD))
        return x_BTD + f_BTD if self.first else self.norm_out(self.a * x_BTD + f_BTD)


TOYS = {"prenorm": PreNorm, "streams": Streams, "outputs": Outputs, "lambdas": Lambdas, "adaln": AdaLN, "adaln_shared": SharedAdaLN,
        "subln": SubLN, "completep": CompleteP, "values": Values, "keel": Keel}  # fmt: skip


def enter() -> None:
    """Register them all, under names that no file of baselines/ is likely to take."""
    for name, cls in TOYS.items():
        registry.register(f"toy_{name}")(cls)


def runs(name: str, *, depth: int, lr: float, seeds: tuple[int, ...] = (0,)) -> list[Run]:
    """Runs of a toy under `smoke`, after the look that a plan takes at it; a plan itself knows the schemes of files alone."""
    entry = registry.get(f"toy_{name}")
    params = registry.format_params(entry, {})
    try_out(entry.name, entry.arm, params, depth, 1.0)
    made_of = "digits", NAMED["digits"], entry.code_digest({})
    return [Run(PROTOCOLS["smoke"], entry.name, entry.arm, params, "std", depth, lr, seed, *made_of, compiled=False) for seed in seeds]
