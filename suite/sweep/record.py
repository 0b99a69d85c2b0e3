"""What a run leaves before its rows are in the tables: a folder of its own with checkpoints, and then the finished record.

A record is what `tables.Store.add` takes. It goes through a file, so that it outlives the worker that made it, and
the worker's parent.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from suite.files import write_whole
from suite.protocol import Run
from suite.sweep.groups import group_id


def work_folder(results: Path, run_id: str) -> Path:
    """Where a run's checkpoints and finished record wait until its rows are in the tables."""
    return results / ".work" / run_id


def record_path(results: Path, run_id: str) -> Path:
    """Where the finished record waits."""
    return work_folder(results, run_id) / "record.json"


def save_record(record: dict, results: Path) -> None:
    """Write a finished record beside its run's checkpoints, whole or not at all."""
    write_whole(record_path(results, record["run"]["run_id"]), json.dumps(record).encode())


def read_record(results: Path, run_id: str) -> dict | None:
    """A finished run's record left by a worker, or None."""
    try:
        record = json.loads(record_path(results, run_id).read_text(encoding="utf-8"))
        run = record["run"]
        right = run["run_id"] == run_id and isinstance(run["status"], str) and isinstance(run.get("last_step", 0), int)
        return record if right and all(isinstance(rows, list) for name, rows in record.items() if name != "run") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def save_trace(text: str, results: Path, run_id: str) -> None:
    """Write why a run broke beside its checkpoints, whatever characters an exception holds."""
    (work_folder(results, run_id) / "error.txt").write_text(text, encoding="utf-8", errors="backslashreplace")


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
        "lr": run.lr, "seed": run.seed, "data": run.data,
        "replicas": len(group), "group": group_id(group),
    }  # fmt: skip
