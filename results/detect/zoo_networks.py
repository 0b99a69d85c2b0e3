"""Small networks that learn, of the kinds that people train: text, pictures, sets, with and without a target; for `zoo.py`.

Shapes: B samples, T tokens, D width, V symbols.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

Draw = Callable[[], tuple]  # a batch: what the network is called with
Made = tuple[nn.Module, Draw, Callable]  # the network, its batches, and the loss of (what it returned, *batch)

WIDTH, HEADS, BATCH, LENGTH = 32, 4, 16, 32


@cache
def text() -> tuple[Tensor, int]:
    """(characters as numbers, how many kinds): Python's own help pages, which every installation has."""
    words = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))[:300_000]
    kinds = sorted(set(words))
    where = {kind: i for i, kind in enumerate(kinds)}
    return torch.tensor([where[c] for c in words]), len(kinds)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """(N, 16, 4) pictures as patches of 2 x 2, standardised, and their classes."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unflatten(1, (4, 2)).unflatten(3, (4, 2)).transpose(2, 3).flatten(3).flatten(1, 2)
    return (x - x.mean()) / x.std(), torch.tensor(data.target)


class Conv1D(nn.Module):
    """As transformers has it: a linear layer whose weight is (in, out)."""

    def __init__(self, nx: int, nf: int) -> None:
        super().__init__()
        self.nf, self.weight, self.bias = nf, nn.Parameter(0.02 * torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class SwiGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.w3, self.w2 = (nn.Linear(i, o, bias=False) for i, o in ((width, 2 * width), (width, 2 * width), (2 * width, width)))

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class MLP(nn.Module):
    def __init__(self, width: int, linear: Callable = nn.Linear) -> None:
        super().__init__()
        self.c_fc, self.c_proj = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Experts(nn.Module):
    """Each token to the one of four that a router prefers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(width, 4), nn.ModuleList(MLP(width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        return sum((chosen == i)[..., None] * weight[..., None] * expert(x) for i, expert in enumerate(self.experts))


class Block(nn.Module):
    """Attention and MLP. norm: "pre", "post" or "none", the last with a learned gain from 0 on (ReZero)."""

    def __init__(self, width: int, causal: bool, norm: str, mlp: Callable = MLP, linear: Callable = nn.Linear, rms: bool = False) -> None:
        super().__init__()
        self.causal, self.norm = causal, norm
        self.c_attn, self.c_proj, self.mlp = linear(width, 3 * width), linear(width, width), mlp(width)
        self.ln_1, self.ln_2 = ((nn.RMSNorm if rms else nn.LayerNorm)(width) for _ in range(2))
        self.gain = nn.Parameter(torch.zeros(()))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        for ln, branch in ((self.ln_1, self.attention), (self.ln_2, self.mlp)):
            if self.norm == "pre":
                x = x + branch(ln(x))
            elif self.norm == "post":
                x = ln(x + branch(x))
            else:
                x = x + self.gain * branch(x)
        return x


class Characters(nn.Module):
    """(B, T) characters -> (B, T, V) logits."""

    def __init__(self, depth: int = 3, causal: bool = True, norm: str = "pre", tied: bool = False, std: float = 0.02,
                 positions: bool = True, **kwargs) -> None:  # fmt: skip
        super().__init__()
        kinds = text()[1] + 1  # one more for the mask
        self.wte, self.wpe = nn.Embedding(kinds, WIDTH), nn.Embedding(LENGTH, WIDTH)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=std)
        self.positions = positions
        self.h = nn.ModuleList(Block(WIDTH, causal, norm, **kwargs) for _ in range(depth))
        self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, kinds, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor, *_: Tensor) -> Tensor:
        x = self.wte(tokens) + (self.wpe.weight if self.positions else 0)
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


def characters(masked: bool = False, **kwargs) -> Made:
    ids, kinds = text()

    def draw() -> tuple[Tensor, Tensor]:
        rows = ids[torch.randint(0, len(ids) - LENGTH - 1, (BATCH, 1)) + torch.arange(LENGTH + 1)]
        if not masked:
            return rows[:, :-1], rows[:, 1:]
        hidden = torch.rand(BATCH, LENGTH) < 0.15
        return rows[:, :-1].masked_fill(hidden, kinds), rows[:, :-1].masked_fill(~hidden, -100)

    def loss(out: Tensor, tokens: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(out.flatten(0, 1), target.flatten())

    return Characters(causal=not masked, **kwargs), draw, loss


class Pictures(nn.Module):
    """(B, 16, E) patches -> (B, 16, D), or the class token's (B, D), or the mean's, or tokens of E values."""

    def __init__(self, out: str, read: int = 4, norm: str = "pre", depth: int = 3, mixer: bool = False) -> None:
        super().__init__()
        self.out, self.embed = out, nn.Linear(read, WIDTH)
        self.wpe = nn.Parameter(0.02 * torch.randn(17 if out == "class" else 16, WIDTH))
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.blocks = nn.ModuleList(Mixer(16, WIDTH) if mixer else Block(WIDTH, False, norm) for _ in range(depth))
        self.ln, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 if out == "tokens" else 10)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        x = self.embed(x)
        x = (torch.cat([self.first.expand(len(x), 1, -1), x], 1) if self.out == "class" else x) + self.wpe
        for block in self.blocks:
            x = block(x)
        x = self.ln(x)
        return self.head(x if self.out == "tokens" else x[:, 0] if self.out == "class" else x.mean(1))


