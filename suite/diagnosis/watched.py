"""The forwards of a training, from outside: two hooks on the module that its loop calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from suite.diagnosis.guard import Guard
from suite.diagnosis.recording import Hook, Recording
from suite.diagnosis.second_pass import SecondPass, tensors


def wrappers(model: nn.Module) -> list[nn.Module]:
    """The model and, one in the other, what torch.compile's, DataParallel's and DDP's wrappers hold; the network itself is the last."""
    inner = getattr(model, "_orig_mod", None)
    if not isinstance(inner, nn.Module):
        inner = model.module if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else None
    return [model] if inner is None else [model, *wrappers(inner)]


Forward = Recording | SecondPass  # what is kept of a forward until the step


class Watched:
    """Forwards with gradients on: `begin` makes what is kept of one (or None), `last` is the one that counts, `loss` what they returned.

    traced: a compiler that compiles the module in place breaks its graph at the hooks; else it traces them as
    nothing, and nothing is seen.
    """

    def __init__(self, model: nn.Module, begin: Callable[[tuple, dict], Forward | None], guard: Guard, traced: bool) -> None:
        self.model, self.begin, self.guard = model, begin, guard
        self.busy, self._open, self._losses, self._shares = False, None, [], False
        self._kept: list[tuple[Forward, bool]] = []  # with whether the model was in training mode
        before, after = (Hook(model, torch.compiler.disable(call) if traced else call, traced) for call in (self._before, self._after))
        self._hooks = [
            model.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
            model.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]

    def _before(self, args: tuple, kwargs: dict) -> None:
        with self.guard("a look at the forward"):
            if self._open is not None:  # broken off by Ctrl-C
                self._open.forget()
                self._open = None
            if not torch.is_grad_enabled() or self.busy:
                return
            training = self.model.training
            if not training and any(was_training for _, was_training in self._kept):
                return
            self._keep([(call, mode) for call, mode in self._kept if call.came and mode >= training][-1:])
            self._open = self.begin(args, kwargs)

    def _after(self, args: tuple, kwargs: dict, outputs: object) -> None:
        with self.guard("a look at what the model returned"):
            call, self._open = self._open, None
            if call is not None:
                self._kept.append((call, self.model.training))
                call.ended(outputs)
            if torch.is_grad_enabled() and not self.busy:
                self._losses += [t.detach() for t in tensors(outputs) if t.ndim == 0 and t.requires_grad][:1]
                self._shares = kwargs.get("num_items_in_batch") is not None  # transformers: losses of accumulated forwards add up

    def _keep(self, kept: list[tuple[Forward, bool]]) -> None:
        for call in self._kept:
            if call not in kept:
                call[0].forget()
        self._kept = kept

    def last(self) -> Forward | None:
        """The last forward of this step into which a gradient came back, one in training mode before others; else the last."""
        return next((call for call, _ in reversed(self._kept) if call.came), self._kept[-1][0] if self._kept else None)

    def loss(self) -> float | None:
        """Of the scalars that the forwards of this step returned the mean, or the sum where they are shares; None where there was none."""
        if not self._losses:
            return None
        return float(torch.stack(self._losses).sum()) / (1 if self._shares else len(self._losses))

    def forget(self) -> None:
        """Let go of the step's forwards, also of one that never ended."""
        if self._open is not None:
            self._open.forget()
        self._keep([])
        self._open, self._losses = None, []

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.forget()
