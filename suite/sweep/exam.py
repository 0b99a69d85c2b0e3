"""What the contract asks of a scheme beyond the plan's look at it: that its runs are one another's in every way in which we train them.

A run may be trained eager or compiled, alone or as one model with others, at once or in pieces, and is measured on
batches of other sizes. All that must give one result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from suite import registry
from suite.data.load import cached
from suite.isolation.arithmetic import Altered, unchanged
from suite.protocol import Run
from suite.registry import RegistryError
from suite.residual import Residual
from suite.rng import generator
from suite.sweep.tryout import SHAPE, TIMES, build, through
from suite.training.group_step import GroupStep
from suite.training.trainer import Trainer

STEPS = 6
EAGER = 2e-4  # of a loss: what another order of sums may make of it in STEPS steps
EXACT = 1e-9  # of values of the size of one in float64


def examine(runs: list[Run], folder: Path) -> list[str]:
    """A line for each part, all passed. Raises RegistryError with the first that was not.

    runs: of one scheme in the protocol `smoke`, alike but for their seed. folder: for checkpoints. To be called where
    the scheme's file was loaded.
    """
    run, said = runs[0], []
    entry = registry.get(run.scheme, run.arm)
    values = registry.parse_params(entry, run.params)
    alone = cache(lambda run: _trained(_eager(run), folder))  # what every other way of training is held against
    parts: list[Callable[[], str]] = [
        lambda: _samples(entry.cls, values, run.depth), lambda: _gradients(entry.cls, values, run.depth),
        lambda: _grouped(runs, alone), lambda: _resumed(run, alone, folder), *[lambda: _compiled(run, alone)] * run.compiled,
    ]  # fmt: skip
    for part in parts:
        try:
            with unchanged(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's, on layouts
                said.append(part())
        except Exception as error:
            kind = "" if isinstance(error, Altered | _Failed) else f"{type(error).__name__}: "
            raise RegistryError(f"scheme {run.scheme} ({run.arm}): {kind}{str(error).strip().partition(chr(10))[0]}") from None
    return said


class _Failed(ValueError):
    """Half a line: what the scheme does that it must not."""


def _chain(cls: type[Residual], values: dict[str, object], depth: int) -> list[tuple[str, Residual]]:
    """As `build`, in float64, gates moved a little: at its start many a gate is where its gradient is zero."""
    chain = [(site, instance.double()) for site, instance in build(cls, values, depth)]
    draw = generator("exam")
    with torch.no_grad():
        for _, instance in dict.fromkeys(chain):
            for parameter in instance.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return chain


def _trunk() -> tuple[Tensor, Tensor]:
    """(x_BTD, t_B) in float64."""
    return torch.randn(SHAPE, generator=generator("exam", 1), dtype=torch.float64), torch.tensor(TIMES, dtype=torch.float64)


def _samples(cls: type[Residual], values: dict[str, object], depth: int) -> str:
    chain, (x_BTD, t_B) = _chain(cls, values, depth), _trunk()
    with torch.no_grad():
        whole, alone = through(chain, x_BTD, t_B, 1e3), through(chain, x_BTD[:1], t_B[:1], 1e3)
    if whole.dtype != torch.float64:
        raise _Failed(f"it makes {whole.dtype} of a float64 trunk: create tensors of the trunk's own type (x.new_zeros, not torch.zeros)")
    if not (whole[:1] - alone).abs().max() < EXACT:
        raise _Failed("it mixes the samples of a batch: alone, a sample comes out otherwise")
    return "samples of a batch do not see each other"


def _gradients(cls: type[Residual], values: dict[str, object], depth: int) -> str:
    """A scheme that stops a gradient on purpose is told so, and goes on."""
    chain, (x_BTD, t_B) = _chain(cls, values, depth), _trunk()
    inputs = x_BTD.requires_grad_(), *{p: None for _, instance in chain for p in instance.parameters()}
    try:
        torch.autograd.gradcheck(lambda x_BTD, *_: through(chain, x_BTD, t_B, 1e3), inputs, fast_mode=True, atol=1e-5)
    except torch.autograd.gradcheck.GradcheckError:
        return "NOTE: gradients are not those of finite differences, in float64; as it should be where it stops a gradient, a bug elsewhere"
    return "gradients are those of finite differences, in float64"


Alone = Callable[[Run], Trainer]  # a run trained eager and alone for STEPS steps


def _trained(run: Run, folder: Path) -> Trainer:
    """A trainer after STEPS steps."""
    trainer = Trainer(run, cached(run.data), folder)
    for _ in range(STEPS):
        trainer.advance()
    return trainer


def _losses(trainer: Trainer) -> list[float]:
    return [loss for _, loss, _ in trainer.state.curve]


def _alike(got: Sequence[float], want: Sequence[float], words: str) -> None:
    if not all(abs(a / b - 1) < EAGER for a, b in zip(got, want, strict=True)):
        raise _Failed(words)


def _eager(run: Run) -> Run:
    return replace(run, compiled=False)


def _grouped(runs: list[Run], alone: Alone) -> str:
    members = [Trainer(_eager(run), cached(run.data), Path("unused")) for run in runs]
    group = GroupStep([member.train_step for member in members], compiled=False)
    losses = []
    for step in range(1, STEPS + 1):
        losses.append([loss for loss, _ in group.forward_backward(step)])
        group.update(step, [True] * len(members))
    for run, got in zip(runs, zip(*losses, strict=True), strict=True):
        _alike(got, _losses(alone(run)), "as one model with another run (torch.func.vmap) it has other losses than alone")
    return "as one model with another run it trains as alone"


def _resumed(run: Run, alone: Alone, folder: Path) -> str:
    whole, (first, again) = alone(run), (Trainer(_eager(run), cached(run.data), folder) for _ in range(2))
    for _ in range(STEPS // 2):
        first.advance()
    first.save()
    again.restore()
    while again.state.step < STEPS:
        again.advance()
    if again.state.curve != whole.state.curve or not torch.equal(again.state.flat.values, whole.state.flat.values):
        raise _Failed("stopped and resumed it takes other steps: what it keeps from step to step must be a parameter or a buffer")
    return "stopped and resumed it trains as in one go, to the byte"


def _compiled(run: Run, alone: Alone) -> str:
    _alike(_losses(_trained(run, Path("unused"))), _losses(alone(run)), "compiled it has other losses than eager")
    return "compiled it trains as eager"
