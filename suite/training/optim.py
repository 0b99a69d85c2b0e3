"""All parameters in one flat buffer under fused AdamW.

At depth 1000 the default per-tensor AdamW costs as much as several blocks; over one buffer it is a few kernels, and
bitwise equal to per-tensor fused AdamW (but for the last elements of a tensor that fills no whole number of vector
registers, such as ReZero's scalar: one rounding). Groups lie one after the other in the buffer, so each is a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

ALIGN = 16  # floats; 64 bytes, so that views keep the alignment the compiled code was guarded on
GROUPS = ("decay", "nodecay", "gates")


def group_of(name: str, parameter: Tensor) -> str:
    """The optimiser group: residual-scheme parameters are gates; of the rest only 2-D weights decay (Table 3)."""
    if ".residuals." in name:
        return "gates"
    return "decay" if parameter.ndim >= 2 else "nodecay"


def decays(group: str) -> bool:
    """Whether the weights of an optimiser group decay (Table 3)."""
    return group == "decay"


def as_rows(parts: list[FlatParameters]) -> tuple[Tensor, Tensor]:
    """Move the buffers of R models of one shape into rows of two (R, P) buffers, values and gradients; returns these."""
    values, grads = (torch.stack([getattr(part, name) for part in parts]) for name in ("values", "grads"))
    for part, *rows in zip(parts, values, grads, strict=True):
        part.use(*rows)
    return values, grads


class FlatParameters:
    """Moves a model's parameters and gradients into two flat buffers, in place; the model keeps its names."""

    def __init__(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """names: of those of its parameters that are meant, if not all."""
        chosen = [(name, p) for name, p in model.named_parameters() if names is None or name in names]
        named = sorted(chosen, key=lambda item: GROUPS.index(group_of(*item)))  # stable sort
        self.slices: dict[str, slice] = {}
        bounds, end = {g: [0, 0] for g in GROUPS}, 0
        for name, p in named:
            group = group_of(name, p)
            if bounds[group][1] == 0:
                bounds[group][0] = end
            self.slices[name] = slice(end, end + p.numel())
            end += -(-p.numel() // ALIGN) * ALIGN
            bounds[group][1] = end
        self.named, like = dict(named), named[0][1]
        values, grads = (torch.zeros(end, dtype=like.dtype, device=like.device) for _ in range(2))
        for name, p in named:
            values[self.slices[name]].copy_(p.data.flatten())
        self.groups = {group: slice(start, stop) for group, (start, stop) in bounds.items() if stop > start}
        self.leaves = {group: nn.Parameter(values[place]) for group, place in self.groups.items()}
        self.use(values, grads)

    def use(self, values: Tensor, grads: Tensor) -> None:
        """Make parameters, gradients and the optimiser's leaves views of these buffers, laid out as `slices` has it; nothing is copied."""
        self.values, self.grads = values, grads
        for name, p in self.named.items():
            place = self.slices[name]
            p.data, p.grad = values[place].view(p.shape), grads[place].view(p.shape)
        for group, leaf in self.leaves.items():
            leaf.data, leaf.grad = values[self.groups[group]], grads[self.groups[group]]

    def adamw(self, *, betas: tuple[float, float], eps: float, weight_decay: float) -> torch.optim.AdamW:
        """Fused AdamW over the flat groups; the learning rate is set by the training loop at every step."""
        return torch.optim.AdamW(self.param_groups(weight_decay), lr=0.0, betas=betas, eps=eps, fused=True)

    def param_groups(self, weight_decay: float) -> list[dict]:
        """What an optimiser is to be told of the leaves."""
        return [{"params": [leaf], "weight_decay": weight_decay if decays(name) else 0.0} for name, leaf in self.leaves.items()]

    def zero(self) -> None:
        """Forget the gradients."""
        self.grads.zero_()

    def reduce(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Average the gradients over the processes: one all-reduce over the flat buffer does what DDP's buckets would."""
        self.grads.copy_(mean(self.grads))

    def second_moment(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Adam's v over the whole buffer, or None before the first step."""
        states = [optimizer.state.get(leaf, {}) for leaf in self.leaves.values()]
        return torch.cat([s["exp_avg_sq"] for s in states]) if all("exp_avg_sq" in s for s in states) else None

    def clip(self, limit: float) -> Tensor:
        """Scale all gradients to global norm `limit` at most; returns the raw norm (0-dim), non-finite untouched."""
        norm = torch.linalg.vector_norm(self.grads)
        self.grads.mul_(torch.clamp(limit / (norm + 1e-6), max=1.0))  # 1e-6 as torch.nn.utils.clip_grad_norm_
        return norm
