"""Your cells beside the committed ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from statistics import median

from suite.records.store import Store
from suite.verdict.outcome import fate

CELL = ("protocol_version", "data", "scheme", "arm", "params", "writers", "gate_lr", "control", "depth", "lr")


def compare(mine_folder, committed_folder) -> list[dict]:
    """Your cells beside the committed ones, one row per cell that you ran, over whatever seeds each side has.

    Per side: `runs`, `seeds`, `outcome` (with counts where seeds differ), `crash_step` and `final_loss` (medians;
    exact steps are chaotic at rounding level). `agree`: one side saw no fate (dead, unusable, live) that the other
    did not; None where a side is missing.
    """
    mine, committed = (_cells(Store(folder).runs()) for folder in (mine_folder, committed_folder))
    out = []
    for cell, rows in mine.items():
        other = committed.get(cell, [])
        seen, known = ({fate(row["outcome"]) or row["outcome"] or row["status"] for row in side} for side in (rows, other))
        row = dict(zip(CELL, cell)) | _summary("mine", rows) | _summary("committed", other)
        out.append(row | {"agree": (seen <= known or known <= seen) if other else None})
    return out


def _cells(rows) -> dict[tuple, list[dict[str, str]]]:
    cells = defaultdict(list)
    for row in rows:
        cells[tuple(row[name] for name in CELL)].append(row)
    return cells


def _summary(side: str, rows) -> dict:
    counts = Counter(row["outcome"] or row["status"] for row in rows)
    outcome = ", ".join(name if len(counts) == 1 else f"{name} {n}/{len(rows)}" for name, n in counts.most_common())
    middle = {name: median(values) if (values := [float(row[name]) for row in rows if row[name]]) else None
              for name in ("crash_step", "final_loss")}
    seeds = ",".join(sorted({row["seed"] for row in rows}, key=int))
    shown = {"runs": len(rows), "seeds": seeds, "outcome": outcome} | middle
    return {f"{side}_{name}": value for name, value in shown.items()}
