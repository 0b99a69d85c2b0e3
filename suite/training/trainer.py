"""The fixed training loop: one run, from its seed to its end. State, step and evaluation have files of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from suite import environment
from suite.data.dataset import Dataset
from suite.protocol import Run
from suite.training.clock import Clock
from suite.training.evaluation import Evaluation
from suite.training.gates import gate_rows
from suite.training.state import Placement, RunState
from suite.training.step import TrainStep
from suite.verdict import outcome

REPLAY_BEFORE = 60  # steps before a crash that the audit replays; the gradient norm was seen to grow over 25 before one
JUDGE_EVERY = 10  # steps between looks at the curve for the early stop

Report = Callable[[int, float], None]
Observer = Callable[[int], None]  # called with the step; may read the trainer and extend its state's log


class Trainer:
    """One run in memory. Every method that trains is a pure function of (run, data, step)."""

    def __init__(self, run: Run, data: Dataset, folder: Path, group: str = "", placement: Placement | None = None) -> None:
        """group: name of the group that the run is trained in (suite.training.group); "" for one alone.

        placement: set where the processes of a launcher hold a part of the model each; all of them then call every
        method.
        """
        self.run, self.data, self.folder, p = run, data, folder, run.protocol
        environment.forget(*environment.OF_ACCELERATE)  # for good: it reads more of them when it prepares
        self.accelerator = Accelerator(
            mixed_precision="bf16" if p.dtype == "bf16" else "no", dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )  # fmt: skip
        self.state = RunState(run, data.shape, data.caption_shape, self.device, self.accelerator.prepare, group, placement)
        self.train_step = TrainStep(run, data, self.state, self.accelerator, alone=not group, micro=placement.micro if placement else None)
        velocity = self.train_step.velocity
        if self.train_step.graphs:
            from suite.training.cuda_graph import Graphed

            velocity = Graphed(velocity)
        shared = self.accelerator if self.state.dit.sharded else None
        self.evaluation = Evaluation(velocity, self.train_step.captions, data, p, together=shared)
        self.clock = Clock()
        self.constant_loss = data.constant_loss(p.patch)
        self.keep_from: int | None = None  # a checkpoint at or before this step must stay, for a replay

    @property
    def device(self):
        """Where the model is."""
        return self.accelerator.device

    def advance(self, before_update: Observer | None = None) -> bool:
        """One optimiser step; False, with the update withheld, if the loss or a gradient is not finite.

        before_update sees the step's clipped gradients, and the weights that they were taken at.
        """
        step = self.state.step + 1
        with self.clock.timed("train" if self.clock.counts["compile"] else "compile"):
            loss, norm = self.train_step.forward_backward(step)
        alive = self.note(step, loss, norm, before_update)
        if alive:
            with self.clock.timed("train", 0):
                self.train_step.update(step)
            self.state.step = step
        return alive

    def note(self, step: int, loss: float, norm: float, before_update: Observer | None = None) -> bool:
        """Enter a step's loss and gradient norm into the curve and let the observer look; whether the update may be applied."""
        self.state.curve.append((step, loss, norm))
        if before_update is not None:
            before_update(step)
        return math.isfinite(loss) and math.isfinite(norm)

    def save(self) -> None:
        """Checkpoint the state, by the first process for all; of a sharded model by all."""
        if self.accelerator.is_main_process or self.state.dit.sharded:
            self.state.save(self.folder, self.keep_from)

    def restore(self, at_most: int | None = None) -> bool:
        """Go back to the newest whole checkpoint (of step `at_most` or earlier); False if there is none."""
        return self.state.restore(self.folder, at_most)

    def judge(self) -> outcome.Verdict:
        """The detector's word on the curve so far."""
        steps, loss, norm = np.asarray(self.state.curve, dtype=float).T
        p = self.run.protocol
        return outcome.judge(
            steps, loss, constant_loss=self.constant_loss, window=p.window, horizon=p.horizon, grad_norm=norm, warmup=p.warmup,
            heldout_loss=self.heldout_loss(),
        )  # fmt: skip

    def heldout_loss(self) -> float | None:
        """The held-out loss at the horizon, or the last before it; None before the first."""
        return next((loss for step, loss in reversed(self.state.evals) if step <= self.run.protocol.horizon), None)

    def finished(self) -> bool:
        """Whether the run ends here: its length, a step that was not finite, or `after_crash` steps beyond a confirmed crash.

        One that has not trained by the time when it should have never will; it goes on `after_crash` steps all the
        same.
        """
        step, curve = self.state.step, self.state.curve
        if step >= self.run.protocol.length or (curve and curve[-1][0] > step):
            return True
        if not curve or step % JUDGE_EVERY:
            return False
        verdict = self.judge()
        if verdict.outcome == "untrained":
            return step > self.run.protocol.after_crash
        if verdict.confirmed:
            self.keep_from = max(0, verdict.crash_step - REPLAY_BEFORE - 1)
        return verdict.confirmed and step >= verdict.crash_step + self.run.protocol.after_crash

    def begin(self) -> None:
        """What comes before the first step."""
        if self.run.protocol.audit_every and self.state.step == 0 and not self.state.curve:
            self.save()  # a crash in the first steps is replayed from here

    def measures_heldout(self) -> bool:
        """Whether the held-out loss is due after this step."""
        p, step = self.run.protocol, self.state.step
        return step % p.heldout_every == 0 or step in (p.horizon, p.length)

    def note_heldout(self, loss: float) -> None:
        """Enter the held-out loss after this step, and what the scheme's gates are then."""
        self.state.evals.append((self.state.step, loss))
        if rows := gate_rows(self.state.dit, self.state.step):
            self.state.log.setdefault("gates", []).extend(rows)

    def checkpoint(self) -> None:
        """Save, where the step is one at which that is due."""
        if self.state.step % self.run.protocol.checkpoint_every == 0:
            self.save()

    def train(
        self, report: Report | None = None, before_update: Observer | None = None, after_update: Observer | None = None
    ) -> None:
        """Train to the end from wherever the run is: fresh, or restored from a checkpoint."""
        state = self.state
        self.begin()
        while not self.finished():
            alive = self.advance(before_update)
            if report:
                report(state.curve[-1][0], state.curve[-1][1])
            if not alive:
                return
            if self.measures_heldout():
                with self.clock.timed("heldout"):
                    self.note_heldout(float(self.evaluation.heldout_loss()))
            if after_update is not None:
                after_update(state.step)
            self.checkpoint()


@dataclass
class Member:
    """A run in memory with its observers."""

    trainer: Trainer
    before_update: Observer | None = None
    after_update: Observer | None = None

    @property
    def run_id(self) -> str:
        return self.trainer.run.run_id
