"""From a run to its record: train it, alone or as one model with others, or go on with it; then measure what it left."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from suite import environment, registry
from suite.data.dataset import DataError, Dataset
from suite.data.load import cached
from suite.isolation.arithmetic import Altered, unchanged
from suite.protocol import Run
from suite.rng import random_state, seeded
from suite.sweep.broken import failure, identity
from suite.sweep.groups import group_id
from suite.sweep.record import auditor_of, record_of
from suite.sweep.scoring import checkpoint_quality
from suite.sweep.work_folder import read_record, save_record, save_trace, work_folder
from suite.training.state import Placement
from suite.training.trainer import Member, Report, Trainer


def _data_of(run: Run) -> Dataset:
    """The data of a run. Raises DataError where they are not, or no longer, those of its plan."""
    data = cached(run.data)
    if data.digest != run.data_digest:
        raise DataError(f"--data {run.data}: its digest is now {data.digest}, the plan was made for {run.data_digest}")
    return data


def execute(run: Run, results: Path, features: str, report: Report | None = None, placement: Placement | None = None) -> dict:
    """Train and measure one run; returns its record for `tables.Store.add`. Resumes from the newest whole checkpoint.

    placement: as `Trainer` has it.
    """
    environment.reset_peak_memory()
    with _alike(run):
        member = _member([run], results, features, run, placement)
        trainer = member.trainer
        trainer.restore()
        with _nothing_drawn(run):
            trainer.train(report, member.before_update, member.after_update)
    first = trainer.accelerator.is_main_process
    record = _record(trainer, [run], results, features) if first or trainer.state.dit.sharded else {}
    return record if first else {}


def load_alone(run: Run, file: str) -> None:
    """Import the file of a run's scheme, the only one that this process may train. Raises RegistryError, also where it changes others."""
    with _alike(run, "its file {}"):
        registry.load(file)
    environment.forget(*environment.OF_TORCH)  # what the file may have put there


@contextmanager
def _alike(run: Run, words: str = "it {}, on which the numbers of all schemes rest") -> Iterator[None]:
    """Refuse a scheme that changes, as it is built or as it trains, what the numbers of all schemes rest on."""
    try:
        with unchanged():
            yield
    except Altered as error:
        raise registry.RegistryError(f"scheme {run.scheme}: {words.format(error)}") from error


@contextmanager
def _nothing_drawn(run: Run) -> Iterator[None]:
    """Refuse a scheme that draws random numbers only later than the plan's look at it: they depend on what ran before.

    What is not training is `seeded`: a library may draw numbers as it is imported.
    """
    before = random_state()
    yield
    if not torch.equal(before[0], random_state()[0]) or before[1] != random_state()[1]:
        raise registry.RegistryError(f"scheme {run.scheme}: it draws random numbers as it trains, which depend on what ran before")


def execute_all(runs: Sequence[Run], results: Path, features: str, report: Report | None = None) -> None:
    """Train and measure a run, or several as one model, and save the record of each as it ends; goes on from what an earlier call left.

    What breaks in one run of several alone, after its training, becomes its record, and the others go on.
    """
    if len(runs) == 1:
        save_record(execute(runs[0], results, features, report), results)
        return

    def finish(member: Member) -> None:
        trainer = member.trainer
        try:
            record = _record(trainer, runs, results, features)
        except Exception as error:
            if failure(error)["status"] == "disk":
                raise
            record = {"run": identity(trainer.run, runs) | failure(error) | {"last_step": trainer.state.curve[-1][0]}}
            save_trace(traceback.format_exc(), results, member.run_id)
        save_record(record, results)

    from suite.training import group  # most runs are trained alone, and many protocols neither audit nor probe

    records = {run.run_id: read_record(results, run.run_id) for run in runs}
    ends = {run_id: record["run"]["last_step"] for run_id, record in records.items() if record}
    environment.reset_peak_memory()
    with _alike(runs[0]), _nothing_drawn(runs[0]):
        group.train(runs, ends, partial(_member, runs, results, features), finish, report)


@seeded("make")
def _member(group: Sequence[Run], results: Path, features: str, run: Run, placement: Placement | None = None) -> Member:
    """A run of a group in memory, with its observers, after a look at whether it is still what the plan says."""
    data = _data_of(run)
    entry = registry.get(run.scheme, run.arm)
    if entry.code_digest(registry.parse_params(entry, run.params)) != run.code_digest:
        raise registry.RegistryError(f"scheme {run.scheme}: its code has changed since the plan was made; plan again")
    trainer = Trainer(run, data, work_folder(results, run.run_id), group_id(group), placement)
    auditor = auditor_of(trainer)
    return Member(trainer, auditor and auditor.before_update, partial(checkpoint_quality, trainer, features))


@seeded("record")
def _record(trainer: Trainer, group: Sequence[Run], results: Path, features: str) -> dict:
    """`record_of`, once it is sure that nobody wrote to the data under the run, whose death would be laid to its scheme."""
    _data_of(trainer.run)
    return record_of(trainer, group, results, features)
