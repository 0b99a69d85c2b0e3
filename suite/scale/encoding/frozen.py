"""What the frozen models have in common: how they are loaded, in one line where they cannot be, and which weights they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from suite.data.dataset import DataError
from suite.data.sources import first_line, one_line
from suite.environment import package as version_of

Model = TypeVar("Model")
PACKAGES = ("torch", "diffusers", "transformers")


def device() -> torch.device:
    """Where frozen models work: the GPU of this process, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def versions() -> dict[str, str]:
    """Of the packages whose code the latents come from."""
    return {name: version_of(name) for name in PACKAGES}


def load(what: str, name: str, package: str, read: Callable[[], Model]) -> Model:
    """read(), which loads a model by `package`, without a word of its own. Raises DataError: `what name: why not`."""
    try:
        _silence(package)
        model = read()
    except ModuleNotFoundError as error:
        raise DataError(one_line(f"{what} {name}: needs {error.name}: pip install diffusers transformers")) from error
    except Exception as error:  # a name that is none, no network, half a file: each library has errors of its own
        raise DataError(one_line(f"{what} {name}: cannot be loaded: {first_line(error)}")) from error
    return model


def _silence(package: str) -> None:
    """Its bars and notes are not for our user: every refusal is one line of ours."""
    if package == "diffusers":
        from diffusers.utils import logging
    else:
        from transformers.utils import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def identity(model: nn.Module, config: dict) -> dict[str, str]:
    """{class, sha256} of a model: over its weights and settings, whatever files they came from and wherever those lay."""
    own = {key: value for key, value in config.items() if key[0] != "_" and key != "transformers_version"}
    sha = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {"class": type(model).__name__, "sha256": sha.hexdigest()}


def digest_of(*parts) -> str:
    """Hex digits over values that JSON can write."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
