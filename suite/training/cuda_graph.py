"""The training step as two CUDA graphs, so that a step of 10^5 kernels at depth 1000 costs two launches.

Two, not one: between the gradients and the update lie the audit's look at both and the rule that a step whose loss or
gradient is not finite is not applied. Each replay reads and writes the addresses it was captured at, so the batch and
the learning rate live in tensors of our own, and what the device has to know may not pass through Python: no `.item()`,
no copy from the host. Replayed kernels are those of the step without a graph, so no bit changes.
Not run on a GPU yet. On a CPU a test compares what two steps would bake in, with the capture left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # executions before capture: they compile the blocks, load the kernels and size the workspaces

Replay = Callable[[], None]
Gradients = Callable[..., tuple[Tensor, Tensor]]


def capture(function: Callable[[], object], warm_up: int) -> tuple[Replay, object]:
    """Record `function` without executing it, after `warm_up` executions; returns the replay, and the static tensors of its result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = function()
    return graph.replay, result


class StepGraphs:
    """Gradients and update of one model and optimiser, captured at first use and replayed from then on.

    gradients: from a batch's tensors to (loss, raw norm), both 0-dim, leaving clipped gradients where the optimiser finds
    them; a pure function of its inputs and the weights. optimizer: fused AdamW, maybe in Accelerate's wrapper.
    """

    def __init__(self, gradients: Gradients, optimizer: torch.optim.Optimizer, device: torch.device, capture=capture) -> None:
        self._gradients, self._optimizer, self._capture = gradients, optimizer, capture
        self._rate = torch.zeros((), device=device)  # a number would be baked in
        for group in optimizer.param_groups:
            group["lr"] = self._rate
        self._batch: list[Tensor] = []
        self._replay_gradients: Replay | None = None
        self._replay_update: Replay | None = None
        self._captured_state: list[int] = []

    def gradients(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, raw norm) of a batch of always the same shapes; valid until the next call."""
        if self._replay_gradients is None:
            self._batch = [t.clone() for t in batch]
            self._replay_gradients, self._result = self._capture(lambda: self._gradients(*self._batch), WARM_UP)
        for mine, new in zip(self._batch, batch, strict=True):
            mine.copy_(new)
        self._replay_gradients()
        return self._result

    def update(self, rate: float) -> None:
        """One optimiser step at a learning rate. Without state (the first, or after a restore to step 0) it makes some, uncaptured."""
        self._rate.fill_(rate)
        state = [t.data_ptr() for s in self._optimizer.state.values() for t in s.values()]
        if not state:
            self._optimizer.step()
            return
        if state != self._captured_state:  # the first time, or a restored checkpoint brought other tensors
            for group in self._optimizer.param_groups:
                group["capturable"] = True  # fused AdamW is in any case; torch wants to be told
            self._replay_update, _ = self._capture(self._optimizer.step, 0)
            self._captured_state = state
        self._replay_update()
