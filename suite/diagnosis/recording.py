"""What the writers of a network read and write in one ordinary forward, and the gradients that come back to them.

Nothing is run again and nothing is put back: the hooks are there for one forward, and the gradients come by hooks on
tensors. Shapes: B samples, T tokens, D a writer's output width, F its input's; y is its input, d the gradient of its
output.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from suite.diagnosis.guard import in_a_line
from suite.diagnosis.writers import is_writer

OTHERWISE = "Monitor(second_pass=True) can see it"


class AuditError(ValueError):
    """A model, a closure or a writer that cannot be measured; one line."""


class Hook:
    """A hook that a compiler traces as nothing (unless traced), that does nothing in a copy of its module and can be saved with it."""

    def __init__(self, module: nn.Module | None = None, call: Callable | None = None, traced: bool = False) -> None:
        self.module, self.call, self.traced = module, call, traced

    def __call__(self, module: nn.Module, *args: object) -> object:
        if (self.traced or not torch.compiler.is_compiling()) and module is self.module:
            return self.call(*args)
        return None

    def __reduce__(self):
        return Hook, ()


class Writer:
    """One writer in one forward: its input `y_BTF`, what is `seen` in its output and the gradient `d`; or `why` it cannot be measured.

    live: in a training's own forward, whose backward brings the gradient.
    """

    def __init__(self, name: str, of_output: Callable[[Tensor], dict], by_sample: Callable[[Tensor], Tensor], live: bool) -> None:
        self.name, self.of_output, self.by_sample, self.live, self.calls = name, of_output, by_sample, live, 0
        self.why = "was not called" + (f" where a hook sees it; if it is compiled, {OTHERWISE}" if live else " in the forward")
        self.y_BTF = self.d = self.edge = self.hook = None

    def called(self, args: tuple, kwargs: dict, result: Tensor | tuple) -> Tensor | tuple | None:
        """The module was called and has written the result, or the first of a tuple. Returns a copy: the model may change it in place."""
        self.calls += 1
        try:
            y = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            out = result[0] if type(result) is tuple and result else result  # Megatron's layers return their bias beside it
            if y is None or not isinstance(out, Tensor):
                raise AuditError(f"takes and returns no tensors ({type(result).__name__})")
            if self.calls > 1:
                raise AuditError("is called more than once in a forward")
            if self.live and _checkpointed():
                raise AuditError(f"is checkpointed, so that its input is not kept; {OTHERWISE}")
            if not out.requires_grad:
                raise AuditError("carries no gradient: frozen weights, detach, no_grad or inference_mode?")
            with _exact(out):
                self.seen = self.of_output(self.by_sample(out.detach()))
            self.y_BTF = self.by_sample(y.detach())
            self.version, self.why = self.y_BTF._version, "got no gradient: the loss does not depend on it, or no backward came"
            if self.live:
                self.hook = out.register_hook(self.take)
            else:
                self.edge = get_gradient_edge(out)
            return (out.clone(), *result[1:]) if out is not result else out.clone()
        except Exception as error:  # this writer alone is lost
            self.leave(in_a_line(error))
            return None

    def take(self, d: Tensor | None) -> None:
        """A gradient of the output, by reference; those of several backwards are added up."""
        if d is None or self.y_BTF is None:
            return
        try:
            if d.requires_grad:
                raise AuditError("has a gradient that is differentiated again, whose part of it is not seen")
            self.d, self.why = d if self.d is None else self.d + d, ""
        except Exception as error:
            self.leave(in_a_line(error))

    def measured(self, of_gradient: Callable[[Tensor, Tensor], dict]) -> dict[str, object]:
        """Its row; raises AuditError where there is `why` not."""
        if not self.why and self.y_BTF._version != self.version:
            self.why = "has an input that was changed in place"
        if self.why:
            raise AuditError(self.why)
        with _exact(self.d):
            return {"writer": self.name} | of_gradient(self.by_sample(self.d.detach()), self.y_BTF) | self.seen

    def leave(self, why: str) -> None:
        self.forget()
        self.why = why

    def forget(self) -> None:
        if self.hook is not None:
            self.hook.remove()
        self.y_BTF = self.d = self.edge = self.hook = None


class _OutProjection:
    """An nn.MultiheadAttention reads the weight of its out_proj and never calls it: F.linear is watched while it runs."""

    def __init__(self, attention: nn.MultiheadAttention, writer: Writer) -> None:
        self.attention, self.writer, self.original = attention, writer, None

    def before(self, *_: object) -> None:
        original, weight = F.linear, self.attention.out_proj.weight

        def linear(input: Tensor, weight_: Tensor, bias: Tensor | None = None) -> Tensor:
            out = original(input, weight_, bias)
            copy = self.writer.called((input,), {}, out) if weight_ is weight and self.original is not None else None
            return out if copy is None else copy

        self.original, F.linear = original, linear

    def after(self, *_: object) -> None:
        if self.original is not None:
            F.linear, self.original = self.original, None


class Recording:
    """The named writers in one forward, from its making to `ended`; the gradients until `forget`.

    batch: samples in that forward, along batch_dim of its inputs. of_output: what is kept of a writer's output (B, T,
    D). live: the forward is a training's own, as is the backward; else the backward is `gradients`. around: the
    wrappers of the model.
    """

    def __init__(
        self, model: nn.Module, names: Iterable[str], batch: int, batch_dim: int = 0, *, of_output: Callable[[Tensor], dict[str, Tensor]],
        live: bool = False, around: Sequence[nn.Module] = (),
    ) -> None:  # fmt: skip
        self.writers: list[Writer] = []
        self._hooks, self._projections, modules = [], [], dict(model.named_modules())
        try:
            for name in names:
                projection = isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention)
                shaped = partial(by_sample, batch=batch, batch_dim=batch_dim, token_first=projection)
                self.writers.append(writer := Writer(name, of_output, shaped, live))
                path = [m for above, m in modules.items() if not above or f"{name}.".startswith(f"{above}.")]
                if not is_writer(modules.get(name)):
                    writer.leave("is no linear layer of this model any more")
                elif live and (why := _hidden([*around, *path])):
                    writer.leave(why)
                else:
                    self._hook(writer, path[-2 if projection else -1])
        except BaseException:
            self.ended()
            raise

    def _hook(self, writer: Writer, module: nn.Module) -> None:
        if isinstance(module, nn.MultiheadAttention):
            watch = _OutProjection(module, writer)
            self._projections.append(watch)
            self._hooks.append(module.register_forward_pre_hook(Hook(module, watch.before), prepend=True))
            self._hooks.append(module.register_forward_hook(Hook(module, watch.after), always_call=True))
        else:
            self._hooks.append(module.register_forward_hook(Hook(module, writer.called), with_kwargs=True, prepend=True))

    @property
    def came(self) -> bool:
        """Whether a gradient has come back."""
        return any(writer.d is not None for writer in self.writers)

    def ended(self, outputs: object = None) -> None:
        """The forward is over, or broken off: no hook stays in the network."""
        for hook in self._hooks:
            hook.remove()
        for projection in self._projections:
            projection.after()
        self._hooks = []

    def gradients(self, roots: list[Tensor], grads: list[Tensor] | None = None) -> None:
        """The backward of a forward that is ours: from roots to the writers' outputs, leaving every .grad as it is."""
        writers = [writer for writer in self.writers if writer.edge is not None]
        if writers:
            found = torch.autograd.grad(roots, [writer.edge for writer in writers], grads, allow_unused=True)
            for writer, d in zip(writers, found, strict=True):
                writer.take(d)

    def rows(self, of_gradient: Callable[[Tensor, Tensor], dict]) -> tuple[list[dict], dict[str, list[str]]]:
        """A row for each writer that was measured, and the names of the others by reason."""
        rows, left = [], {}
        for writer in self.writers:
            try:
                rows.append(writer.measured(of_gradient))
            except Exception as error:
                left.setdefault(in_a_line(error), []).append(writer.name)
        return rows, left

    def forget(self) -> None:
        """Let go of all tensors: they belong to the training."""
        self.ended()
        for writer in self.writers:
            writer.forget()


