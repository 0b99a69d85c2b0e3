"""A model run once more on the inputs that it had, with the gradient that the loss sent into what it returned: where hooks cannot see."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from suite.diagnosis.any_model import undisturbed
from suite.diagnosis.recording import AuditError, Recording


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


SAMPLED = 4096  # numbers of each output that are kept to compare
ALIKE = 0.05  # of their norm: compiled bfloat16 stays below it in tens of layers (its eps is .8 %), dropout that is off does not


class SecondPass:
    """One forward of a training: inputs by reference, random states, autocast and the modes of its modules, and gradients of its
    outputs after backward.

    `rows` then runs `model` again, with what `record` makes, and takes the result only where the outputs come out
    again (of compiled code that draws at random they cannot): a weight, a buffer or a counter that has changed since the
    forward would give the numbers of another pass.
    """

    def __init__(self, model: nn.Module, args: tuple, kwargs: dict, record: Callable[[], Recording]) -> None:
        self.model, self.args, self.kwargs, self.record = model, _rebuilt(args), _rebuilt(kwargs), record
        inputs = tensors([args, kwargs])
        self.versions = [(t, t._version) for t in inputs]
        devices = sorted({t.device.index for t in inputs if t.device.type == "cuda"})
        self.random = random.getstate(), np.random.get_state(), torch.get_rng_state(), [(torch.cuda.get_rng_state(d), d) for d in devices]
        kinds = sorted({"cpu", *(t.device.type for t in inputs)})
        self.autocast = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]
        self.modes = [(module, module.training) for module in model.modules()]
        self.outputs: dict[int, Tensor] = {}
        self.grads: dict[int, Tensor] = {}
        self.compiled = False  # a part of it at least
        self.twice = False  # a gradient that has a gradient: a penalty, whose second order is not seen
        self.hooks: list = []

    @property
    def came(self) -> bool:
        """Whether a gradient has come back."""
        return bool(self.grads)

    def ended(self, outputs: object) -> None:
        """The forward is over: ask for the gradient of every output that is computed."""
        computed = [(i, t) for i, t in enumerate(tensors(outputs)) if t.grad_fn is not None]
        self.hooks = [t.register_hook(lambda grad, i=i: self._take(i, grad)) for i, t in computed]
        self.outputs = {i: _sample(t) for i, t in computed}
        self.compiled = any("CompiledFunction" in node.name() for _, t in computed for node in (t.grad_fn, *_ancestors(t.grad_fn)))

    def _take(self, i: int, grad: Tensor | None) -> None:
        if grad is not None:  # none: compiled, and the loss does not use this output
            self.twice |= grad.requires_grad
            self.grads[i] = self.grads[i] + grad.detach() if i in self.grads else grad.detach()

    def forget(self) -> None:
        """Let go of inputs and gradients: they belong to the training."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.grads, self.args, self.kwargs, self.versions, self.outputs = [], {}, (), {}, [], {}

    def rows(self, of_gradient: Callable[[Tensor, Tensor], dict]) -> tuple[list[dict], dict[str, list[str]]]:
        """As `Recording.rows`, of the pass that is run here. Raises AuditError where the pass would not be the same."""
        if any(t._version != version for t, version in self.versions):
            raise AuditError("the inputs have been changed in place since the forward")
        if self.twice:
            raise AuditError("the gradient was differentiated again, whose part of it is not seen")
        if not self.grads:
            raise AuditError("no gradient came back into what the model returned; call step behind backward")
        with undisturbed(self.model), self._surroundings():
            recording = self.record()
            try:
                outputs = tensors(self.model(*self.args, **self.kwargs))
                recording.ended()
                drew = not torch.equal(torch.get_rng_state(), self.random[2])
                matched = self._matched(outputs)
                if not (drew and self.compiled):  # compiled dropout draws otherwise than the same uncompiled
                    self._compare(outputs)
                recording.gradients(*matched)
                return recording.rows(of_gradient)
            finally:
                recording.forget()

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Random states, autocast and modes as they were; `undisturbed` puts the random states back."""
        random.setstate(self.random[0])
        np.random.set_state(self.random[1])
        torch.set_rng_state(self.random[2])
        for state, device in self.random[3]:
            torch.cuda.set_rng_state(state, device)
        with ExitStack() as stack:
            for module, training in self.modes:
                stack.callback(setattr, module, "training", module.training)
                module.training = training
            for kind, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield

    def _compare(self, found: list[Tensor]) -> None:
        """Raises AuditError where the outputs are others than the forward's were."""
        for i, was in self.outputs.items():
            if i in self.grads and (_sample(found[i]) - was).norm() > ALIKE * was.norm():
                raise AuditError("the model returned other numbers when it was run again: its weights, or what else it keeps, have changed")

    def _matched(self, found: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs of the second pass and what the loss sent into each directly.

        What came back into an output that feeds others holds their share as well; it is taken off, the last outputs
        first.
        """
        if max(self.grads) >= len(found) or any(found[i].shape != grad.shape for i, grad in self.grads.items()):
            raise AuditError("the model returned something else when it was run again")
        before = {i: _ancestors(found[i].grad_fn) for i in self.grads}
        feeds = {i: [k for k in self.grads if k != i and found[i].grad_fn in before[k]] for i in self.grads}
        direct: dict[int, Tensor] = {}
        for i in sorted(self.grads, key=lambda i: len(feeds[i])):
            shares = [torch.autograd.grad(found[k], found[i], direct[k], retain_graph=True, allow_unused=True)[0] for k in feeds[i]]
            direct[i] = self.grads[i] - sum((share for share in shares if share is not None), start=torch.zeros_like(self.grads[i]))
        return [found[i] for i in direct], list(direct.values())


def _sample(t: Tensor) -> Tensor:
    """Numbers of an output, evenly spread over it, as they are now."""
    with torch.no_grad():
        return t.detach().flatten()[:: max(1, t.numel() // SAMPLED)].float().clone()


def _ancestors(last) -> set:
    """The autograd nodes from which one was computed."""
    seen, todo = set(), [parent for parent, _ in last.next_functions]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return seen
