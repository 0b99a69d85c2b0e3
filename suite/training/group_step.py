"""One optimiser step of R runs trained as one model: for each the step that it takes alone, on its own batch, with its own rate.

Shapes: R runs of the group; else as in suite.training.step.
"""

from __future__ import annotations

import torch

from suite.model import flow
from suite.model.replicas import Replicas
from suite.training.optim import as_rows
from suite.training.step import TrainStep


class GroupStep:
    """The joint forward and backward of runs that share everything but learning rate and seed.

    steps: one a run, their models not compiled; their buffers become rows of this group's. Clipping, AdamW, warm-up and the rule
    for what is not finite stay with each run: after `forward_backward`, call `update` of those steps that are to be applied.
    """

    def __init__(self, steps: list[TrainStep], compiled: bool) -> None:
        self.steps, flats = steps, [step.state.flat for step in steps]
        values_RP, self.grads_RP = as_rows(flats)
        self.replicas = Replicas([step.state.dit for step in steps], values_RP, self.grads_RP, flats[0].slices, compiled)

    def forward_backward(self, step: int) -> list[tuple[float, float]]:
        """(loss, raw gradient norm) of each run; its gradients, clipped, are in its own flat buffer."""
        for one in self.steps:
            one.state.dit.step.fill_(step)
        batch = flow.Batch(*map(torch.stack, zip(*(one.batch(step) for one in self.steps), strict=True)))
        captions_RBSD = torch.stack([one.captions[rows] for one, rows in zip(self.steps, batch.caption_B, strict=True)])
        self.grads_RP.zero_()
        with self.steps[0].accelerator.autocast():
            velocity_RBCHW = self.replicas(batch.z_BCHW, captions_RBSD)
        loss_R = (velocity_RBCHW.float() - batch.target_BCHW).square().mean((1, 2, 3, 4))
        loss_R.sum().backward()  # a run's loss depends on its own row alone
        norms = [one.state.flat.clip(one.run.protocol.clip).item() for one in self.steps]
        return list(zip(loss_R.tolist(), norms, strict=True))
