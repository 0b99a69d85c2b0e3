"""One run in data-parallel processes, under `accelerate launch`: every process trains, the first one writes."""

from __future__ import annotations

import os
from pathlib import Path

from suite.execute import execute
from suite.protocol import Run
from suite.tables import Store


def launched() -> bool:
    """Whether this process is one of several that a launcher started together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def run_distributed(runs: list[Run], results: Path, features: str) -> int:
    """Train the one run of the selection with the same global batch as a single process; returns the exit status.

    Gradients are averages of the processes' shares, so curves agree with a single process within rounding, not to the
    byte; `processes` in runs.csv tells them apart. Raises ValueError unless the selection is exactly one run.
    """
    if len(runs) != 1:
        raise ValueError(f"under a launcher exactly one run is trained; this selection has {len(runs)}: narrow it with the flags of plan")
    run, world = runs[0], int(os.environ["WORLD_SIZE"])
    if run.protocol.batch % world:
        raise ValueError(f"a batch of {run.protocol.batch} does not divide into {world} processes")
    store = Store(results / run.protocol.name)
    if run.run_id in store.done_ids():
        return 0
    record = execute(run, results, features)
    if record:
        store.add(record)
    return 0
