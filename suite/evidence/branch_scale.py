"""Protocol `scale` in words: gains of equal size with and without the split, and what its hypotheses came to."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from suite.evidence.cells import STD, Cell, finished, name, runs_of
from suite.evidence.critical_rates import BESIDE, pooled
from suite.evidence.hypotheses import equal_deaths, hypotheses_table, judge, of_cell
from suite.evidence.markdown import table
from suite.evidence.ranking import ranking
from suite.evidence.words import called
from suite.presets import PROTOCOLS
from suite.sweep.search import MS, RUNS

NAME = "scale"
FAMILIES = ("fixed gain", "fixed gain, centered", "LayerScale", "MV-Split")
# by scheme, the parameter that is the scale of the branch at the start
GAIN = {"gain": "g", "layerscale": "init", "mvsplit": "beta", "split": "beta", "rezero_start": "start"}


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


def branch_scale(results: Path) -> str:
    """Markdown: the ranking at each depth of the protocol, who dies with equal tokens, the hypotheses, and what is not measured yet."""
    own = set(runs_of(results / NAME)["depth"])
    found = [one for one in pooled(results, NAME) if one.cell.depth in own and one.fresh and one.cell.arm == "controlled"]
    runs = finished(pd.concat([runs_of(results / each) for each in (NAME, BESIDE[NAME])], ignore_index=True))
    deaths = [(one.cell.label, one.cell.depth, *equal_deaths(of_cell(runs, one))) for one in found]
    parts = [
        ranking(found), "Deaths that end with all tokens equal:",
        table(["scheme", "blocks", "with equal tokens", "deaths"], [(called(label), depth, k, n) for label, depth, k, n in deaths if n]),
        "The hypotheses, written down before the protocol's first run:", hypotheses_table(judge(results, NAME)),
    ]  # fmt: skip
    if left := missing({(one.cell.label, one.cell.depth) for one in found}):
        parts.append(f"Not measured yet, with its cost: {left}.")
    return "\n\n".join(parts)


def missing(known: set[tuple[str, int]]) -> str:
    """The cells of the plan that have no best loss, by depth, with the hours of a processor core that they take from nothing."""
    protocol, out = PROTOCOLS[NAME], []
    wanted = [(_label(cell), depth) for cell in protocol.cells for depth in cell.depths or protocol.depths]
    for depth in sorted({depth for _, depth in wanted}):
        labels = [called(label) for label, at in wanted if at == depth and (label, at) not in known]
        hours = len(labels) * RUNS * depth * protocol.length * MS / 3.6e6
        if labels:
            out.append(f"at {depth} blocks {', '.join(labels)} (about {hours:.0f} core-hours)")
    return "; ".join(out)


def _label(cell) -> str:
    return name(cell.scheme, cell.params) + (" std writers" if cell.scheme in STD and cell.writers == "std" else "")
