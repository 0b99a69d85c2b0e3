"""A scheme pushed through once before anything is trained, so that what would break, or not give the same twice, is refused in the plan."""

from __future__ import annotations

import torch
from torch import Tensor

from suite import registry
from suite.globalstate import kept, unpatched
from suite.model.flow import generator, random_state, seeded
from suite.residual import Context, Residual, Site

SHAPE, SEGMENTS = (2, 6, 8), (4, 2)  # of a tiny trunk: (B, T, D), and its tokens
STEPS = (0.0, 1e3)  # a scheme with a schedule may differ


class SchemeError(ValueError):
    """A scheme that cannot be trained; the message is one line for the user."""


def try_out(scheme: str, arm: str, params: str, depth: int) -> None:
    """Build a first and a last block's merges twice, and run a tiny trunk through them forward and backward. Raises SchemeError."""
    entry = registry.get(scheme, arm)
    values = registry.parse_params(entry, params)
    try:
        with unpatched(), kept():
            _try(entry.cls, values, depth)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # Ctrl-C
            raise
        what = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        kind = "" if isinstance(error, SchemeError) else f"{type(error).__name__}: "
        raise SchemeError(f"scheme {scheme} ({arm}): {kind}{what}") from error


def _try(cls: type[Residual], values: dict[str, object], depth: int) -> None:
    chain, twin = _build(cls, values, depth), _build(cls, values, depth)
    if not _equal(_tensors(chain), _tensors(twin)):
        raise SchemeError("built again, it holds other numbers: let them follow from torch's, Python's or numpy's global seed alone")
    for step in STEPS:
        before = random_state(), _tensors(chain)
        out = _through(chain, step)
        if not all(map(_equal, random_state(), before[0])):
            raise SchemeError("it draws random numbers as it merges, so that its numbers would depend on what ran before")
        if not _equal(_tensors(chain), before[1]):
            raise SchemeError("it changes its parameters or buffers as it merges, and a run that goes on would not find them again")
        if not torch.equal(out, _through(chain, step)) or not torch.equal(out, _through(twin, step)):
            raise SchemeError("it merges the same trunk into other numbers the second time")


def _build(cls: type[Residual], values: dict[str, object], depth: int) -> list[tuple[str, Residual]]:
    """(site, instance) along a trunk, as the model has them; the first and the last block."""
    chain = []
    for block in sorted({0, depth - 1}):
        for site in ("attn", "ffn"):
            if site == "ffn" and chain[-1][1].shared:
                chain.append((site, chain[-1][1]))
                continue
            with seeded("try out", block, site):
                chain.append((site, cls(Site(SHAPE[-1], depth, block, site), **values)))
    return chain


def _through(chain: list[tuple[str, Residual]], step: float) -> Tensor:
    """The trunk after the chain, and once backward."""
    x_BTD = torch.randn(SHAPE, generator=generator("try out")).requires_grad_()
    x = opened = chain[0][1].open(1.0 * x_BTD)
    for site, instance in chain:
        x = instance(x, lambda x: 0.5 * x, Context(SEGMENTS, site, torch.tensor(step)))
        if not isinstance(x, Tensor) or x.shape != opened.shape:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise SchemeError(f"a trunk of {tuple(opened.shape)} came back as {shape}")
        if not x.isfinite().all():
            raise SchemeError("the merge of finite tensors holds nan or inf")
    out = chain[-1][1].fold(x)
    if not isinstance(out, Tensor) or out.shape != SHAPE:
        raise SchemeError(f"fold gives {tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__} in place of {SHAPE}")
    torch.autograd.grad(out.square().mean(), [x_BTD])
    return out.detach()


def _tensors(chain: list[tuple[str, Residual]]) -> list[Tensor]:
    return [t.detach().clone() for _, instance in chain for t in (*instance.parameters(), *instance.buffers())]


def _equal(a: object, b: object) -> bool:
    """Whether two states, or lists of tensors, are the same to the bit."""
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return len(a) == len(b) and all(map(_equal, a, b)) if isinstance(a, list) else a == b
