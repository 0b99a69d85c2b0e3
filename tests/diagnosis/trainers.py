"""Small trainers and what the tests of the audit pass do with them."""

from types import SimpleNamespace

import torch

from suite.data.captions import Captions
from suite.verdict.outcome import Verdict

WIDTH, SEGMENTS = 16, (4, 3)


def advance(trainer, steps, observe=None):
    for _ in range(steps):
        trainer.advance(observe)


def stand_in(dit, captions, data, *, run=None, step=0):
    """What the probe and the final state read of a trainer, around a model made by hand."""
    return SimpleNamespace(
        state=SimpleNamespace(dit=dit, step=step), train_step=SimpleNamespace(captions=Captions(captions, -1)),
        data=data, device="cpu", run=run,
    )  # fmt: skip


def crash_at(step):
    return Verdict("collapsed", step, True, 0.7, 2.0, 1.3, 0, 100)


def loud(loss, factors):
    """A training loss that is multiplied at some steps, and with it the gradient norm: {step: factor}."""
    return lambda self, *args: loss(self, *args) * factors.get(int(self.state.dit.step), 1)


def state_of(trainer):
    """All that an audit must leave as it is."""
    grads = [p.grad.clone() for p in trainer.state.dit.parameters()]
    return [trainer.state.flat.values.clone(), trainer.state.flat.grads.clone(), *grads, torch.get_rng_state()]


def unchanged(before, after):
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
