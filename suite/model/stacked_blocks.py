"""The blocks of R models of one shape by `torch.compile`, on a torch where `suite.model.aot` is not to be had.

One compiled function a kind of block, which the stacked weights of each block are handed to: what there is to compile
does not depend on depth.
Shapes: R replicas; x is the trunk (R, B, T, D).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from suite.model import aot


class _Forward(nn.Module):
    """A block whose own `compile()`, for looks at one model, plays no part."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs) -> Tensor:
        return self.block.forward(*inputs)


class StackedBlocks:
    """Called as `CompiledBlocks` is; autograd adds to the `.grad` of the weights.

    segment: blocks per checkpointed segment; 0 = keep all activations. weights: per block the parameters and buffers
    of R models, in the order of the block's own, with a leading axis R.
    """

    def __init__(
        self, blocks: nn.ModuleList, rope: Tensor, step: Tensor, segments: tuple[int, ...], segment: int, weights: list[list[Tensor]]
    ) -> None:  # fmt: skip
        self.fixed, self.weights = [rope, step], weights
        self.segment = segment or len(blocks)
        made = {}
        for block in blocks:
            if (kind := aot.kind(block)) not in made:
                made[kind] = _compiled(block, segments)
        self.functions = [made[aot.kind(block)] for block in blocks]

    def __call__(self, x: Tensor, *of_samples: Tensor) -> Tensor:
        """The trunk after all blocks. of_samples: what the blocks read of every sample, (R, B)."""
        for start in range(0, len(self.functions), self.segment):
            stop = min(start + self.segment, len(self.functions))
            if torch.is_grad_enabled() and self.segment < len(self.functions):
                x = checkpoint(self._part, start, stop, x, *of_samples, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self._part(start, stop, x, *of_samples)
        return x

    def _part(self, start: int, stop: int, x: Tensor, *of_samples: Tensor) -> Tensor:
        for function, weights in zip(self.functions[start:stop], self.weights[start:stop], strict=True):
            x = function(x, *self.fixed, of_samples, weights)
        return x


def _compiled(block: nn.Module, segments: tuple[int, ...]):
    """(x, rope, step, of_samples, weights) -> x, for this kind of block."""
    names, whole = [f"block.{name}" for name in aot.tensors(block)], _Forward(block)

    def one(x: Tensor, rope: Tensor, step: Tensor, of_samples: tuple[Tensor, ...], weights: list[Tensor]) -> Tensor:
        return torch.func.functional_call(whole, dict(zip(names, weights)), (x, rope, segments, step, *of_samples))

    torch._dynamo.config.fail_on_recompile_limit_hit = True  # never fall back to eager without a word
    return torch.compile(torch.vmap(one, (0, None, None, 0, 0)), fullgraph=True, dynamic=False)
