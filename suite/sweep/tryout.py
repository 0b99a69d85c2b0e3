"""A scheme pushed through once before anything is trained, so that what would break, or not give the same twice, is refused in the plan."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from suite import registry
from suite.isolation.arithmetic import Altered, unchanged
from suite.residual import Context, Residual, Site
from suite.rng import generator, random_state, seeded
from suite.sweep.plan import SelectionError
from suite.training.factors import of_block

SHAPE, SEGMENTS, HEADS, HIDDEN = (2, 6, 8), (4, 2), 2, 12  # of a tiny trunk: (B, T, D), its tokens, and what the FFN's writer reads
TIMES = (0.25, 0.75)  # t of each sample
GATE = r"[A-Za-z_][A-Za-z0-9_.]{0,39}"
STEPS = (0.0, 1e3)  # a scheme with a schedule may differ


def try_out(scheme: str, arm: str, params: str, depth: int, gate_lr: float) -> None:
    """Build a first and a last block's merges twice, and run a tiny trunk through them forward and backward. Raises SelectionError.

    gate_lr: as in `Run`; a scheme without parameters of its own takes none but 1.
    """
    entry = registry.get(scheme, arm)
    values = registry.parse_params(entry, params)
    try:
        with unchanged():
            chain = _try(entry.cls, values, depth)
            if gate_lr != 1 and not any(True for _, instance in chain for _ in instance.parameters()):
                raise SelectionError("it owns no parameters, so gate_lr changes nothing; leave it out")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # Ctrl-C
            raise
        what = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        kind = "" if isinstance(error, SelectionError | Altered) else f"{type(error).__name__}: "
        raise SelectionError(f"scheme {scheme} ({arm}): {kind}{what}") from error


def _try(cls: type[Residual], values: dict[str, object], depth: int) -> list[tuple[str, Residual]]:
    """(site, instance) of what passed."""
    chain, twin = build(cls, values, depth), build(cls, values, depth)
    for (_, first), (_, second) in zip(chain[::2], chain[1::2], strict=True):
        of_block({"attn": first, "ffn": second})
    for gate, value in (pair for _, instance in chain for pair in instance.gates().items()):
        if not re.fullmatch(GATE, str(gate)) or not isinstance(value, Tensor) or not value.numel() or value.is_complex():
            raise SelectionError(f"gates() gives {str(gate)[:40]!r}: a gate is a tensor of numbers under a name of letters, digits and '_'")
    if not _equal(_tensors(chain), _tensors(twin)):
        raise SelectionError("built again, it holds other numbers: let them follow from torch's, Python's or numpy's global seed alone")
    for step in STEPS:
        before = random_state(), _tensors(chain)
        out = _there_and_back(chain, step)
        if not all(map(_equal, random_state(), before[0])):
            raise SelectionError("it draws random numbers as it merges, so that its numbers would depend on what ran before")
        if not _equal(_tensors(chain), before[1]):
            raise SelectionError("it changes its parameters or buffers as it merges, and a run that goes on would not find them again")
        if not torch.equal(out, _there_and_back(chain, step)) or not torch.equal(out, _there_and_back(twin, step)):
            raise SelectionError("it merges the same trunk into other numbers the second time")
    return chain


def build(cls: type[Residual], values: dict[str, object], depth: int) -> list[tuple[str, Residual]]:
    """(site, instance) along a trunk, as the model has them; the first and the last block."""
    chain = []
    for block in sorted({0, depth - 1}):
        for site in ("attn", "ffn"):
            if site == "ffn" and chain[-1][1].shared:
                chain.append((site, chain[-1][1]))
                continue
            with seeded("try out", block, site):
                chain.append((site, cls(Site(SHAPE[-1], depth, block, site, SHAPE[-1] if site == "attn" else HIDDEN, HEADS), **values)))
    return chain


def _there_and_back(chain: list[tuple[str, Residual]], step: float) -> Tensor:
    """The trunk after the chain, (B, T, D), and once backward."""
    x_BTD = torch.randn(SHAPE, generator=generator("try out")).requires_grad_()
    out_BTD = through(chain, x_BTD, torch.tensor(TIMES), step)
    torch.autograd.grad(out_BTD.square().mean(), [x_BTD])
    return out_BTD.detach()


def through(chain: list[tuple[str, Residual]], x_BTD: Tensor, t_B: Tensor, step: float) -> Tensor:
    """The trunk after the chain, (B, T, D), of any type of numbers. Raises SelectionError where a shape is wrong or a value not finite."""
    contexts = {site: Context(SEGMENTS, site, torch.tensor(step, dtype=x_BTD.dtype), t_B) for site in ("attn", "ffn")}
    x = opened = chain[0][1].open(1.0 * x_BTD, contexts["attn"])
    for site, instance in chain:
        branch = _Branch(instance, site, contexts[site], tuple(x_BTD.shape))
        x = instance(x, branch, contexts[site])
        if branch.calls != 1:
            raise SelectionError(f"it calls its branch {branch.calls} times in a merge; once is what is trained and measured")
        if (shape := _shape(x)) != tuple(opened.shape):
            raise SelectionError(f"a trunk of {tuple(opened.shape)} came back as {shape}")
        if not x.isfinite().all():
            raise SelectionError("the merge of finite tensors holds nan or inf")
    out_BTD = chain[-1][1].fold(x)
    if (shape := _shape(out_BTD)) != tuple(x_BTD.shape):
        raise SelectionError(f"fold gives {shape} in place of {tuple(x_BTD.shape)}")
    return out_BTD


class _Branch:
    """Stands in for attention or the FFN: what its writer reads has the width that it has in a model, and goes through `inner`."""

    def __init__(self, instance: Residual, site: str, ctx: Context, shape: tuple[int, ...]) -> None:
        self.instance, self.site, self.ctx, self.shape, self.calls = instance, site, ctx, shape, 0

    def __call__(self, x_BTD: Tensor) -> Tensor:
        self.calls += 1
        if (shape := _shape(x_BTD)) != self.shape:
            raise SelectionError(f"its branch is given {shape} in place of {self.shape}")
        h = 0.5 * (x_BTD if self.site == "attn" else torch.cat([x_BTD, x_BTD], -1)[..., :HIDDEN])
        inner = self.instance.inner(h, self.ctx)
        if (shape := _shape(inner)) != tuple(h.shape):
            raise SelectionError(f"inner gives {shape} in place of {tuple(h.shape)}")
        return inner[..., : SHAPE[-1]]


def _shape(x: object) -> tuple[int, ...] | str:
    """The shape of a tensor; of anything else what it is."""
    return tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__


def _tensors(chain: list[tuple[str, Residual]]) -> list[Tensor]:
    return [t.detach().clone() for _, instance in chain for t in (*instance.parameters(), *instance.buffers())]


def _equal(a: object, b: object) -> bool:
    """Whether two states, or lists of tensors, are the same to the bit."""
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return len(a) == len(b) and all(map(_equal, a, b)) if isinstance(a, list) else a == b
