"""Rectified flow: path, velocity target, batches as a pure function of (seed, step), Euler sampler with guidance.

Shapes: B batch, C channels, H, W pixels, S caption tokens, D width. Source: arXiv:2605.06169, Eq. 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from suite.rng import generator


class Batch(NamedTuple):
    """z_t and what it is made of: z_t = (1 - t) x0 + t x1, x1 ~ N(0, I); target v = x0 - x1 points from noise to data."""

    z_BCHW: Tensor
    target_BCHW: Tensor
    t_B: Tensor
    caption_B: Tensor  # row of the caption table; or (B, S, D) embeddings, where the data bring some


def make_batch(
    x0_BCHW: Tensor, caption_B: Tensor, empty: int | Tensor, drop: float, noise: torch.Generator, share: tuple[int, int] = (0, 1)
) -> Batch:
    """Draw noise, t ~ U(0, 1) and dropped captions from `noise`, in this order.

    caption_B, empty: as in `Batch`, and one of the same kind. share: (i, n) where the rows given are every n-th from
    the i-th of a batch n times as long, of which each process makes its own; they are what the whole would hold.
    """
    (first, every), rows = share, len(x0_BCHW) * share[1]
    x1_BCHW = torch.randn((rows, *x0_BCHW.shape[1:]), generator=noise)[first::every]
    t_B = torch.rand(rows, generator=noise)[first::every]
    dropped_B = (torch.rand(rows, generator=noise) < drop)[first::every]
    t_B111 = t_B[:, None, None, None]
    z_BCHW = (1 - t_B111) * x0_BCHW + t_B111 * x1_BCHW
    dropped = dropped_B.reshape(-1, *(1,) * (caption_B.ndim - 1))
    return Batch(z_BCHW, x0_BCHW - x1_BCHW, t_B, torch.where(dropped, empty, caption_B))


class Batches:
    """The training stream: shuffled passes over the data, each batch a pure function of (seed, step)."""

    def __init__(
        self, x0: Callable[[Tensor], Tensor], caption: Callable[[Tensor], Tensor], empty: int | Tensor, rows: Tensor,
        *, batch: int, drop: float, seed: int, share: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        """x0, caption: from row numbers of the data to images (B, C, H, W) and captions; rows: those to train on.

        share: (i, n): every n-th row of each batch from the i-th; nothing else is read.
        """
        self.x0, self.caption, self.empty, self.rows = x0, caption, empty, rows
        self.batch, self.drop, self.seed, self.share = batch, drop, seed, share
        self._pass: tuple[int, Tensor] | None = None  # the last permutation made, a cache

    def _permutation(self, epoch: int) -> Tensor:
        if self._pass is None or self._pass[0] != epoch:
            order = torch.randperm(len(self.rows), generator=generator(self.seed, "order", epoch))
            self._pass = (epoch, order)
        return self._pass[1]

    def __call__(self, step: int) -> Batch:
        """The batch of optimiser step `step`, counted from 1; this process's share of it."""
        start, n = (step - 1) * self.batch, len(self.rows)
        mine = range(start + self.share[0], start + self.batch, self.share[1])
        rows = self.rows[torch.stack([self._permutation(i // n)[i % n] for i in mine])]
        return make_batch(self.x0(rows), self.caption(rows), self.empty, self.drop, generator(self.seed, "noise", step), self.share)


class Sliced(Protocol):
    """Rows that come as a tensor when a slice of them is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> Tensor: ...


@torch.no_grad()
def sample(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    captions_BSD: Tensor | Sliced,
    empty_SD: Tensor,
    shape: tuple[int, int, int],
    *,
    nfe: int,
    guidance: float,
    noise: torch.Generator,
    chunk: int,
    runs: tuple[int, ...] = (),
    rows: tuple[Tensor, int] | None = None,
) -> Tensor:
    """Euler from t = 1 (noise) to 0 with classifier-free guidance: v = v_empty + w (v_caption - v_empty).

    captions_BSD: a tensor, or what gives one when it is sliced. velocity(z, captions, t) is called with 2 * chunk
    rows, guided and unguided halves in one forward, behind the axis of `runs`, if it is that of several. Returns
    (*runs, B, C, H, W). Noise is drawn for all samples at once, and is the same for every run, so results do not
    depend on `chunk`. rows: (numbers of the captions given among all, how many all are) where they are a part of
    them. Steps are uniform in t (no time shift).
    """
    mine, n = rows or (slice(None), len(captions_BSD))
    z_all = torch.randn(n, *shape, generator=noise)[mine].to(empty_SD.device)
    done = []
    for start in range(0, len(captions_BSD), chunk):
        z, cap = z_all[start : start + chunk], captions_BSD[start : start + chunk]
        rows = len(z)
        if rows < chunk:  # keep the shape, so that nothing recompiles
            z = torch.cat([z, z.new_zeros(chunk - rows, *shape)])
            cap = torch.cat([cap, cap.new_zeros(chunk - rows, *cap.shape[1:])])
        both = torch.cat([cap, empty_SD.expand_as(cap)])
        z, both = z.expand(*runs, *z.shape), both.expand(*runs, *both.shape)
        for i in range(nfe):
            t = torch.full(both.shape[:-2], 1 - i / nfe, device=z.device)
            v_caption, v_empty = velocity(torch.cat([z, z], -4), both, t).chunk(2, -4)
            z = z + (v_empty + guidance * (v_caption - v_empty)) / nfe
        done.append(z[..., :rows, :, :, :])
    return torch.cat(done, -4).float()
