"""What a model was called with, and the gradient that the loss sent into what it returned: enough to run the same pass once more."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from suite.diagnosis.any_model import AuditError


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.compile's, DataParallel's and DDP's wrappers."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def tensors(value: object) -> list[Tensor]:
    """The different tensors in what a model takes or returns: nested tuples, lists, mappings and dataclasses."""
    return list({id(t): t for t in _tensors(value)}.values())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for part in dataclasses.fields(value):
            yield from _tensors(getattr(value, part.name))


def _rebuilt(value: object) -> object:
    """The same with containers of its own, so that what a forward appends stays with its copy."""
    if type(value) in (list, tuple):
        return type(value)(_rebuilt(part) for part in value)
    if type(value) is dict:
        return {name: _rebuilt(part) for name, part in value.items()}
    return value


class Call:
    """One forward of the model: inputs by reference, random states and autocast before it, and gradients of its outputs after backward."""

    def __init__(self, args: tuple, kwargs: dict) -> None:
        self.args, self.kwargs = _rebuilt(args), _rebuilt(kwargs)
        self.inputs = tensors([args, kwargs])
        self.versions = [t._version for t in self.inputs]
        self.devices = sorted({t.device.index for t in self.inputs if t.device.type == "cuda"})
        self.random = random.getstate(), np.random.get_state(), torch.get_rng_state(), [torch.cuda.get_rng_state(d) for d in self.devices]
        kinds = sorted({"cpu", *(t.device.type for t in self.inputs)})
        self.autocast = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]
        self.grads: dict[int, Tensor] = {}
        self.twice = False  # a gradient that has a gradient: a penalty, whose second order is not seen
        self.hooks: list = []

    def returned(self, outputs: object) -> None:
        """Ask for the gradient of every output that is computed."""
        computed = [(i, t) for i, t in enumerate(tensors(outputs)) if t.grad_fn is not None]
        self.hooks = [t.register_hook(lambda grad, i=i: self._take(i, grad)) for i, t in computed]

    def _take(self, i: int, grad: Tensor) -> None:
        self.twice |= grad.requires_grad
        self.grads[i] = self.grads[i] + grad.detach() if i in self.grads else grad.detach()

    def forget(self) -> None:
        for hook in self.hooks:
            hook.remove()

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Random states and autocast as they were; compiled parts run eagerly. `undisturbed` puts the random states back."""
        if [t._version for t in self.inputs] != self.versions:
            raise AuditError("the inputs have been changed in place since the forward")
        if self.twice:
            raise AuditError("the gradient was differentiated again, whose part of it is not seen")
        random.setstate(self.random[0])
        np.random.set_state(self.random[1])
        torch.set_rng_state(self.random[2])
        for device, state in zip(self.devices, self.random[3], strict=True):
            torch.cuda.set_rng_state(state, device)
        with ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            for kind, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield

    def again(self, inner: nn.Module) -> object:
        return inner(*self.args, **self.kwargs)

    def matched(self, outputs: object) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs of the second pass and what the loss sent into each directly.

        What came back into an output that feeds others holds their share as well; it is taken off, the last outputs first.
        """
        found = tensors(outputs)
        if not self.grads:
            raise AuditError("no gradient came back into what the model returned; call step behind backward")
        if max(self.grads) >= len(found) or any(found[i].shape != grad.shape for i, grad in self.grads.items()):
            raise AuditError("the model returned something else when it was run again")
        before = {i: _ancestors(found[i].grad_fn) for i in self.grads}
        feeds = {i: [k for k in self.grads if k != i and found[i].grad_fn in before[k]] for i in self.grads}
        direct: dict[int, Tensor] = {}
        for i in sorted(self.grads, key=lambda i: len(feeds[i])):
            shares = [torch.autograd.grad(found[k], found[i], direct[k], retain_graph=True, allow_unused=True)[0] for k in feeds[i]]
            direct[i] = self.grads[i] - sum((share for share in shares if share is not None), start=torch.zeros_like(self.grads[i]))
        return [found[i] for i in direct], list(direct.values())


def _ancestors(last) -> set:
    """The autograd nodes from which one was computed."""
    seen, todo = set(), [parent for parent, _ in last.next_functions]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return seen


class _Hook:
    """A hook that does nothing in a copy of the model, and does not stand in the way of saving it."""

    def __init__(self, call: Callable | None) -> None:
        self.call = call

    def __call__(self, *args: object) -> None:
        if self.call is not None:
            self.call(*args)

    def __reduce__(self):
        return _Hook, (None,)


class Watched:
    """Two hooks on the module that a loop calls, outside whatever is compiled in it; they keep what `due()` asks for."""

    def __init__(self, model: nn.Module, due: Callable[[], bool]) -> None:
        self.due, self.calls, self._losses, self._shares, self._open, self.busy = due, [], [], False, None, False
        self._hooks = [
            model.register_forward_pre_hook(_Hook(torch.compiler.disable(self._before)), with_kwargs=True, prepend=True),
            model.register_forward_hook(_Hook(torch.compiler.disable(self._after)), with_kwargs=True),
        ]

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._open = None
        if torch.is_grad_enabled() and not self.busy and self.due():
            try:
                self._open = Call(args, kwargs)
            except (RuntimeError, AttributeError, RecursionError):  # inputs that hold no numbers; the step is not measured
                return

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, outputs: object) -> None:
        if not torch.is_grad_enabled() or self.busy:
            return
        try:
            self._losses += [t.detach() for t in tensors(outputs) if t.ndim == 0 and t.requires_grad][:1]
            self._shares = kwargs.get("num_items_in_batch") is not None  # transformers: losses of accumulated forwards add up
            if self._open is not None:
                self._open.returned(outputs)
                self.calls.append(self._open)
        except RecursionError:
            pass
        self._open = None

    def last(self) -> Call:
        """The last forward of this step into which a gradient came back."""
        if not self.calls:
            raise AuditError("no forward of the model was seen; give Monitor the module that the loop calls")
        return next((call for call in reversed(self.calls) if call.grads), self.calls[-1])

    def loss(self) -> float | None:
        """Of the scalars that the forwards of this step returned the mean, or the sum where they are shares; None where there was none."""
        if not self._losses:
            return None
        return float(torch.stack(self._losses).sum()) / (1 if self._shares else len(self._losses))

    def forget(self) -> None:
        """Let go of inputs and outputs: they belong to the loop."""
        for call in self.calls:
            call.forget()
        self.calls, self._losses = [], []

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.forget()
