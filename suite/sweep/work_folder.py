"""What a run leaves before its rows are in the tables: a folder of its own with checkpoints, and then the finished record.

A record is what `tables.Store.add` takes. It goes through a file, so that it outlives the worker that made it, and
the worker's parent.
"""

from __future__ import annotations

import json
from pathlib import Path

from suite.files import write_whole


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
