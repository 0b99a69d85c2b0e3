"""Models of one shape, trained as one: every parameter stacked along a leading axis R, the blocks batched over it by vmap.

Each model keeps its own modules; their parameters and gradients are rows of two (R, P) buffers, so what holds one run
(its checkpoint, clipping, optimiser) need not know of the others. A replica is computed from its own row alone: a
neighbour's nan, learning rate or end is nothing to it.

Shapes: R replicas, P parameters of a model; B batch, C channels, H, W pixels, S caption tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from suite.model import aot
from suite.model.backbone import DiT
from suite.model.compiled_blocks import CompiledBlocks
from suite.model.stacked_blocks import StackedBlocks


class _Part(nn.Module):
    """A method of a model as a module of its own, for `torch.func.functional_call`."""

    def __init__(self, dit: DiT, method: str) -> None:
        super().__init__()
        self.dit, self.method = dit, method

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.dit, self.method)(*inputs)


class Replicas:
    """R models (same scheme, depth and sizes) as one function; a backward adds to each model's own `.grad`.

    values, grads: (R, P), of which row r holds the parameters and gradients of dits[r], each at the place that
    `slices` has under its name. compiled: the blocks run as compiled code, as `DiT.compile` has it on a CPU. Raises
    ValueError for models that differ in shape.
    """

    def __init__(self, dits: Sequence[DiT], values_RP: Tensor, grads_RP: Tensor, slices: dict[str, slice], compiled: bool) -> None:
        self.dits, first = dits, dits[0]
        shapes = [[(name, t.shape) for name, t in (*dit.named_parameters(), *dit.named_buffers())] for dit in dits]
        if any(other != shapes[0] for other in shapes):
            raise ValueError("replicas must be models of one shape")
        self.weights = {}
        for name, p in first.named_parameters():
            leaf = values_RP[:, slices[name]].view(-1, *p.shape).requires_grad_()  # a number (0-dim) has no axis to unflatten to
            leaf.grad = grads_RP[:, slices[name]].view(-1, *p.shape)
            self.weights[name] = leaf
        shared = ("rope", "step")  # the same for all, and without an axis
        own = [name for name, _ in first.named_buffers() if name not in shared]
        self.buffers = {name: torch.stack([dit.get_buffer(name) for dit in dits]) for name in own}
        state = {f"dit.{name}": t for name, t in (*self.weights.items(), *self.buffers.items())}
        reads = {"forward": ("",), "enter": ("embed.", "context.", "blocks.0.residuals."),
                 "leave": ("final.", f"blocks.{len(first.blocks) - 1}.residuals.")}  # fmt: skip
        self.parts = {  # of a thousand blocks' weights, those that a method of the model reads
            method: (_Part(first, method), {name: t for name, t in state.items() if name.startswith(tuple(f"dit.{p}" for p in prefixes))})
            for method, prefixes in reads.items()
        }
        self.blocks: CompiledBlocks | StackedBlocks | None = None
        if compiled:
            learnt = [[self.weights[f"blocks.{i}.{name}"] for name, _ in block.named_parameters()] for i, block in enumerate(first.blocks)]
            kept = [[self.buffers[f"blocks.{i}.{name}"] for name, _ in block.named_buffers()] for i, block in enumerate(first.blocks)]
            weights = [[*a, *b] for a, b in zip(learnt, kept, strict=True)]
            of_model = first.rope, first.step, first.segments, first.segment
            if aot.fall_back():
                self.blocks = StackedBlocks(first.blocks, *of_model, weights)
                for dit in dits:
                    dit.fell_back = True
                return
            weights = [[t.detach() for t in of_block] for of_block in weights]
            self.blocks = CompiledBlocks(first.blocks, *of_model, learnt=learnt, weights=weights, replicas=len(dits))

    def _call(self, method: str, *inputs: Tensor) -> Tensor:
        """A method of the model, batched over its weights and inputs."""
        part, state = self.parts[method]
        return torch.vmap(lambda state, *inputs: torch.func.functional_call(part, state, inputs))(state, *inputs)

    def __call__(self, image_RBCHW: Tensor, caption_RBSD: Tensor, t_RB: Tensor) -> Tensor:
        """The velocities (R, B, C, H, W), each by its own model."""
        if self.blocks is None:
            return self._call("forward", image_RBCHW, caption_RBSD, t_RB)
        return self._ends("leave", self.blocks(self._ends("enter", image_RBCHW, caption_RBSD, t_RB), t_RB), image_RBCHW)

    def _ends(self, method: str, *inputs: Tensor) -> Tensor:
        """What comes before and after the blocks: on a CPU model by model: one product of several may round otherwise."""
        if inputs[0].device.type == "cuda":
            return self._call(method, *inputs)
        return torch.stack([getattr(dit, method)(*own) for dit, *own in zip(self.dits, *inputs, strict=True)])
