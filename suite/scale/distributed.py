"""One run in several processes, under `accelerate launch`: every process trains, the first one writes.

Each holds the whole model (data parallel), or under Accelerate's settings for FSDP2 a part of it (sharded), then also
where the launcher starts one process alone, so that a run can go on with another number of them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from suite import environment
from suite.environment import processes
from suite.isolation.catalogue import Catalogue
from suite.protocol import Run
from suite.records.store import Store
from suite.scale import sharded
from suite.scale.memory import micro_rows, sharded_state, size_of
from suite.scale.price import CARD, SPARE, shapes_of
from suite.sweep.claim import Claim
from suite.sweep.execute import execute, load_alone
from suite.sweep.plan import say_quality

PATIENCE = timedelta(hours=4)  # that the others wait for the first process while it scores or writes; torch's ten minutes are short

SHARDERS = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM", "PARALLELISM_CONFIG": "a parallelism config"}


def run_distributed(runs: list[Run], results: Path, features: str, catalogue: Catalogue) -> int:
    """Train the one run of the selection with the same global batch as a single process; returns the exit status.

    Gradients are averages of the processes' shares, so curves agree with a single process within rounding, not to the
    byte; `processes` in runs.csv tells them apart. The run is held as a sweep holds it: a second launcher, or a
    launcher beside a sweep, says so and gives up. Raises ValueError unless the selection is exactly one run, and
    under what shards a model. This process imports the file of the run's scheme, and no other.
    """
    for name, word in SHARDERS.items():
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes"):
            raise ValueError(f"the training loop shards by Accelerate's FSDP2 alone: launch without {word}")
    if len(runs) != 1:
        raise ValueError(f"under a launcher exactly one run is trained; this selection has {len(runs)}: narrow it with the flags of plan")
    run, world = runs[0], processes()
    sharding = sharded.read(run.protocol) if environment.sharding_wanted() else None
    if run.protocol.batch % world:
        raise ValueError(f"a batch of {run.protocol.batch} does not divide into {world} processes")
    catalogue.rest()
    load_alone(run, catalogue.get(run.scheme, run.arm).file)
    if not torch.cuda.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # unsaid, Accelerate finds no backend: each process would train alone
    store, claim = Store(results / run.protocol.name), Claim(results, run.run_id)
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    same = len(set(gather_object([run.run_id]))) == 1
    word = micro = fault = None
    if state.is_main_process:  # one process looks and holds for all, so that all do the same
        try:
            if not same:
                raise ValueError(f"{run.label()}: the processes do not plan the same run; give them the same data, code and compiler")
            if not claim.take():
                raise ValueError(f"{run.label()}: another sweep or launcher holds this run; call again when it has ended")
            word = "done" if run.run_id in store.done_ids() else "train"
            if word == "train":
                say_quality([run], features)
                micro = _micro(run, world) if sharding else None
        except ValueError as error:
            fault = str(error)
            print(f"error: {fault}", file=sys.stderr)
    word, micro, fault = broadcast_object_list([word, micro, fault])
    sharding = sharding and replace(sharding, micro=micro)
    try:
        if fault:
            return 2
        if word == "train" and (record := execute(run, results, features, placement=sharding)):
            store.add(record)
        word = "done"
    finally:
        if state.is_main_process:
            claim.drop(clear=word == "done")
    return 0


def _micro(run: Run, world: int) -> int | None:
    """Rows of a process's share that fit a GPU at a time; None on a CPU: all. Raises ValueError where not one fits."""
    if not torch.cuda.is_available() or environment.cpu_wanted():
        return None
    shapes = shapes_of(run)
    free = min(CARD, torch.cuda.get_device_properties(0).total_memory) - SPARE - sharded_state(size_of(run, *shapes), world)
    return micro_rows(run, world, free, *shapes)
