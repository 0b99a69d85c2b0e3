"""Checkpoints that survive a kill: written aside, synced, renamed; a digest is checked on load; no pickle.

A checkpoint is a folder `step-<n>` with `state.safetensors` and `manifest.json`. Batches are functions of the step and
the detector works on the saved curve, so no random state and no detector state is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

from torch import Tensor

KEEP = 5  # enough to replay a window of 30 steps before a crash that took 50 + 10 steps to confirm, at one every 50 steps


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def save(folder: Path, step: int, run_id: str, tensors: dict[str, Tensor]) -> None:
    """Write `folder/step-<step>` atomically and drop all but the newest KEEP."""
    from safetensors.torch import save as to_bytes

    target, aside = folder / f"step-{step:08d}", folder / f".step-{step:08d}.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    data = to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    manifest = {"run_id": run_id, "step": step, "sha256": hashlib.sha256(data).hexdigest()}
    for name, content in (("state.safetensors", data), ("manifest.json", json.dumps(manifest).encode())):
        with open(aside / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)
    sync_folder(folder)
    for old in _complete(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def _complete(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def load(folder: Path, run_id: str, at_most: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
    """The newest whole checkpoint of this run (of step `at_most` or earlier), or None.

    A damaged one, or one of another run, is passed over with a warning and the next older one is tried.
    """
    from safetensors.torch import load as from_bytes

    for path in reversed(_complete(folder)):
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            if at_most is not None and manifest["step"] > at_most:
                continue
            if manifest["run_id"] != run_id:
                raise ValueError(f"belongs to run {manifest['run_id']}")
            data = (path / "state.safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
                raise ValueError("does not match its digest")
            return manifest["step"], from_bytes(data)
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(f"checkpoint {path.name} of run {run_id} is passed over: {error}", stacklevel=2)
    return None
