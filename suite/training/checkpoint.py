"""Checkpoints that survive a kill: written aside, synced, renamed; a digest is checked on load; no pickle.

A checkpoint is a folder `step-<n>` with `state.safetensors` and `manifest.json`. Batches are functions of the step and
the detector works on the saved curve, so no random state and no detector state is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from suite import files

MANIFEST = "manifest.json"
KEEP = 5  # enough to replay a window of 60 steps before a crash that took 50 + 10 steps to confirm, at one every 50 steps


class PlacementError(ValueError):
    """What a sharded model, or one that lies whole, cannot do; the message is one line for the user."""


class CheckpointWarning(UserWarning):
    """A checkpoint was passed over; training goes on from an older one, or from the start."""


def save(
    folder: Path, step: int, run_id: str, tensors: dict[str, Tensor], log: dict, keep_from: int | None = None
) -> None:
    """Write `folder/step-<step>` atomically and drop all but the newest KEEP, and the last one up to step `keep_from`.

    run_id names whose it is. log is any JSON value and comes back from `load` beside the tensors. One process at a
    time may hold a folder.
    """
    from safetensors.torch import save as to_bytes

    target, aside = folder / name_of(step), folder / f".{name_of(step)}.{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    clear_halves(folder)
    aside.mkdir()
    data = to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    notes = json.dumps(log).encode()
    digests = {"sha256": hashlib.sha256(data).hexdigest(), "log_sha256": hashlib.sha256(notes).hexdigest()}
    manifest = json.dumps({"run_id": run_id, "step": step, "torch": torch.__version__} | digests).encode()
    try:
        for name, content in {"state.safetensors": data, "log.json": notes, MANIFEST: manifest}.items():
            files.fill(aside / name, content)
    except OSError:  # a full disk: give back what half a checkpoint takes
        files.remove(aside)
        raise
    files.place(aside, target)
    drop_newer(folder, step)
    older = complete(folder)[:-KEEP]
    pinned = [path for path in older if keep_from is not None and step_of(path) <= keep_from][-1:]
    for old in older:
        if old not in pinned:
            files.remove(old)


def clear_halves(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote."""
    for left in folder.glob(".step-*"):
        files.remove(left)


def drop_newer(folder: Path, step: int) -> None:
    """Remove what lies beyond a step that was just saved: `load` has passed it over, and it must not crowd out the good ones."""
    for newer in complete(folder):
        if step_of(newer) > step:
            files.remove(newer)


def name_of(step: int) -> str:
    """The name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def complete(folder: Path) -> list[Path]:
    """The checkpoints in a folder that were written to their end, oldest first."""
    return sorted(folder.glob("step-" + 8 * "[0-9]"))


def load(folder: Path, run_id: str, at_most: int | None = None) -> tuple[int, dict[str, Tensor], dict] | None:
    """The newest whole checkpoint of this run (of step `at_most` or earlier), or None.

    A damaged one, one of another run or of another torch version (which would go on with other bits) is passed over
    with a warning, and the next older one is tried.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    for path in reversed(complete(folder)):
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            if path.name != name_of(manifest["step"]):
                raise ValueError(f"its manifest says step {manifest['step']}")
            if at_most is not None and manifest["step"] > at_most:
                continue
            if manifest["run_id"] != run_id:
                raise ValueError(f"belongs to run {manifest['run_id']}")
            if "sharded" in manifest:  # passed over, it would be lost: the next one that is saved takes its place
                raise PlacementError(f"{path} was made sharded: go on under accelerate launch with FSDP's settings, or remove it")
            if manifest["torch"] != torch.__version__:
                raise ValueError(f"was made by torch {manifest['torch']}, this is {torch.__version__}")
            data, notes = (path / "state.safetensors").read_bytes(), (path / "log.json").read_bytes()
            found = [hashlib.sha256(part).hexdigest() for part in (data, notes)]
            if found != [manifest["sha256"], manifest["log_sha256"]]:
                raise ValueError("does not match its digest")
            return manifest["step"], from_bytes(data), json.loads(notes)
        except PlacementError:
            raise
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            what = f"its manifest lacks {error}" if isinstance(error, KeyError) else error
            warnings.warn(f"checkpoint {path.name} of run {run_id} is passed over: {what}", CheckpointWarning, stacklevel=2)
    return None
