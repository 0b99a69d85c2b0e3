"""Whether this process was started by a launcher, as one of a run's; by its variables alone, before torch is imported."""

from __future__ import annotations

import os

from suite import environment

MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # what Accelerate reads under `accelerate launch --cpu`
ALONE = ("accelerate started one process, not several (--cpu needs MPI): this is an ordinary run; for data parallelism say "
         "--multi_gpu instead of --cpu, which needs no GPU")  # fmt: skip


def processes() -> int:
    """How many processes a launcher started together, this one included."""
    names = ("WORLD_SIZE", *MPI) if environment.cpu_wanted() else ("WORLD_SIZE",)  # without it a sweep on each rank is meant
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 1)


def launched() -> bool:
    """Whether this process is one of a run's: of several, or one that was launched to shard."""
    return processes() > 1 or (environment.sharding_wanted() and "RANK" in os.environ)


def launched_alone() -> bool:
    """Whether `accelerate launch --cpu` was asked for several processes and started one: without MPI it does so, silently."""
    return not launched() and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
