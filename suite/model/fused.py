"""Whether a run's merges go through the fused operators of `suite.model.kernels`, which (with triton) is imported only where they do."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from suite.residual import FUSED, Residual


def use_kernels(mode: str, model: nn.Module, device: torch.device) -> str:
    """Decide for all that runs in this process from now on; returns the `kernels` cell of runs.csv, "" for the plain formulas.

    auto: on CUDA, with triton installed, for schemes that name an operator, up to the width that it takes. off: never.
    The bits differ between the two, as they differ between devices, so the choice is recorded and not part of a run id.
    """
    if mode not in ("auto", "off"):
        raise ValueError(f"kernels={mode!r} is not one of auto, off")
    FUSED.clear()
    named = [operator for m in model.modules() if isinstance(m, Residual) and (operator := m.fused())]
    if mode == "off" or device.type != "cuda" or not named or importlib.util.find_spec("triton") is None:
        return ""
    from suite.model import kernels

    if any(gate.shape[-1] > kernels.MAX_WIDTH for _, gates in named for gate in gates):
        return ""
    FUSED.update({name: getattr(kernels, name) for name, _ in named})
    return f"{'+'.join(sorted(FUSED))}, triton {kernels.triton.__version__}"
