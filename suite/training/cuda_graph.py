"""The training step as two CUDA graphs, so that a step of 10^5 kernels at depth 1000 costs two launches.

Two, not one: between the gradients and the update lie the audit's look at both and the rule that a step whose loss or
gradient is not finite is not applied. Each replay reads and writes the addresses it was captured at, so the batch and
the learning rate live in tensors of our own, and what the device has to know may not pass through Python: no
`.item()`, no copy from the host. Replayed kernels are those of the step without a graph, so no bit changes. A run
whose update is withheld is told apart on the device too, by the optimiser's `found_inf`, so that one graph serves a
group. Not run on a GPU yet. On a CPU a test compares what two steps would bake in, with the capture left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3  # executions before capture: they compile the blocks, load the kernels and size the workspaces

Replay = Callable[[], None]


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


class Graphed:
    """A pure function of tensors, captured at first use for each set of shapes and replayed from then on.

    What else it reads must stay at its address: whoever holds this object holds that too. A result is valid until the
    next call.
    """

    def __init__(self, function: Callable[..., object], capture=capture) -> None:
        self._function, self._capture = function, capture
        self._captured: dict[tuple[torch.Size, ...], tuple[list[Tensor], Replay, object]] = {}

    def __call__(self, *inputs: Tensor):
        shapes = tuple(t.shape for t in inputs)
        if shapes not in self._captured:
            with torch.inference_mode(False):  # a tensor made in inference could not be written outside it
                mine = [t.clone() for t in inputs]
            self._captured[shapes] = (mine, *self._capture(lambda: self._function(*mine), WARM_UP))
        mine, replay, result = self._captured[shapes]
        for own, new in zip(mine, inputs, strict=True):
            own.copy_(new)
        replay()
        return result


class StepGraphs:
    """Gradients and update of one model and its optimisers, one a run, captured at first use and replayed from then on.

    gradients: from a batch's tensors to (loss, raw norm), leaving clipped gradients where the optimisers find them; a
    pure function of its inputs and the weights. optimizers: fused AdamW, maybe in Accelerate's wrapper.
    """

    def __init__(
        self, gradients: Callable[..., tuple[Tensor, Tensor]], optimizers: Sequence[torch.optim.Optimizer], device: torch.device,
        capture=capture,
    ) -> None:  # fmt: skip
        self.gradients = Graphed(gradients, capture)
        self._optimizers, self._capture = optimizers, capture
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._rate_G, self._withheld_R = (torch.zeros(len(each), device=device) for each in (groups, optimizers))  # else baked in
        for optimizer, withheld in zip(optimizers, self._withheld_R, strict=True):
            getattr(optimizer, "optimizer", optimizer).found_inf = withheld
        for group, rate in zip(groups, self._rate_G, strict=True):
            group["lr"] = rate
        self._replay: Replay | None = None
        self._captured_state: list[int] = []

    def _step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()

    def update(self, rates: Sequence[float], applied: Sequence[bool]) -> None:
        """One optimiser step of each run at its rate, but of those only that are `applied`.

        Where there is no state (at the first step, or after a restore to step 0) some is made, uncaptured.
        """
        every = [rate * group["rate"] for rate, optimizer in zip(rates, self._optimizers, strict=True) for group in optimizer.param_groups]
        self._rate_G.copy_(torch.tensor(every))
        self._withheld_R.copy_(~torch.tensor(applied))
        states = [[t.data_ptr() for s in o.state.values() for t in s.values()] for o in self._optimizers]
        if not all(states):
            return self._step()
        if sum(states, []) != self._captured_state:  # the first time, or a restored checkpoint brought other tensors
            for group in [group for optimizer in self._optimizers for group in optimizer.param_groups]:
                group["capturable"] = True  # fused AdamW is in any case; torch wants to be told
            self._replay, _ = self._capture(self._step, 0)
            self._captured_state = sum(states, [])
        self._replay()
