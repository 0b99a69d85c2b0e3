"""One optimiser step of R runs trained as one model: for each the step that it takes alone, on its own batch, with its own rate.

Shapes: R runs of the group; else as in suite.training.step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from suite.model import flow
from suite.model.replicas import Replicas
from suite.training.cuda_graph import Graphed, StepGraphs
from suite.training.optim import as_rows
from suite.training.step import TrainStep


class GroupStep:
    """The joint forward, backward and update of runs that share everything but learning rate and seed.

    steps: one a run, their models not compiled; their buffers become rows of this group's, and what they are asked to
    do from now on goes through the group, so that a replay has the kernels of the run. The captured graphs of a GPU
    read this object's memory.
    """

    def __init__(self, steps: Sequence[TrainStep], compiled: bool) -> None:
        self.steps, flats, self.device = steps, [step.state.flat for step in steps], steps[0].device
        values_RP, self.grads_RP = as_rows(flats)
        self.replicas = Replicas([step.state.dit for step in steps], values_RP, self.grads_RP, flats[0].slices, compiled)
        self.velocity, self.graphs = self._velocity, None
        if compiled and self.device.type == "cuda":
            self.graphs = StepGraphs(self.gradients, [step.state.optimizer for step in steps], self.device)
            self.velocity = Graphed(self._velocity)
        for row, step in enumerate(steps):
            step.row = _Row(self, row)
            if compiled and self.device.type == "cpu":
                step.state.dit.compile()  # for looks at one model alone; its weights have moved
        self._ahead: tuple[int, flow.Batch] | None = None

    def batch(self, step: int) -> flow.Batch:
        """(R, B, ...) batches of a step, on the CPU."""
        return flow.Batch(*map(torch.stack, zip(*(one.batches(step) for one in self.steps), strict=True)))

    def _velocity(self, z_RBCHW: Tensor, captions_RBSD: Tensor, t_RB: Tensor) -> Tensor:
        """The models' velocities under the runs' precision."""
        with self.steps[0].accelerator.autocast():
            return self.replicas(z_RBCHW, captions_RBSD, t_RB)

    def gradients(self, z_RBCHW: Tensor, target_RBCHW: Tensor, t_RB: Tensor, caption_RB: Tensor) -> tuple[Tensor, Tensor]:
        """(R) losses and raw gradient norms of a batch; leaves clipped gradients in the runs' flat buffers."""
        self.grads_RP.zero_()
        velocity_RBCHW = self._velocity(z_RBCHW, self.steps[0].captions(caption_RB), t_RB)
        loss_R = (velocity_RBCHW.float() - target_RBCHW).square().mean((1, 2, 3, 4))
        loss_R.sum().backward()  # a run's loss depends on its own row alone
        return loss_R.detach(), torch.stack([one.state.flat.clip(one.run.protocol.clip) for one in self.steps])

    def forward_backward(self, step: int) -> list[tuple[float, float]]:
        """(loss, raw gradient norm) of each run; its gradients, clipped, are in its own flat buffer."""
        for one in self.steps:
            one.state.dit.step.fill_(step)
        batch = self._ahead[1] if self._ahead and self._ahead[0] == step else self.batch(step)
        loss_R, norm_R = (self.graphs or self).gradients(*(part.to(self.device) for part in batch))
        self._ahead = step + 1, self.batch(step + 1)  # by the host, while the device is at work
        return list(zip(loss_R.tolist(), norm_R.tolist(), strict=True))

    def update(self, step: int, applied: Sequence[bool]) -> None:
        """Apply AdamW to those runs whose update is `applied`; the others stay as they are."""
        if self.graphs:
            return self.graphs.update([one.rate(step) for one in self.steps], applied)
        for one in (one for one, wanted in zip(self.steps, applied, strict=True) if wanted):
            one.apply(step)


class _Row:
    """A step of one run, taken as a row of its group."""

    def __init__(self, group: GroupStep, row: int) -> None:
        self.group, self.row = group, row

    def forward_backward(self, step: int) -> tuple[float, float]:
        return self.group.forward_backward(step)[self.row]

    def update(self, step: int) -> None:
        self.group.update(step, [i == self.row for i in range(len(self.group.steps))])
