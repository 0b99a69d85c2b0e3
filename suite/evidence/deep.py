"""README's table of the paper's own depths at a small width: what became of each cell of `deep`, over its seeds."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean

from suite.evidence.dying import name
from suite.evidence.edges import cells
from suite.evidence.markdown import table
from suite.presets import PROTOCOLS
from suite.records.tables import Store
from suite.verdict.outcomes import fate

DEEP = PROTOCOLS["deep"]


def deep(results: Path) -> str:
    """Markdown: schemes by depth and rate; runs by fate, crash steps, and held-out loss of the living that have no event
    behind the horizon (mean and range)."""
    found = defaultdict(list)
    for cell, rows in cells(Store(results / DEEP.name).runs()).items():
        for row in rows:
            found[name(cell[0], cell[2]), int(row["depth"]), float(row["lr"])].append(row)
    places = sorted({key[1:] for key in found})
    head = ["scheme", *(f"{depth} blocks, {lr:g}" for depth, lr in places)]
    lines = [[scheme, *(said(found.get((scheme, *place), [])) for place in places)] for scheme in dict.fromkeys(key[0] for key in found)]
    horizons = sorted({(key[1], int(row["horizon"])) for key, rows in found.items() for row in rows})
    return f"Steps: {'; '.join(f'{steps} at {depth} blocks' for depth, steps in horizons)}.\n\n{table(head, lines)}"


def said(rows: list[dict[str, str]]) -> str:
    """The runs of a cell in words: "2 of 3 dead (steps 120, 300), 1 live, 0.81"."""
    if not rows:
        return "-"
    fates = Counter(fate(row["outcome"]) for row in rows)
    steps = sorted(int(row["crash_step"]) for row in rows if fate(row["outcome"]) == "dead")
    alive = [row for row in rows if fate(row["outcome"]) == "live"]
    late = sorted(int(row["late_step"]) for row in alive if row["late_step"])  # an event behind the horizon, which does not count
    losses = [float(row["heldout_loss"]) for row in alive if not row["late_step"]]
    parts = []
    for kind in ("dead", "unusable", "live"):
        if n := fates[kind]:
            more = f" (step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))})" if kind == "dead" else ""
            if kind == "live":
                more = "".join(f", one falling at step {step}, behind the horizon" for step in late)
                more += f", {mean(losses):.3f}" if losses else ""
                more += f" ({min(losses):.3f} to {max(losses):.3f})" if len(losses) > 1 else ""
            parts.append(f"{n} of {len(rows)} {kind}{more}")
    return "; ".join(parts)
