"""The fixed training loop of a group: runs that share everything but learning rate and seed, trained as one model in step with each other.

Each has the curve, held-out losses, checkpoints and end that it has alone. A run that has ended stays in the model as
a row that nothing reads, until half of the rows are such; then the model is made anew from the others, of two rows at
least, since products of one matrix round otherwise than those of several. So the width of the model at a step is a
function of where the runs end, and a group that was stopped and goes on takes the same steps at the same widths.
Under an audit the width stays, since a replay takes steps again and must find the same kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from suite.protocol import Run
from suite.training.clock import together
from suite.training.evaluation import Evaluation
from suite.training.group_step import GroupStep
from suite.training.trainer import Member, Report

Make = Callable[[Run], Member]
Finish = Callable[[Member], None]  # called as a run ends, its weights as they were then, before the others go on


def train(runs: Sequence[Run], ends: dict[str, int], make: Make, finish: Finish, report: Report | None = None) -> None:
    """Train the runs to their ends, from wherever they are: fresh, or restored from checkpoints.

    ends: by run_id the last step of those that an earlier call has finished; the others are entered as they end.
    report: told the median loss of the runs that go on.
    """
    members = _restored([run for run in runs if run.run_id not in ends], make)
    step, rows, shrinks = (members[0].trainer.state.step if members else 0), list(runs), not runs[0].protocol.audit_every
    known = {member.run_id: member for member in members}
    while rows:
        if any(run.run_id not in ends for run in rows) and _width_ends(rows, ends, shrinks) >= step:
            known |= {run.run_id: make(run) for run in rows if run.run_id not in known}
            step = _Phase([known[run.run_id] for run in rows], ends, finish, report).train(step, shrinks)
        last = _width_ends(rows, ends, shrinks)
        stay = [run for run in rows if ends.get(run.run_id, math.inf) > last]
        rows = stay if len(stay) != 1 else [*stay, next(run for run in rows if run not in stay)]


def _width_ends(rows: Sequence[Run], ends: dict[str, int], shrinks: bool) -> float:
    """The last step at which these are the rows, as half of them, or all, have ended; infinity where that is not known yet."""
    enough = len(rows) - len(rows) // 2 if shrinks and len(rows) > 3 else len(rows)
    return sorted(ends.get(run.run_id, math.inf) for run in rows)[enough - 1]


def _restored(runs: Sequence[Run], make: Make) -> list[Member]:
    """Members at one step, the newest that all have a whole checkpoint of; fresh ones where there is none."""
    members, at = [make(run) for run in runs], None
    while members:
        if not all([member.trainer.restore(at) for member in members]):
            return [make(run) for run in runs]
        steps = {member.trainer.state.step for member in members}
        if len(steps) == 1:
            break
        at = min(steps)
    return members


class _Phase:
    """A stretch of training at one width: the rows of the model, and which of them have ended."""

    def __init__(self, rows: Sequence[Member], ends: dict[str, int], finish: Finish, report: Report | None) -> None:
        first = rows[0].trainer
        self.rows, self.ends, self.finish, self.report, self.p = rows, ends, finish, report, first.run.protocol
        self.joint = GroupStep([member.trainer.train_step for member in rows], first.run.compiled)
        self.evaluation = Evaluation(self.joint.velocity, first.train_step.captions, first.data, self.p, (len(rows),))

    def active(self) -> list[Member]:
        return [member for member in self.rows if member.run_id not in self.ends]

    def train(self, step: int, shrinks: bool) -> int:
        """Go on from `step` for as long as this width lasts; the step that was reached."""
        for member in self.active():
            member.trainer.begin()
        self.end(step)
        while _width_ends([member.trainer.run for member in self.rows], self.ends, shrinks) > step:
            step += 1
            self.advance(step)
            self.milestones(step)
            self.end(step)
        return step

    def advance(self, step: int) -> None:
        """One optimiser step of every run that has not ended, with the update of one that is not finite withheld."""
        active = self.active()
        clocks = [member.trainer.clock for member in active]
        with together(clocks, "train" if clocks[0].counts["compile"] else "compile"):
            results = self.joint.forward_backward(step)
        applied = [
            member.run_id not in self.ends and member.trainer.note(step, *result, member.before_update)
            for member, result in zip(self.rows, results, strict=True)
        ]
        with together(clocks, "train", 0):
            self.joint.update(step, applied)
        for member, wanted in zip(self.rows, applied, strict=True):
            if wanted:
                member.trainer.state.step = step
        if self.report:
            losses = sorted(member.trainer.state.curve[-1][1] for member in active)
            self.report(step, losses[len(losses) // 2])

    def milestones(self, step: int) -> None:
        """Held-out losses, observers and checkpoints, where this step is one of theirs."""
        here = [member for member in self.rows if member.run_id not in self.ends and member.trainer.state.step == step]
        clocks = [member.trainer.clock for member in here]
        if here and here[0].trainer.measures_heldout():
            with together(clocks, "heldout"):
                losses = dict(zip((member.run_id for member in self.rows), self.evaluation.heldout_loss().tolist(), strict=True))
            for member in here:
                member.trainer.note_heldout(losses[member.run_id])
        if here and step in self.p.quality_at:
            self.draw(here)
        for member in here:
            if member.after_update is not None:
                member.after_update(step)
            member.trainer.checkpoint()

    def draw(self, whose: Sequence[Member]) -> None:
        """Samples of all rows at once, for those who will ask for them at this step."""
        if self.p.fid_samples:
            with together([member.trainer.clock for member in whose], "sample", 0):
                samples, labels = self.evaluation.sample(self.p.fid_samples)
            for member, own in zip(self.rows, samples, strict=True):
                member.trainer.evaluation.drawn = own, labels

    def end(self, step: int) -> None:
        """Finish the runs that end at this step."""
        leaving = [member for member in self.active() if member.trainer.finished()]
        if leaving and step == self.p.length:
            self.draw(leaving)
        for member in leaving:
            self.ends[member.run_id] = step
            self.finish(member)
        for member in self.rows:
            member.trainer.evaluation.drawn = None