@contextmanager
def _exact(x: Tensor) -> Iterator[None]:
    """For sums of our own in the midst of a training: without gradients, and in the type of what they are made of."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        yield


def by_sample(x: Tensor, batch: int, token_first: bool, batch_dim: int = 0) -> Tensor:
    """(B, T, width) from (B, T, width), or from rows as nn.MultiheadAttention lays them out: token by token, (T * B, width)."""
    if x.ndim == 3 and x.shape[batch_dim] == batch:
        return x.transpose(0, batch_dim)
    if x.ndim == 2 and token_first and batch and x.shape[0] % batch == 0:
        return x.unflatten(0, (-1, batch)).transpose(0, 1)
    raise AuditError(f"sees {tuple(x.shape)}; expected ({batch}, tokens, width)")


def _hidden(path: Sequence[nn.Module]) -> str:
    """Why the last of these, each the parent of the next, must not have a hook in a training's forward, or ""."""
    for module in path:
        if module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable"):
            return f"is compiled, where no hook runs; {OTHERWISE}"
        if isinstance(module, nn.TransformerEncoderLayer) and not (module.training or any(p.requires_grad for p in module.parameters())):
            return "is frozen, and a hook would take its layer off torch's fast path"
    return ""


def _checkpointed() -> bool:
    """Whether a function of torch.utils.checkpoint is running."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != torch.utils.checkpoint.__file__:
        frame = frame.f_back
    return frame is not None
