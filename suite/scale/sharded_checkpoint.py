"""Checkpoints of a sharded model: every process writes its part, any number of processes reads them (torch.distributed.checkpoint).

A checkpoint is a folder `step-<n>`, as in suite.training.checkpoint: torch's `.metadata` and `*.distcp`,
`history.safetensors` and `log.json`, and a `manifest.json` with the digest of each, last. It is written aside by all,
and renamed when all have synced. Every function here is called by all processes together, which must see one file
system.
"""

from __future__ import annotations

import errno
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from suite import files
from suite.data.contents import sha256_of
from suite.training.checkpoint import MANIFEST, CheckpointWarning, PlacementError, clear_halves, complete, drop_newer, name_of

KEEP = 2  # of 160 GB each at 13.6 billion parameters (values and two moments); the newest, and one should that be damaged


def save(folder: Path, step: int, owner: str, shards: dict[str, Tensor], history: dict[str, Tensor], log: dict) -> None:
    """Write `folder/step-<step>` and drop all but the newest KEEP. shards: DTensors, or tensors that are the same everywhere.

    history, log: as in `suite.training.checkpoint.save`; those of the first process are written.
    """
    from safetensors.torch import save as to_bytes

    target, aside, first = folder / name_of(step), folder / f".{name_of(step)}.sharded", dist.get_rank() == 0

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        clear_halves(folder)
        aside.mkdir()

    def finish() -> None:
        notes = {"history.safetensors": to_bytes(history), "log.json": json.dumps(log).encode()}
        every = digests | {name: hashlib.sha256(data).hexdigest() for name, data in notes.items()}
        every[".metadata"] = sha256_of(aside / ".metadata")
        notes[MANIFEST] = json.dumps({"run_id": owner, "step": step, "torch": torch.__version__, "sharded": every}).encode()
        for name, data in notes.items():
            files.fill(aside / name, data)
        files.place(aside, target)
        drop_newer(folder, step)
        for old in complete(folder)[:-KEEP]:
            files.remove(old)

    try:
        _together(begin if first else None)
        dcp.save(shards, checkpoint_id=aside)  # synced by torch; a fault of one process is raised by all
        parts = _all({path.name: sha256_of(path) for path in _mine(sorted(aside.glob("*.distcp")))})
        digests = {name: digest for part in parts for name, digest in part.items()}
        _together(finish if first else None)
    except (OSError, CheckpointException) as error:  # a full disk: give back what half a checkpoint takes
        if first:
            files.remove(aside)
        if isinstance(error, OSError):
            raise
        cause = next(iter(error.failures.values()))[0]
        raise OSError(getattr(cause, "errno", None) or errno.EIO, f"checkpoint {target}: {cause}") from error


def _together(work: Callable[[], None] | None) -> None:
    """What one process does and all wait for; an OSError of it is raised by all."""
    fault = None
    if work:
        try:
            work()
        except OSError as error:
            fault = error.errno, str(error)
    if fault := next((found for found in _all(fault) if found), None):
        raise OSError(*fault)


def load(folder: Path, owner: str, shards: dict[str, Tensor]) -> tuple[int, dict[str, Tensor], dict] | None:
    """Fill `shards`, of this number of processes, from the newest whole checkpoint: (step, history, log), or None if there is none.

    A damaged one, one of another run or of another torch version is passed over with a warning, and the older one is
    tried. Raises PlacementError (ValueError) at one that a model made which lay whole in one process.
    """
    from safetensors.torch import load as from_bytes

    for path in reversed(complete(folder)):
        fault = ""
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            if manifest["run_id"] == owner and "sharded" not in manifest:  # passed over, it would be lost: see suite.training.checkpoint
                raise PlacementError(f"{path} was made by a model that lay whole in one process: launch without FSDP, or remove it")
            fault = _fault(path, manifest, owner)
        except PlacementError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault = str(error)
        faults = [found for found in _all(fault) if found]
        if not faults:
            dcp.load(shards, checkpoint_id=path)
            log = json.loads((path / "log.json").read_text())
            return manifest["step"], from_bytes((path / "history.safetensors").read_bytes()), log
        if dist.get_rank() == 0:
            warnings.warn(f"checkpoint {path.name} of run {owner} is passed over: {faults[0]}", CheckpointWarning, stacklevel=2)
    return None


def _fault(path: Path, manifest: dict, owner: str) -> str:
    """What is wrong with a checkpoint, as far as this process looks: at its part of the files."""
    if manifest["run_id"] != owner:
        return f"belongs to run {manifest['run_id']}"
    if manifest["torch"] != torch.__version__:
        return f"was made by torch {manifest['torch']}, this is {torch.__version__}"
    if path.name != name_of(manifest["step"]):
        return f"its manifest says step {manifest['step']}"
    for name in _mine(sorted(manifest["sharded"])):
        if not (path / name).is_file() or sha256_of(path / name) != manifest["sharded"][name]:
            return f"{name} does not match its digest"
    return ""


def _mine(of: list) -> list:
    """Those that this process looks after, so that all are looked after once."""
    return of[dist.get_rank() :: dist.get_world_size()]


def _all(of: object) -> list:
    """What every process says, told to every process."""
    said = [None] * dist.get_world_size()
    dist.all_gather_object(said, of)
    return said
