"""One run in data-parallel processes, under `accelerate launch`: every process trains, the first one writes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from suite.execute import execute
from suite.protocol import Run
from suite.sweep import Claim
from suite.tables import Store
from suite.whole import done_ids


def launched() -> bool:
    """Whether this process is one of several that a launcher started together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def run_distributed(runs: list[Run], results: Path, features: str) -> int:
    """Train the one run of the selection with the same global batch as a single process; returns the exit status.

    Gradients are averages of the processes' shares, so curves agree with a single process within rounding, not to the
    byte; `processes` in runs.csv tells them apart. The run is held as a sweep holds it: a second launcher, or a launcher beside
    a sweep, says so and gives up. Raises ValueError unless the selection is exactly one run.
    """
    if len(runs) != 1:
        raise ValueError(f"under a launcher exactly one run is trained; this selection has {len(runs)}: narrow it with the flags of plan")
    run, world = runs[0], int(os.environ["WORLD_SIZE"])
    if run.protocol.batch % world:
        raise ValueError(f"a batch of {run.protocol.batch} does not divide into {world} processes")
    store, claim = Store(results / run.protocol.name), Claim(results, run.run_id)
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    word = None
    if state.is_main_process:  # one process looks and holds for all, so that all do the same
        word = "hold" if not claim.take() else "done" if run.run_id in done_ids(store) else "train"
    (word,) = broadcast_object_list([word])
    try:
        if word == "hold":
            if state.is_main_process:
                print(f"error: {run.label()}: another sweep or launcher holds this run; call again when it has ended", file=sys.stderr)
            return 2
        if word == "train" and (record := execute(run, results, features)):
            store.add(record)
        word = "done"
    finally:
        if state.is_main_process:
            claim.drop(clear=word == "done")
    return 0
