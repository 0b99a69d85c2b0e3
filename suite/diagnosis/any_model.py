"""The paper's writer metrics on any torch model. Public as `suite.audit.audit`.

Shapes: B samples, T tokens; as in `suite.diagnosis.metrics`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.diagnosis.metrics import tcs, writer_metrics


class AuditError(ValueError):
    """A model or closure that cannot be audited; one line."""


@contextmanager
def captured(weights: dict[int, str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Input and output, by name, of every `F.linear` inside whose weight is one of `weights` (by id).

    Patching the function, not hooking modules, also sees nn.MultiheadAttention, which never calls its out_proj module.
    """
    original, seen = F.linear, {}

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 (torch's own name)
        out = original(input, weight, bias)
        if (name := weights.get(id(weight))) is not None:
            if name in seen:
                raise AuditError(f"writer {name} is called twice in one forward; audit its calls apart")
            seen[name] = (input, out)
            return out.clone()  # what the model does in place to its copy leaves ours as the writer wrote it
        return out

    with mock.patch.object(F, "linear", linear):
        yield seen


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A pass of the model, gradients on, that leaves random states, buffers and what its modules count or collect as they were.

    Buffers are exchanged for copies, not written back: a backward of the caller's may still need the originals. Containers of a module
    get their contents back. A hook inside the network runs once more, and what it keeps elsewhere is its own.
    """
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    states = random.getstate(), np.random.get_state()
    generators = [(g, g.get_state()) for m in model.modules() for g in m.__dict__.values() if isinstance(g, torch.Generator)]
    kept = [(module, dict(module.__dict__), dict(module._buffers), _contents(module)) for module in model.modules()]
    copies = {id(b): b.clone() for b in model.buffers()}
    for module, _, buffers, _ in kept:
        module._buffers.update({name: copies[id(b)] for name, b in buffers.items() if b is not None})
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            yield
    finally:
        for generator, state in generators:
            generator.set_state(state)
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, attributes, buffers, contents in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
            for container, was in contents:
                container.clear()
                (container.extend if isinstance(container, list | deque) else container.update)(was)


def _contents(module: nn.Module) -> list[tuple]:
    """A module's own lists, deques, sets and dictionaries, each with a copy; torch's own attributes begin with _ and are left out."""
    return [(value, value.copy()) for name, value in module.__dict__.items()
            if type(value) in (list, deque, set, dict) and not name.startswith("_")]  # fmt: skip


def token_first(model: nn.Module) -> set[str]:
    """Names of the writers whose rows come token by token: those of nn.MultiheadAttention."""
    return {f"{name}.out_proj" for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}


def by_sample(x: Tensor, batch: int, name: str, token_first: bool, batch_dim: int = 0) -> Tensor:
    """(B, T, width) from (B, T, width), or from rows as nn.MultiheadAttention lays them out: token by token, (T * B, width)."""
    if x.ndim == 3 and x.shape[batch_dim] == batch:
        return x.transpose(0, batch_dim)
    if x.ndim == 2 and token_first and batch and x.shape[0] % batch == 0:
        return x.unflatten(0, (-1, batch)).transpose(0, 1)
    raise AuditError(f"writer {name} sees {tuple(x.shape)}; expected ({batch}, tokens, width)")


def _check(value: object, names: list[str], seen: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Raise AuditError unless a gradient of `value` with respect to every writer's output can be asked for."""
    if missing := [n for n in names if n not in seen]:
        raise AuditError(f"writer {missing[0]} was not called in the forward")
    if not isinstance(value, Tensor) or value.ndim:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise AuditError(f"the loss must be a scalar tensor, not {what}")
    for what, x in [("the loss", value), *((f"writer {n}'s output", seen[n][1]) for n in names)]:
        if not x.requires_grad:
            raise AuditError(f"{what} carries no gradient: frozen weights, detach, no_grad or inference_mode?")


def audit(model: nn.Module, writers: Iterable[str], loss: Callable[[], Tensor], *, batch: int) -> list[dict[str, object]]:
    """The paper's writer metrics on any torch model: one dictionary a writer, in the order given.

    writers: names of nn.Linear modules that write to a residual stream, such as "layers.0.linear2". loss: runs one forward
    of the model and returns a scalar. batch: samples in that forward, B; activations are (B, tokens, width).
    Beside g_mean, g_ctr, amplification, kappa_hat there are `tcs` of the writer's output, `grad` (its gradient norm) and
    `tokens`. Nothing is left behind: no hook, no .grad, no random state, no changed buffer. Raises AuditError.
    """
    modules = dict(model.named_modules())
    names = list(writers)
    if not names:
        raise AuditError("no writers named")
    for name in names:
        if not isinstance(modules.get(name), nn.Linear):
            raise AuditError(f"{name!r} is not an nn.Linear of this model")
    attention = token_first(model)
    with undisturbed(model):
        with captured({id(modules[n].weight): n for n in names}) as seen:
            value = loss()
        _check(value, names, seen)
        deltas = torch.autograd.grad(value, [seen[n][1] for n in names], allow_unused=True)
    if unused := [n for n, delta in zip(names, deltas, strict=True) if delta is None]:
        raise AuditError(f"the loss does not depend on writer {unused[0]}")
    rows = []
    for name, delta in zip(names, deltas, strict=True):
        y, out = (by_sample(t.detach(), batch, name, name in attention) for t in seen[name])
        d_BTD = by_sample(delta, batch, name, name in attention)
        metrics = writer_metrics(d_BTD, y)
        grad = torch.einsum("btd,btf->df", d_BTD.double(), y.double()).norm().item()
        rows.append({"writer": name, **metrics, "grad": grad, "tcs": tcs(out.double()).item(), "tokens": y.shape[1]})
    return rows
