"""What a model was called with, and the gradient that the loss sent into what it returned: enough to run the same pass once more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

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


def tensors(value: object) -> Iterator[Tensor]:
    """The tensors in what a model returns: nested tuples, lists, mappings and dataclass-like outputs that are mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


class Call:
    """One forward of the model: inputs by reference, random state and autocast before it, and gradients of its outputs after backward."""

    def __init__(self, args: tuple, kwargs: dict) -> None:
        self.args, self.kwargs = args, kwargs
        inputs = [*tensors(args), *tensors(kwargs)]
        self.devices = sorted({t.device.index for t in inputs if t.device.type == "cuda"})
        self.random = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self.devices]
        kinds = sorted({"cpu", *(t.device.type for t in inputs)})
        self.autocast = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]
        self.batch = next((len(t) for t in inputs if t.ndim), 0)
        self.grads: dict[int, Tensor] = {}

    def returned(self, outputs: object) -> None:
        """Ask for the gradient of every output that may have one and does not feed another output."""
        found = list(tensors(outputs))
        fed = _ancestors([t.grad_fn for t in found if t.grad_fn is not None])
        for i, t in enumerate(found):
            if t.requires_grad and (t.grad_fn is None or t.grad_fn not in fed):
                t.register_hook(lambda grad, i=i: self.grads.__setitem__(i, grad.detach()))

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Random state and autocast as they were; compiled parts run eagerly. `undisturbed` puts the random state back."""
        torch.set_rng_state(self.random[0])
        for device, state in zip(self.devices, self.random[1], strict=True):
            torch.cuda.set_rng_state(state, device)
        with ExitStack() as stack:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            for kind, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield

    def again(self, inner: nn.Module) -> object:
        return inner(*self.args, **self.kwargs)

    def matched(self, outputs: object) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs that had a gradient, and those gradients."""
        found = list(tensors(outputs))
        if not self.grads:
            raise AuditError("no gradient came back into what the model returned; call step behind backward")
        if max(self.grads) >= len(found) or any(found[i].shape != grad.shape for i, grad in self.grads.items()):
            raise AuditError("the model returned something else when it was run again")
        return [found[i] for i in self.grads], list(self.grads.values())


def _ancestors(nodes: list) -> set:
    """The autograd nodes from which these were computed, themselves left out unless another leads to them."""
    seen, todo = set(), [parent for node in nodes for parent, _ in node.next_functions]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return seen


class Watched:
    """Two hooks on the module that a loop calls, outside whatever is compiled in it; they keep what `due()` asks for."""

    def __init__(self, model: nn.Module, due: Callable[[], bool]) -> None:
        self.due, self.calls, self._losses, self._shares, self._open = due, [], [], False, None
        self._hooks = [
            model.register_forward_pre_hook(torch.compiler.disable(self._before), with_kwargs=True),
            model.register_forward_hook(torch.compiler.disable(self._after), with_kwargs=True),
        ]

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._open = Call(args, kwargs) if torch.is_grad_enabled() and module.training and self.due() else None

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, outputs: object) -> None:
        if torch.is_grad_enabled() and module.training:
            self._losses += [t.detach() for t in tensors(outputs) if t.ndim == 0 and t.requires_grad][:1]
            self._shares = kwargs.get("num_items_in_batch") is not None  # transformers: losses of accumulated forwards add up
        if self._open is not None:
            self._open.returned(outputs)
            self.calls = [self._open]
        self._open = None

    def loss(self) -> float:
        """Of the scalars that the forwards of this step returned the mean, or the sum where they are shares; nan where there was none."""
        if not self._losses:
            return math.nan
        return float(torch.stack(self._losses).sum()) / (1 if self._shares else len(self._losses))

    def forget(self) -> None:
        """Let go of inputs and outputs: they belong to the loop."""
        self.calls, self._losses = [], []

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self.forget()
