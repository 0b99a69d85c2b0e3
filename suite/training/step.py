"""One optimiser step of one run: batch, loss, clipped gradients, AdamW under linear warm-up.

Shapes: B batch, C channels, H, W pixels, S caption tokens, D width.
"""

from __future__ import annotations

from accelerate import Accelerator
from torch import Tensor

from suite.data.dataset import Dataset
from suite.model import flow
from suite.protocol import Run
from suite.training.state import RunState


class TrainStep:
    """Changes a `RunState`'s weights, and nothing else of it. Everything here is a pure function of (run, data, step, weights)."""

    def __init__(
        self, run: Run, data: Dataset, state: RunState, accelerator: Accelerator, alone: bool = True, micro: int | None = None
    ) -> None:
        """alone: False for a run that a `GroupStep` will make a row of its model.

        micro: rows of this process's share that are in memory at a time, None for all. Rounds otherwise, and changes
        nothing else.
        """
        p = run.protocol
        self.run, self.state, self.accelerator, self.device = run, state, accelerator, accelerator.device
        self.micro = micro or p.batch
        self.captions = data.captions(p.caption_tokens, p.width).to(self.device)
        self.batches = flow.Batches(
            data.x0, data.caption, data.empty, data.train, batch=p.batch, drop=p.caption_drop, seed=run.seed,
            share=(accelerator.process_index, accelerator.num_processes),
        )  # fmt: skip
        self.row = None  # of a group, which then takes the steps
        self._ahead: tuple[int, flow.Batch] | None = None
        self.graphs = None  # on a GPU what replays them: `cuda_graph.StepGraphs`
        if run.compiled and alone:
            state.dit.compile()
            one = accelerator.num_processes == 1 and not state.dit.sharded
            if self.device.type == "cuda" and one:  # an all-reduce in a graph is not tried
                from suite.training.cuda_graph import StepGraphs

                self.graphs = StepGraphs(self.gradients, [state.optimizer], self.device)

    def batch(self, step: int) -> flow.Batch:
        """This process's share of the global batch of a step, on the device."""
        return self._to_device(self.batches(step))

    def _to_device(self, batch: flow.Batch) -> flow.Batch:
        return flow.Batch(*(part.to(self.device) for part in batch))

    def velocity(self, z_BCHW: Tensor, captions_BSD: Tensor, t_B: Tensor) -> Tensor:
        """The model's velocity under the run's precision."""
        with self.accelerator.autocast():
            return self.state.dit(z_BCHW, captions_BSD, t_B)

    def loss(self, batch: flow.Batch) -> Tensor:
        """Mean squared velocity error (Eq. 2), 0-dim."""
        velocity = self.velocity(batch.z_BCHW, self.captions(batch.caption_B), batch.t_B)
        return (velocity.float() - batch.target_BCHW).square().mean()

    def gradients(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, raw gradient norm), 0-dim, of a batch's tensors; leaves clipped gradients where the optimiser finds them."""
        parameters = self.state.parameters
        parameters.zero()
        loss = self._accumulate(batch)
        if self.accelerator.num_processes > 1:
            parameters.reduce(self._mean)
            loss = self._mean(loss)
        return loss, parameters.clip(self.run.protocol.clip)

    def _accumulate(self, batch: tuple[Tensor, ...]) -> Tensor:
        """The loss of a batch, 0-dim; a backward of each part that is in memory at a time adds to the gradients."""
        rows = len(batch[0])
        parts = [flow.Batch(*part) for part in zip(*(of.split(self.micro) for of in batch), strict=True)]
        if len(parts) == 1:
            loss = self.loss(parts[0])
            self.accelerator.backward(loss)
            return loss.detach()
        total = 0.0
        for part in parts:
            loss = self.loss(part) * (len(part.t_B) / rows)
            self.accelerator.backward(loss)
            total = total + loss.detach()
        return total

    def _mean(self, of: Tensor) -> Tensor:
        return self.accelerator.reduce(of, "mean")

    def forward_backward(self, step: int) -> tuple[float, float]:
        """Gradients of a step, clipped, where the optimiser finds them; returns (loss, raw gradient norm)."""
        if self.row:
            return self.row.forward_backward(step)
        self.state.dit.step.fill_(step)
        batch = self._ahead[1] if self._ahead and self._ahead[0] == step else self.batches(step)
        loss, norm = (self.graphs or self).gradients(*self._to_device(batch))
        if self.device.type != "cpu":
            self._ahead = step + 1, self.batches(step + 1)  # by the host, while the device is at work
        return loss.item(), norm.item()

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then constant."""
        return self.run.lr * min(1.0, step / self.run.protocol.warmup)

    def update(self, step: int) -> None:
        """Apply AdamW, by whatever took the gradients."""
        if self.row:
            self.row.update(step)
        elif self.graphs:
            self.graphs.update([self.rate(step)], [True])
        else:
            self.apply(step)

    def apply(self, step: int) -> None:
        """Apply AdamW at the step's rate, kernel by kernel."""
        for group in self.state.optimizer.param_groups:
            group["lr"] = self.rate(step) * group["rate"]
        self.state.optimizer.step()