class Mixer(nn.Module):
    """MLP-Mixer's block: one MLP over tokens, one over channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.over, self.mlp = nn.LayerNorm(width), nn.LayerNorm(width), MLP(tokens), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over(self.ln_1(x).mT).mT
        return x + self.mlp(self.ln_2(x))


def classes(**kwargs) -> Made:
    x, y = digits()

    def draw() -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, len(x), (2 * BATCH,))
        return x[rows], y[rows]

    return Pictures(**kwargs), draw, lambda out, _, target: F.cross_entropy(out, target)


def hidden_patches(**kwargs) -> Made:
    """Masked autoencoder: three patches in four are hidden, and the loss is on these."""
    x, _ = digits()

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        rows = x[torch.randint(0, len(x), (2 * BATCH,))]
        hidden = torch.rand(rows.shape[:2] + (1,)) < 0.75
        return torch.cat([rows.masked_fill(hidden, 0), hidden.float()], -1), rows, hidden

    def loss(out: Tensor, _: Tensor, rows: Tensor, hidden: Tensor) -> Tensor:
        return ((out - rows).square() * hidden).sum() / hidden.sum() / 4

    return Pictures("tokens", read=5, **kwargs), draw, loss


def velocity(**kwargs) -> Made:
    """Flow matching: from a noisy picture and its time to x0 - x1."""
    x, _ = digits()

    def draw() -> tuple[Tensor, Tensor]:
        rows = x[torch.randint(0, len(x), (2 * BATCH,))]
        t, noise = torch.rand(len(rows), 1, 1), torch.randn_like(rows)
        return torch.cat([(1 - t) * rows + t * noise, t.expand(-1, 16, 1)], -1), rows - noise

    return Pictures("tokens", read=5, **kwargs), draw, lambda out, _, target: (out - target).square().mean()


class BYOL(nn.Module):
    """Two views of a picture; one predicts what a slow copy of the network makes of the other. Returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = Pictures("mean"), Pictures("mean")
        self.predictor = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
            aim = self.target(other)
        return 1 - F.cosine_similarity(self.predictor(self.online(one)), aim, dim=-1).mean()


def two_views() -> Made:
    x, _ = digits()

    def draw() -> tuple[Tensor, Tensor]:
        rows = x[torch.randint(0, len(x), (2 * BATCH,))]
        return rows + 0.3 * torch.randn_like(rows), rows + 0.3 * torch.randn_like(rows)

    return BYOL(), draw, lambda out, *_: out


class Reverse(nn.Module):
    """torch's own encoder and decoder: says a row of symbols backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.wpe = nn.Embedding(11, WIDTH), nn.Parameter(0.1 * torch.randn(12, WIDTH))
        self.net = nn.Transformer(WIDTH, HEADS, 2, 2, 2 * WIDTH, dropout=0.1, batch_first=True)
        self.head = nn.Linear(WIDTH, 11)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(12))

    def forward(self, row: Tensor, said: Tensor, *_: Tensor) -> Tensor:
        return self.head(self.net(self.embed(row) + self.wpe, self.embed(said) + self.wpe, tgt_mask=self.mask, tgt_is_causal=True))


def reverse() -> Made:
    def draw() -> tuple[Tensor, Tensor, Tensor]:
        row = torch.randint(1, 11, (BATCH, 12))
        back = row.flip(1)
        return row, F.pad(back[:, :-1], (1, 0)), back

    return Reverse(), draw, lambda out, row, said, back: F.cross_entropy(out.flatten(0, 1), back.flatten())


class Points(nn.Module):
    """A set of points -> how far apart the two farthest are: no positions, tokens that start alike."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.embed, self.head = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 1)
        self.net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(self.embed(x)).mean(1)).squeeze(-1)


def points() -> Made:
    def draw() -> tuple[Tensor]:
        return (torch.randn(2 * BATCH, 12, 2),)

    return Points(), draw, lambda out, x: (out - torch.cdist(x, x).flatten(1).max(1).values).square().mean()


@torch.no_grad()
def small(make: Callable[..., Made], gain: float = 0.02, **kwargs) -> Made:
    """Linear weights drawn from N(0, gain^2), GPT-2's init."""
    made = make(**kwargs)
    for module in made[0].modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0, gain)
    return made


def _gpt2(width: int) -> MLP:
    return MLP(width, Conv1D)


ZOO: dict[str, tuple[Callable[[], Made], float]] = {  # name -> (what makes it, learning rate)
    "characters": (partial(small, characters), 3e-3),
    "characters, tied N(0, 1) embeddings": (partial(characters, tied=True, std=1.0), 3e-3),
    "characters, tied N(0, 1) embeddings, high rate": (partial(characters, tied=True, std=1.0), 1e-2),
    "characters, N(0, 1) embeddings, Post-Norm": (partial(characters, norm="post", std=1.0), 1e-3),
    "characters, Conv1D": (partial(characters, mlp=_gpt2, linear=Conv1D), 3e-3),
    "characters, RMSNorm and SwiGLU": (partial(characters, mlp=SwiGLU, rms=True, positions=False), 3e-3),
    "characters, experts": (partial(characters, mlp=Experts, depth=2), 3e-3),
    "characters, ReZero": (partial(characters, norm="none", std=1.0), 3e-3),
    "characters, 12 blocks": (partial(small, characters, depth=12, tied=True), 1e-3),
    "masked characters": (partial(characters, masked=True), 3e-3),
    "classes, class token": (partial(classes, out="class"), 1e-3),
    "classes, mean of tokens": (partial(classes, out="mean"), 1e-3),
    "classes, MLP-Mixer": (partial(classes, out="mean", mixer=True), 1e-3),
    "hidden patches": (hidden_patches, 1e-3),
    "velocity, Post-Norm": (partial(velocity, norm="post"), 1e-3),
    "two views (BYOL)": (two_views, 1e-3),
    "rows said backwards": (reverse, 1e-3),
    "points of a set": (points, 1e-3),
}
