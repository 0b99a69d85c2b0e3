"""Held-out loss and samples: no training random numbers, one fixed shape of forward, the same draws for every run.

Shapes: B batch, C channels, H, W pixels, S caption tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suite.model import flow
from suite.protocol import Protocol
from suite.training.data import Data

EVAL_ROWS = 64  # rows of every forward outside training: one shape, so that inference compiles once


class Evaluation:
    """velocity(z_BCHW, captions_BSD) is the model as it is when called; captions: the table, on the model's device, last row empty."""

    def __init__(self, velocity: Callable[[Tensor, Tensor], Tensor], captions: Tensor, data: Data, protocol: Protocol) -> None:
        self.velocity, self.captions, self.data, self.protocol = velocity, captions, data, protocol

    @torch.inference_mode()
    def heldout_loss(self) -> float:
        """Loss on the held-out images with fixed t and noise, captions never dropped; the same for every run."""
        rows = self.data.heldout
        whole = flow.make_batch(
            self.data.images_NCHW[rows], self.data.labels_N[rows], self.data.classes, 0.0, flow.generator("heldout")
        )
        total, n = 0.0, len(rows)
        for i in range(0, n, EVAL_ROWS):
            index = torch.arange(i, i + EVAL_ROWS).clamp(max=n - 1)
            z, target, _, caption = (part[index].to(self.captions.device) for part in whole)
            error_B = (self.velocity(z, self.captions[caption]).float() - target).square().mean((1, 2, 3))
            total += error_B[: n - i].double().sum().item()
        return total / n

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """n samples in pixel units on the CPU, and their labels 0, 1, 2, ... in turn; the same noise for every run."""
        labels = torch.arange(n) % self.data.classes
        images = flow.sample(
            self.velocity, self.captions[labels.to(self.captions.device)], self.captions[-1], tuple(self.data.images_NCHW.shape[1:]),
            nfe=self.protocol.nfe, guidance=self.protocol.guidance, noise=flow.generator("samples"), chunk=EVAL_ROWS // 2,
        )  # fmt: skip
        return self.data.pixels(images.cpu()), labels
