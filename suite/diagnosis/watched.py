"""The forwards of a training, from outside: two hooks on the module that its loop calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn

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
MOST = 1000  # forwards between two steps that are remembered: more than anybody accumulates, and a loop that never steps fills no memory


class Seen:
    """A forward with gradients on: its mode, what is kept of it, the loss it returned, and whether a gradient came back to either."""

    def __init__(self, training: bool, kept: Forward | None) -> None:
        self.training, self.kept = training, kept
        self.loss: Tensor | None = None
        self.share = False
        self._weights: list[nn.Parameter] = []
        self._versions = 0
        self.of_loss, self._hook = False, None  # whether its loss was used in a backward

    @property
    def came(self) -> bool:
        """Whether a gradient has come back."""
        return self.of_loss or (self.kept is not None and self.kept.came)

    def returned(self, model: nn.Module, outputs: object, kwargs: dict) -> None:
        """The forward is over."""
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._versions = self._count()
        if self.kept is not None:
            self.kept.ended(outputs)
        loss = next((t for t in tensors(outputs) if t.ndim == 0 and t.requires_grad), None)
        if loss is not None:
            self.loss, self._hook = loss.detach(), loss.register_hook(self._take)
            self.share = kwargs.get("num_items_in_batch") is not None  # transformers: losses of accumulated forwards add up

    def moved(self) -> bool:
        """Whether trained weights were changed in place since, as an optimiser does."""
        return self._versions != self._count()

    def _count(self) -> int:
        return sum(p._version for p in self._weights)

    def _take(self, grad: Tensor | None) -> None:
        self.of_loss |= grad is not None  # none: compiled, and not used

    def forget(self) -> None:
        """Let go of tensors and hooks: they belong to the training."""
        if self.kept is not None:
            self.kept.forget()
        if self._hook is not None:
            self._hook.remove()
        self.kept = self._hook = None
        self._weights = []


class Watched:
    """Forwards with gradients on: `begin` makes what is kept of one (or None), `last` is the one that counts, `loss` what they returned.

    Of the forwards between two steps those count into which a gradient came, in training mode before others, so that
    a validation between backward and step, with gradients or without, is none of them. traced: a compiler that
    compiles the module in place breaks its graph at the hooks; else it traces them as nothing, and nothing is seen.
    """

    def __init__(self, model: nn.Module, begin: Callable[[tuple, dict], Forward | None], guard: Guard, traced: bool) -> None:
        self.model, self.begin, self.guard = model, begin, guard
        self.busy, self._open = False, None
        self._seen: deque[Seen] = deque(maxlen=MOST)
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
            if torch.is_grad_enabled() and not self.busy:
                training = self.model.training
                outranked = not training and any(seen.training for seen in self._seen)
                if not outranked:
                    self._let_go(training)
                self._open = Seen(training, None)
                self._open.kept = None if outranked else self.begin(args, kwargs)

    def _after(self, args: tuple, kwargs: dict, outputs: object) -> None:
        with self.guard("a look at what the model returned"):
            seen, self._open = self._open, None
            if seen is not None:
                self._seen.append(seen)
                seen.returned(self.model, outputs, kwargs)

    def _let_go(self, training: bool) -> None:
        """Before another forward: what was kept of earlier ones, but for the last that may still be the one that counts."""
        counting = next((seen for seen in reversed(self._seen) if seen.came and seen.training >= training), None)
        for seen in self._seen:
            if seen is not counting and seen.kept is not None:
                seen.kept.forget()
                seen.kept = None

    def _counting(self) -> list[Seen]:
        came = [seen for seen in self._seen if seen.came]
        return [seen for seen in came if seen.training] or came

    def last(self) -> Forward | None:
        """What is kept of the last forward of this step that counts; where no gradient came back, of the last."""
        kept = [seen.kept for seen in self._counting() or self._seen if seen.kept is not None]
        return kept[-1] if kept else None

    @property
    def came(self) -> bool:
        """Whether a gradient was seen to come back since the last step."""
        return any(seen.came for seen in self._seen)

    def moved(self) -> bool:
        """Whether trained weights were changed in place since the forward that counts."""
        counting = self._counting() or self._seen
        return bool(counting) and counting[-1].moved()

    def loss(self) -> float | None:
        """Of the scalars that the forwards returned and that went backward the mean, or the sum where they are shares; None without one."""
        used = [seen for seen in self._counting() if seen.of_loss]
        if not used:
            return None
        return float(torch.stack([seen.loss for seen in used]).sum()) / (1 if used[-1].share else len(used))

    def forget(self) -> None:
        """Let go of the step's forwards, also of one that never ended."""
        for seen in (*self._seen, self._open):
            if seen is not None:
                seen.forget()
        self._open = None
        self._seen.clear()

    def close(self) -> None:
        """Take the hooks off and let go of everything."""
        for hook in self._hooks:
            hook.remove()
        self.forget()
