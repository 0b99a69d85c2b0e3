"""The blocks of a model on a CPU: compiled functions called in a row, under a single node of autograd's graph.

At width 32 a block is a millisecond of arithmetic, and Dynamo's guards and autograd's bookkeeping cost as much again.
Here the loops over depth are Python's own, forward and backward; gradients of weights are added to `.grad` directly.

Shapes: as in suite.model.aot.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suite.model import aot

Kept = tuple[aot.CompiledBlock, list[Tensor]]


class CompiledBlocks:
    """Runs `blocks` of one model; `rope` and `step` are its buffers, read at every call; t_B is the time of each sample.

    segment: blocks per checkpointed segment, whose activations are recomputed in the backward by the same function,
    so with the same bits; 0 = keep all activations. learnt, weights: per block the parameters, whose `.grad` a
    backward adds to, and parameters and buffers; of R models stacked along a leading axis, where `replicas` is R. The
    trunk and t have that axis too then.
    """

    def __init__(
        self, blocks: nn.ModuleList, rope: Tensor, step: Tensor, segments: tuple[int, ...], segment: int, *,
        learnt: list[list[Tensor]] | None = None, weights: list[list[Tensor]] | None = None, replicas: int = 0,
    ) -> None:  # fmt: skip
        self.blocks, self.fixed, self.segments, self.replicas = blocks, [rope, step], segments, replicas
        self.segment = segment or len(blocks)
        self.learnt = learnt or [list(block.parameters()) for block in blocks]
        self.weights = weights or [[t.detach() for t in (*block.parameters(), *block.buffers())] for block in blocks]
        kinds = {aot.kind(block): i for i, block in reversed(list(enumerate(blocks)))}
        if len(kinds) > aot.MOST_KINDS:
            scheme = type(blocks[0].residuals[0]).__name__
            raise aot.CompileError(
                f"{scheme}: {len(kinds)} kinds of blocks in a model of {len(blocks)}; numbers that differ by block must be buffers"
            )
        self.first = [kinds[aot.kind(block)] for block in blocks]  # the first block of the same kind
        self._functions: dict[tuple, aot.CompiledBlock] = {}

    def functions(self, index: int, x: Tensor, t_B: Tensor, training: bool) -> aot.CompiledBlock:
        """The compiled functions of a block for this shape of trunk, which must be contiguous."""
        key = (self.first[index], x.shape, x.dtype, training)  # under autocast a merge may leave another type than it got
        if key not in self._functions:
            fixed = *self.fixed, t_B, self.segments, self.weights[index]
            self._functions[key] = aot.compiled_block(self.blocks[index], x, *fixed, training, self.replicas)
        return self._functions[key]

    def __call__(self, x: Tensor, t_B: Tensor, start: int = 0, stop: int | None = None, into_grad: bool = True) -> Tensor:
        """The trunk after blocks start to stop. into_grad: whether a backward adds to the weights' `.grad`."""
        stop, x = len(self.blocks) if stop is None else stop, x.contiguous()
        if torch.is_grad_enabled() and x.requires_grad:
            return _Blocks.apply(x, t_B, self, start, stop, into_grad)
        for i in range(start, stop):
            (x,) = self.functions(i, x, t_B, False).infer([x, *self.fixed, t_B, *self.weights[i]])
        return x

    def forward(self, x: Tensor, t_B: Tensor, start: int, stop: int) -> tuple[Tensor, list[Kept]]:
        """The trunk and, for every block, its functions and what their backward needs."""
        kept = []
        for i in range(start, stop):
            functions = self.functions(i, x, t_B, True)
            x, *saved = functions.forward([x, *self.fixed, t_B, *self.weights[i]])
            kept.append((functions, saved))
        return x, kept

    def backward(self, d_x: Tensor, start: int, stop: int, kept: list[Kept], into_grad: bool) -> Tensor:
        """The trunk's gradient before block `start`; consumes `kept`."""
        for i in reversed(range(start, stop)):
            functions, saved = kept.pop()
            d_x, _, _, _, *d_weights = functions.backward([*saved, d_x.contiguous()])
            del saved
            if into_grad:
                pairs = [(p.grad, d) for p, d in zip(self.learnt[i], d_weights) if d is not None]
                torch._foreach_add_([grad for grad, _ in pairs], [d for _, d in pairs])
        return d_x


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, t_B: Tensor, stack: CompiledBlocks, start: int, stop: int, into_grad: bool) -> Tensor:
        ctx.stack, ctx.into_grad, ctx.t_B, ctx.parts = stack, into_grad, t_B, []
        for first in range(start, stop, stack.segment):
            last = min(first + stack.segment, stop)
            begin = x
            x, kept = stack.forward(x, t_B, first, last)
            ctx.parts.append((first, last, begin, None if stack.segment < stop - start else kept))
            del kept
        return x

    @staticmethod
    def backward(ctx, d_x: Tensor):
        while ctx.parts:
            first, last, begin, kept = ctx.parts.pop()
            if kept is None:
                _, kept = ctx.stack.forward(begin, ctx.t_B, first, last)
            d_x = ctx.stack.backward(d_x, first, last, kept, ctx.into_grad)
        return d_x, None, None, None, None, None
