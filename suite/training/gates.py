"""What a scheme tells of its own state along a run: rows of the table `gates.csv`, by thirds of the depth."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from suite.model.backbone import DiT

THIRDS = 3


@torch.no_grad()
def gate_rows(dit: DiT, step: int) -> list[dict]:
    """Rows of `Residual.gates` after `step` updates, over all values of a kind in a third of the blocks; none for a scheme without any.

    A scheme's parameters lie whole on every process, so a sharded model has the same rows on each.
    """
    values: dict[tuple[str, int, str], list[Tensor]] = defaultdict(list)
    for i, block in enumerate(dit.blocks):
        sites = ("both",) if len(block.residuals) == 1 else ("attn", "ffn")
        for site, residual in zip(sites, block.residuals, strict=True):
            for gate, value in residual.gates().items():
                values[site, 1 + THIRDS * i // len(dit.blocks), gate].append(value.double().flatten())
    rows = []
    for (site, third, gate), parts in sorted(values.items()):
        every = torch.cat(parts)
        rms, mean = every.square().mean().sqrt().item(), every.mean().item()
        rows.append({"step": step, "site": site, "third": third, "gate": gate, "rms": rms, "mean": mean})
    return rows
