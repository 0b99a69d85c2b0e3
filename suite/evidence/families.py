"""Which cells differ in nothing but the scale of their branch, and what that scale is at the start."""

from __future__ import annotations

from suite.evidence.cells import Cell

FAMILIES = ("fixed gain", "fixed gain, centered", "LayerScale", "MV-Split")
# by scheme, the parameter that is the scale of the branch at the start
GAIN = {"gain": "g", "layerscale": "init", "mvsplit": "beta", "split": "beta", "rezero_start": "start"}

FIXED = ("plain", "deepnorm", "gain", "desimilar")  # what scales the branch stays as it starts


def family(cell: Cell) -> str:
    """Which of FAMILIES a cell is of; "" for none: another scheme, another part of the split, standard writers."""
    if cell.writers != "zero" or cell.gate_lr != 1 or cell.arm != "controlled":
        return ""
    if cell.scheme == "split":
        return "fixed gain, centered" if cell.label.endswith("learn=none mean=none") else ""
    whole = cell.scheme != "mvsplit" or "sites=both" in cell.params.split(",")
    return {"plain": "fixed gain", "gain": "fixed gain", "layerscale": "LayerScale", "mvsplit": "MV-Split"}.get(cell.scheme, "") * whole


def start(cell: Cell) -> float | None:
    """The factor on a branch beside its trunk at the start, as the scheme's parameters give it; None where that is not known here."""
    params = dict(item.split("=") for item in cell.params.split(",") if "=" in item)
    known = {"plain": 1.0, "featscale": 1.0, "desimilar": 1.0, "rezero": 0.0, "deepnorm": (2 * cell.depth) ** -0.25}
    known |= {scheme: params.get(name) for scheme, name in GAIN.items()}
    return None if known.get(cell.scheme) is None else float(known[cell.scheme])
