"""The paper's writer metrics on any torch model. Public as `suite.audit.audit`.

Shapes: B samples, T tokens; as in `suite.diagnosis.metrics`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from suite.diagnosis.metrics import tcs, writer_metrics
from suite.diagnosis.recording import AuditError, Recording
from suite.diagnosis.writers import is_linear


class _NoCheckpoint:
    """In place of the reentrant checkpoint, whose forward hides the graph."""

    @staticmethod
    def apply(function: Callable, preserve: bool, *args: object) -> object:
        return function(*args)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """For a pass of our own: gradients on, compiled parts eager, and afterwards the random states of torch, numpy and `random` and all
    buffers as they were. What else a forward advances (counters, lists, generators of its own) it advances.

    Buffers are exchanged for copies, not written back: a backward of the caller's may still need the originals.
    """
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    states = random.getstate(), np.random.get_state()
    kept = [(module, dict(module._buffers)) for module in model.modules()]
    copies = {id(b): b.clone() for b in model.buffers()}
    for module, buffers in kept:
        module._buffers.update({name: copies[id(b)] for name, b in buffers.items() if b is not None})
    try:
        with (
            torch.random.fork_rng(devices=devices), torch.enable_grad(), torch.compiler.set_stance("force_eager"),
            mock.patch.object(torch.utils.checkpoint, "CheckpointFunction", _NoCheckpoint),
        ):  # fmt: skip
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, buffers in kept:
            module._buffers.clear()
            module._buffers.update(buffers)


def audit(model: nn.Module, writers: Iterable[str], loss: Callable[[], Tensor], *, batch: int) -> list[dict[str, object]]:
    """The paper's writer metrics on any torch model: one dictionary a writer, in the order given.

    writers: names of nn.Linear modules, or modules like it, that write to a residual stream, such as
    "layers.0.linear2". loss: runs one forward of the model and returns a scalar. batch: samples in that forward, B;
    activations are (B, tokens, width). Beside g_mean, g_ctr, amplification, kappa_hat there are `tcs` of the writer's
    output, `grad` (its gradient norm) and `tokens`. `loss` is called once, with compiled parts eager. Afterwards
    .grad, buffers and the random states of torch, numpy and `random` are as they were, and no hook is left; what else a
    forward of the model advances (a counter, a generator of its own, a parameter that it writes to) has advanced once.
    A writer that cannot be measured is left out with a warning. Raises AuditError where none can, and where a name is
    that of no linear layer.
    """
    modules, names = dict(model.named_modules()), list(writers)
    if not names:
        raise AuditError("no writers named")
    for name in names:
        if not is_linear(modules.get(name)):
            raise AuditError(f"{name!r} is not an nn.Linear of this model, nor like one")
    with undisturbed(model):
        recording = Recording(model, names, batch, of_output=lambda out: {"tcs": tcs(out.double()).item()})
        try:
            value = loss()
            recording.ended()
            if not isinstance(value, Tensor) or value.ndim:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise AuditError(f"the loss must be a scalar tensor, not {what}")
            if not value.requires_grad:
                raise AuditError("the loss carries no gradient: frozen weights, detach, no_grad or inference_mode?")
            recording.gradients([value])
            rows, left = recording.rows(_of_gradient)
        finally:
            recording.forget()
    said = [f"{', '.join(without)}: {why}" for why, without in left.items()]
    if not rows:
        raise AuditError("; ".join(said))
    if said:
        warnings.warn(f"audit: left out: {'; '.join(said)}", stacklevel=2)
    return rows


def _of_gradient(d_BTD: Tensor, y_BTF: Tensor) -> dict[str, float]:
    grad = torch.einsum("btd,btf->df", d_BTD.double(), y_BTF.double()).norm().item()
    return writer_metrics(d_BTD, y_BTF) | {"grad": grad, "tokens": y_BTF.shape[1]}
