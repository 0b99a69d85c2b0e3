"""Held-out loss and samples: no training random numbers, one fixed shape of forward, the same draws for every run.

Shapes: B batch, C channels, H, W pixels, S caption tokens, D width; * is the axis of runs where a group of them is
evaluated as one, and nothing where it is one run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from suite.data.captions import Captions, Prompts
from suite.data.dataset import Dataset
from suite.model import flow
from suite.protocol import Protocol
from suite.rng import generator

EVAL_ROWS = 64  # rows of every forward outside training: one shape, so that inference compiles once
DEVICE_ELEMENTS = 1 << 24  # of the trunk of one run in such a forward on a GPU, which a few rows would leave idle; 64 MiB


class Evaluation:
    """velocity(z_*BCHW, captions_*BSD, t_*B) is the model as it is when called; captions: on the model's device.

    runs: (R,) where velocity is that of a group of R runs. together: set where all processes of it evaluate one
    model, each a part; every method must then be called by all; samples are the first one's alone.
    """

    def __init__(
        self, velocity: Callable[[Tensor, Tensor, Tensor], Tensor], captions: Captions, data: Dataset, protocol: Protocol,
        runs: tuple[int, ...] = (), together: Accelerator | None = None,
    ) -> None:  # fmt: skip
        self.velocity, self.captions, self.data, self.protocol, self.runs = velocity, captions, data, protocol, runs
        tokens = data.shape[1] * data.shape[2] // protocol.patch**2 + captions.empty.shape[0]
        trunk = tokens * protocol.width
        self.rows = EVAL_ROWS if captions.device.type == "cpu" else max(EVAL_ROWS, DEVICE_ELEMENTS // trunk)
        self.together, self.rank, self.world = together, 0, 1
        if together is not None:
            self.rank, self.world = together.process_index, together.num_processes
        self.drawn: tuple[Tensor, Tensor] | None = None  # what `sample` gives at this step, where a group has drawn it for all its runs

    @torch.no_grad()
    def heldout_loss(self) -> Tensor:
        """(*) float64 losses on the held-out images with fixed t and noise, captions never dropped; the same for every run."""
        index = self.data.heldout
        whole = flow.make_batch(
            self.data.x0(index), self.data.caption(index), self.data.empty, 0.0, generator("heldout")
        )
        total, n = 0.0, len(index)
        rows = self.rows if self.rows <= EVAL_ROWS else min(self.rows, n)
        for i in range(self.rank * rows, n + self.rank * rows, self.world * rows):  # as often on every process
            part = torch.arange(i, i + rows).clamp(max=n - 1)
            z, target, t, caption = (of[part].to(self.captions.device) for of in whole)
            velocity = self.velocity(*(of.expand(*self.runs, *of.shape) for of in (z, self.captions(caption), t)))
            error = (velocity.float() - target).square().mean((-3, -2, -1))
            total += error[..., : max(0, n - i)].double().sum(-1)
        return (total if self.world == 1 else self.together.reduce(total, "sum")) / n

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """(*, n, C, H, W) samples in pixel units on the CPU, and for each its row in a picture; the same noise for every run."""
        if self.drawn and len(self.drawn[1]) == n:
            return self.drawn
        chunk = EVAL_ROWS // 2 if self.rows <= EVAL_ROWS else min(n, self.rows // 2)
        mine = torch.arange(self.rank, -(-n // self.world) * self.world, self.world) % n  # as many for every process
        images = flow.sample(
            self.velocity, Prompts(self.captions, self.data.prompts, mine), self.captions.empty, self.data.shape,
            nfe=self.protocol.nfe, guidance=self.protocol.guidance, noise=generator("samples"), chunk=chunk, runs=self.runs,
            rows=(mine, n),
        )  # fmt: skip
        if self.world > 1:
            images = self._gathered(images.cpu())[:n]
        return self.data.pixels(images.cpu()), self.data.picture_rows(n)

    def _gathered(self, mine: Tensor) -> Tensor:
        """The samples of all processes in order, on the first one; on the others none. Part by part: a GPU need not hold all."""
        parts = []
        for part in mine.split(EVAL_ROWS):
            every = self.together.gather(part.to(self.captions.device)).unflatten(0, (self.world, -1)).transpose(0, 1).flatten(0, 1)
            parts.append(every.cpu() if self.rank == 0 else every[:0].cpu())
        return torch.cat(parts)
