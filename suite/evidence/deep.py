"""A table of the paper's own depths at a small width: what became of each cell of `deep`, over its seeds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from suite.evidence.cells import finished, runs_of
from suite.evidence.decided import FATES
from suite.evidence.markdown import grid
from suite.evidence.words import called
from suite.verdict.outcome import fate


def deep(results: Path) -> str:
    """Markdown: schemes by depth and rate; runs by fate, crash steps, and held-out loss of the survivors that have no
    event behind the horizon (mean and range)."""
    runs = finished(runs_of(results / "deep"))
    columns = {place: f"{place[0]} blocks, {place[1]:g}" for place in sorted(set(zip(runs["depth"], runs["lr"])))}
    cells = {(called(name), (depth, lr)): describe(at) for (name, depth, lr), at in runs.groupby(["name", "depth", "lr"], sort=False)}
    horizons = sorted(set(zip(runs["depth"], runs["horizon"])))
    return f"Steps: {'; '.join(f'{steps} at {depth} blocks' for depth, steps in horizons)}.\n\n{grid(columns, cells)}"


def describe(runs: pd.DataFrame) -> str:
    """The runs of a cell in words: "2 of 3 dead (steps 120, 300); 1 of 3 survived, 0.81"."""
    fates, parts = runs["outcome"].map(fate), []
    for kind, word in FATES.items():
        mine, more = runs[fates == kind], ""
        if kind == "dead":
            more = f" (step{'s' * (len(mine) > 1)} {', '.join(map(str, sorted(mine['crash_step'])))})"
        elif kind == "live":  # an event behind the horizon does not count
            more = "".join(f", one falling at step {step}, behind the horizon" for step in sorted(mine["late_step"].dropna()))
            losses = mine.loc[mine["late_step"].isna(), "heldout_loss"]
            more += f", {losses.mean():.3f}" if len(losses) else ""
            more += f" ({losses.min():.3f} to {losses.max():.3f})" if len(losses) > 1 else ""
        parts += [f"{len(mine)} of {len(runs)} {word}{more}"] * bool(len(mine))
    return "; ".join(parts)
