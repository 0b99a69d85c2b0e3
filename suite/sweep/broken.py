"""What runs.csv says of a run that broke: which one it is, and why."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from suite.protocol import Run
from suite.sweep.groups import group_id


def failure(error: BaseException) -> dict[str, str]:
    """The columns `status` and `reason` of a run that an exception ended.

    Status `oom`, `disk` or `error`; libraries wrap the errors of the system in their own, so the words count too.
    """
    words, status = str(error).lower(), "error"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words:
        status = "oom"
    elif full or os.strerror(errno.ENOSPC).lower() in words:
        status = "disk"
    return {"status": status, "reason": f"{type(error).__name__}: {error}".strip().splitlines()[0]}


def identity(run: Run, group: Sequence[Run]) -> dict:
    """The columns of runs.csv that even a run that broke has. group: the runs that are trained as one model with it."""
    return {
        "run_id": run.run_id, "protocol": run.protocol.name, "protocol_version": run.protocol.version,
        "scheme": run.scheme, "arm": run.arm, "params": run.params, "writers": run.writers, "gate_lr": run.gate_lr, "depth": run.depth,
        "lr": run.lr, "seed": run.seed, "data": run.data, "control": run.control,
        "replicas": len(group), "group": group_id(group),
    }  # fmt: skip
