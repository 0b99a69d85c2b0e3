"""All parameters in one flat buffer under fused AdamW.

At depth 1000 the default per-tensor AdamW costs as much as several blocks; over one buffer it is a few kernels, and
bitwise equal to per-tensor fused AdamW (but for the last elements of a tensor that fills no whole number of vector
registers, such as ReZero's scalar: one rounding). Groups lie one after the other in the buffer, so each is a slice;
what has factors of a scheme's own lies behind the rest of its group, and the parts of one parameter that differ are
slices by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from suite.residual import Factors
from suite.training import checkpoint
from suite.training.factors import NONE, Parts

ALIGN = 16  # floats; 64 bytes, so that views keep the alignment the compiled code was guarded on
GROUPS = ("decay", "nodecay", "gates")
ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")  # of torch.optim.AdamW


def group_of(name: str, parameter: Tensor) -> str:
    """The optimiser group: residual-scheme parameters are gates; of the rest only 2-D weights decay (Table 3)."""
    if ".residuals." in name:
        return "gates"
    return "decay" if parameter.ndim >= 2 else "nodecay"


def decays(group: str) -> bool:
    """Whether the weights of an optimiser group decay (Table 3)."""
    return group == "decay"


class Kind(NamedTuple):
    """What the optimiser treats alike."""

    group: str
    factors: Factors = NONE

    def label(self) -> str:
        """Its name in a checkpoint."""
        return self.group if self.factors == NONE else f"{self.group} rate={self.factors.rate!r} eps={self.factors.eps!r}"

    def settings(self, *, eps: float, weight_decay: float, gate_lr: float) -> dict[str, float]:
        """What torch is to be told of it; `rate` is what the training loop multiplies the learning rate by at every step."""
        rate = self.factors.rate * (gate_lr if self.group == "gates" else 1.0)
        return {"weight_decay": weight_decay if decays(self.group) else 0.0, "eps": eps * self.factors.eps, "rate": rate}


def as_rows(parts: list[FlatParameters]) -> tuple[Tensor, Tensor]:
    """Move the buffers of R models of one shape into rows of two (R, P) buffers, values and gradients; returns these."""
    values, grads = (torch.stack([getattr(part, name) for part in parts]) for name in ("values", "grads"))
    for part, *rows in zip(parts, values, grads, strict=True):
        part.use(*rows)
    return values, grads


class FlatParameters:
    """Moves a model's parameters and gradients into two flat buffers, in place; the model keeps its names."""

    def __init__(self, model: nn.Module, names: Collection[str] | None = None, factors: Parts | None = None) -> None:
        """names: of those of its parameters that are meant, if not all. factors: of those of them that have some."""
        self.factors = factors or {}
        chosen = [(name, p) for name, p in model.named_parameters() if names is None or name in names]
        named = sorted(chosen, key=lambda item: (GROUPS.index(group_of(*item)), self.factors.get(item[0], ())))  # stable sort
        self.slices: dict[str, slice] = {}
        runs: list[tuple[Kind, int]] = []  # where each of them ends: neighbours of one kind are one leaf
        end = 0
        for name, p in named:
            self.slices[name] = slice(end, end + p.numel())
            parts = self.factors.get(name, (NONE,))
            ends = [end + p.numel() * (i + 1) // len(parts) for i in range(len(parts))]
            end += -(-p.numel() // ALIGN) * ALIGN
            for factors, stop in zip(parts, (*ends[:-1], end), strict=True):
                kind = Kind(group_of(name, p), factors)
                if runs and runs[-1][0] == kind:
                    runs.pop()
                runs.append((kind, stop))
        self.named, like = dict(named), named[0][1]
        values, grads = (torch.zeros(end, dtype=like.dtype, device=like.device) for _ in range(2))
        for name, p in named:
            values[self.slices[name]].copy_(p.data.flatten())
        self.places: dict[str, slice] = {}
        self.kinds: dict[Kind, list[str]] = {}  # the leaves of each
        start = 0
        for kind, stop in runs:
            alike = self.kinds.setdefault(kind, [])
            alike.append(f"{kind.label()} {len(alike) + 1}" if alike else kind.label())
            self.places[alike[-1]] = slice(start, stop)
            start = stop
        self.leaves = {leaf: nn.Parameter(values[place]) for leaf, place in self.places.items()}
        self.use(values, grads)

    def use(self, values: Tensor, grads: Tensor) -> None:
        """Make parameters, gradients and the optimiser's leaves views of these buffers, laid out as `slices` has it; nothing is copied."""
        self.values, self.grads = values, grads
        for name, p in self.named.items():
            place = self.slices[name]
            p.data, p.grad = values[place].view(p.shape), grads[place].view(p.shape)
        for name, leaf in self.leaves.items():
            leaf.data, leaf.grad = values[self.places[name]], grads[self.places[name]]

    def adamw(self, *, betas: tuple[float, float], **settings: float) -> torch.optim.AdamW:
        """Fused AdamW over the leaves; the learning rate is set by the training loop at every step. settings: as `Kind.settings` has them.

        gate_lr: factor of the rate of all gates; 0 = they stay as they are.
        """
        return torch.optim.AdamW(self.param_groups(**settings), lr=0.0, betas=betas, fused=True)

    def param_groups(self, **settings: float) -> list[dict]:
        """What an optimiser is to be told of the leaves."""
        return [{"params": [self.leaves[name] for name in names]} | kind.settings(**settings) for kind, names in self.kinds.items()]

    def eps_factors(self, name: str) -> Tensor:
        """The factor of Adam's epsilon of every element of a parameter, flat."""
        parts = self.factors.get(name, (NONE,))
        return torch.tensor([part.eps for part in parts], dtype=torch.float64).repeat_interleave(self.named[name].numel() // len(parts))

    def save(
        self, folder: Path, step: int, owner: str, optimizer: torch.optim.Optimizer, history: dict[str, Tensor], log: dict,
        keep_from: int | None = None,
    ) -> None:  # fmt: skip
        """Write a checkpoint of weights, AdamW's state and `history`, as `checkpoint.save` has it."""
        tensors = history | {"values": self.values}
        for name, leaf in self.leaves.items():
            state = optimizer.state[leaf]
            tensors |= {f"{name}.{key}": state[key] for key in ADAM_STATE if state}
        checkpoint.save(folder, step, owner, tensors, log, keep_from)

    def restore(
        self, folder: Path, owner: str, optimizer: torch.optim.Optimizer, at_most: int | None = None
    ) -> tuple[int, dict[str, Tensor], dict] | None:
        """Take weights and AdamW's state from the newest whole checkpoint: (step, history, log), None if there is none."""
        found = checkpoint.load(folder, owner, at_most)
        if found is None:
            return None
        step, tensors, log = found
        self.values.copy_(tensors["values"])
        for name, leaf in self.leaves.items():
            state = optimizer.state[leaf]
            state.clear()
            if step:
                state.update({key: tensors[f"{name}.{key}"].to(leaf.device) for key in ADAM_STATE})
        return step, tensors, log

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
