"""A straightforward eager implementation, the yardstick of every speed ratio: formulas as in the paper, library defaults.

One nn.Linear a projection, scaled_dot_product_attention, RMSNorm written as in its definition, per-tensor default AdamW and
`clip_grad_norm_`. Nothing here is meant to be fast, or slow: it is what one would write first.
Shapes: B batch, T tokens, D width, N heads, K head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.model.backbone import rope_2d

EPS = 1e-6


def norm(x: Tensor) -> Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


class Merge(nn.Module):
    """The five schemes' formulas, by name."""

    def __init__(self, scheme: str, width: int, depth: int) -> None:
        super().__init__()
        self.scheme, self.scale = scheme, (2 * depth) ** 0.25
        if scheme in ("layerscale", "mvsplit"):
            self.beta = nn.Parameter(torch.ones(width))
        if scheme == "mvsplit":
            self.alpha = nn.Parameter(torch.zeros(width))
        if scheme == "rezero":
            self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, f: Tensor, image: int) -> Tensor:
        if self.scheme == "plain":
            return norm(x + f)
        if self.scheme == "layerscale":
            return norm(x + self.beta * f)
        if self.scheme == "rezero":
            return norm(x + self.alpha * f)
        if self.scheme == "deepnorm":
            return norm(self.scale * x + f)
        out = []
        for part in (slice(None, image), slice(image, None)):
            xs, fs = x[:, part], f[:, part]
            mean_x, mean_f = xs.mean(1, keepdim=True), fs.mean(1, keepdim=True)
            out.append(xs + self.beta * (fs - mean_f) + self.alpha * (mean_f - mean_x))
        return norm(torch.cat(out, 1))


class Block(nn.Module):
    def __init__(self, scheme: str, width: int, heads: int, ffn: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.w1, self.w3 = (nn.Linear(width, ffn, bias=False) for _ in range(2))
        self.w2 = nn.Linear(ffn, width, bias=False)
        self.attn_merge, self.ffn_merge = Merge(scheme, width, depth), Merge(scheme, width, depth)

    def heads_of(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def turn(self, x: Tensor, rope: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * rope[0] - b * rope[1], b * rope[0] + a * rope[1]], -1)

    def forward(self, x: Tensor, rope: Tensor, image: int) -> Tensor:
        q, k, v = self.heads_of(self.q(x)), self.heads_of(self.k(x)), self.heads_of(self.v(x))
        q, k = norm(self.turn(q, rope)), norm(self.turn(k, rope))
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.attn_merge(x, self.o(a), image)
        return self.ffn_merge(x, self.w2(F.silu(self.w1(x)) * self.w3(x)), image)


class Reference(nn.Module):
    """Tokens in, velocity tokens out, with its optimiser: `step` is one whole training step."""

    def __init__(self, scheme: str, depth: int, width: int = 32, heads: int = 2, ffn: int = 96, grid: int = 4, captions: int = 4,
                 token: int = 4) -> None:  # fmt: skip
        super().__init__()
        self.embed, self.final = nn.Linear(token, width), nn.Linear(width, token)
        self.blocks = nn.ModuleList(Block(scheme, width, heads, ffn, depth) for _ in range(depth))
        self.image = grid * grid
        self.register_buffer("rope", rope_2d(grid, self.image + captions, width // heads))
        wide = [p for p in self.parameters() if p.ndim >= 2]
        rest = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": wide, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.999))

    def forward(self, patches_BTE: Tensor, caption_BSD: Tensor) -> Tensor:
        x = torch.cat([norm(self.embed(patches_BTE)), norm(caption_BSD)], 1)
        for block in self.blocks:
            x = block(x, self.rope, self.image)
        return self.final(x[:, : self.image])

    def step(self, patches_BTE: Tensor, caption_BSD: Tensor, target_BTE: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = F.mse_loss(self(patches_BTE, caption_BSD), target_BTE)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()
