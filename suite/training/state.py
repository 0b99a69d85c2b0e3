"""The state of a run: what a checkpoint holds, and all that a step changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from suite import registry
from suite.model.backbone import DiT
from suite.protocol import Protocol as Settings
from suite.protocol import Run
from suite.residual import Residual, Site
from suite.rng import seeded
from suite.training import factors
from suite.training.optim import FlatParameters


class Placement(Protocol):
    """Where a model's parameters lie, if not whole in this process (suite/scale/sharded.py)."""

    micro: int | None  # as `TrainStep` has it

    def place(self, dit: DiT, p: Settings, device: torch.device, draw: Callable[..., None]) -> FlatParameters:
        """Draw the weights as they are placed; what is returned does what `FlatParameters` does with a run's state."""
        ...


def build_model(run: Run, shape: tuple[int, int, int], caption_shape: tuple[int, int] | None = None) -> DiT:
    """The run's model for images of a shape (C, H, W), weights not drawn. Works under `torch.device("meta")`.

    caption_shape: (S, D) of the captions, None for those that the protocol makes.
    """
    p, entry = run.protocol, registry.get(run.scheme, run.arm)
    values = registry.parse_params(entry, run.params)

    def scheme(site: Site) -> Residual:
        with seeded(run.seed, site.block, site.site, run.scheme):  # so that a run does not depend on what was built before it
            return entry.cls(site, **values)

    tokens, caption_width = caption_shape or (p.caption_tokens, p.width)
    with seeded(run.seed, "model"):  # PyTorch's layers draw weights as they are made, which `init_weights` draws again
        return DiT(
            width=p.width, heads=p.heads, ffn=p.ffn, depth=run.depth, patch=p.patch, channels=shape[0], image_size=shape[1],
            caption_tokens=tokens, caption_width=caption_width, checkpoint_blocks=p.checkpoint_blocks, scheme=scheme,
            mixing=p.mixing, gated=p.gated,
        )  # fmt: skip


class RunState:
    """Weights and optimiser state after `step` updates, and what the run has recorded so far."""

    def __init__(
        self, run: Run, shape: tuple[int, int, int], caption_shape: tuple[int, int] | None, device: torch.device, prepare: Callable,
        group: str, placement: Placement | None = None,
    ) -> None:  # fmt: skip
        """Draw the weights on a CPU, move them to `device`. prepare: what Accelerate does to an optimiser.

        group: name of the group that the run is trained in, which rounds otherwise: a checkpoint is for one group's
        members alone. placement: set where all processes hold a part of the model each.
        """
        p, self.owner = run.protocol, run.run_id + (f" of group {group}" if group else "")
        self.dit = build_model(run, shape, caption_shape)
        draw = partial(self.dit.init_weights, run.seed, init=p.init, writers=run.writers, final=p.final)
        gate_lr = run.gate_lr
        adam = {"betas": (p.beta1, p.beta2), "eps": p.adam_eps, "weight_decay": p.weight_decay, "gate_lr": gate_lr}
        if placement is not None:
            self.parameters = placement.place(self.dit, p, device, draw)
            self.optimizer = self.parameters.adamw(**adam)
        else:
            draw()
            self.dit.to(device)
            self.parameters = FlatParameters(self.dit, factors=factors.of_model(self.dit))
            self.optimizer = prepare(self.parameters.adamw(**adam))
        self.step = 0
        self.curve: list[tuple[int, float, float]] = []  # step, loss, grad_norm
        self.evals: list[tuple[int, float]] = []  # step, held-out loss
        self.log: dict[str, list[dict]] = {}  # rows of further tables, gathered by observers

    @property
    def flat(self) -> FlatParameters:
        """The parameters of a model that lies whole in this process."""
        assert isinstance(self.parameters, FlatParameters)
        return self.parameters

    @property
    def second_moment(self) -> Tensor | None:
        """Adam's v over the flat buffer, before this step's update; None at the first step."""
        return self.flat.second_moment(self.optimizer)

    def save(self, folder: Path, keep_from: int | None = None) -> None:
        """Write a checkpoint of this step. keep_from: one at or before that step stays too, for a replay."""
        history = {"curve": torch.tensor(self.curve, dtype=torch.float64).reshape(-1, 3)}
        history["evals"] = torch.tensor(self.evals, dtype=torch.float64).reshape(-1, 2)
        self.parameters.save(folder, self.step, self.owner, self.optimizer, history, self.log, keep_from)

    def restore(self, folder: Path, at_most: int | None = None) -> bool:
        """Go back to the newest whole checkpoint (of step `at_most` or earlier); False if there is none."""
        found = self.parameters.restore(folder, self.owner, self.optimizer, at_most)
        if found is None:
            return False
        self.step, history, self.log = found
        self.curve = [(int(s), loss, norm) for s, loss, norm in history["curve"].reshape(-1, 3).tolist()]
        self.evals = [(int(s), loss) for s, loss in history["evals"].tolist()]
        return True
