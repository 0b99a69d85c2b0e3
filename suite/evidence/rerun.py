"""Committed runs trained again, and what came of each beside what the tables say."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from suite.evidence.verify import folders, is_older, run_of
from suite.isolation.catalogue import Catalogue, read
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.records.byrun import SIDES
from suite.records.store import RowsByRun, Store
from suite.sweep.groups import group_id, group_order
from suite.verdict.outcome import fate

EARLY = 20  # steps compared on another processor: later ones drift apart, exponentially, from rounding
EARLY_RTOL = 1e-3  # eager against compiled differs by 4e-6 in a step; two processors should not differ by more than this
SAME_MACHINE = ("cpu_model", "cpu_isa", "compiler", "python", "torch", "commit", "threads", "device", "replicas", "group")


def rerun(results: Path, k: int, seed: int, workers: int | None, catalogue: Catalogue | None = None) -> list[dict[str, object]]:
    """Re-train k committed runs aside; one row a run: what was compared, and whether it agrees.

    The first is the headline's (plain, the deepest network, the hot rate of `laptop`) where it is there; the others
    are drawn. A run that was trained as one model with others is trained with the same ones again, where all of them
    are in the tables.
    """
    from suite.sweep.sweep import Sweep

    catalogue = catalogue or read()
    candidates = [(folder, row) for folder in folders(results) for row in Store(folder).runs()
                  if row["status"] == "done" and not is_older(row)]  # fmt: skip
    if not candidates:
        raise ValueError(f"{results}: no finished runs to repeat")
    first = [item for item in candidates if _is_headline(item[1])][:1]
    others = [item for item in candidates if item not in first]
    chosen = (first + random.Random(seed).sample(others, min(k, len(others))))[:k]
    runs, out = [run_of(row, catalogue) for _, row in chosen], []
    parties = [_party(folder, row, catalogue) for folder, row in chosen]
    alone = [run for (run,) in (party for party in parties if len(party) == 1)]
    groups = {group_id(party): party for party in parties if len(party) > 1}
    with tempfile.TemporaryDirectory(prefix="screambench-verify-") as aside:
        for together, size in ((alone, 1), *((group, len(group)) for group in groups.values())):
            Sweep(together, Path(aside), workers=workers, features="digits", retry=False, replicas=size, catalogue=catalogue).run()
        for (folder, row), run in zip(chosen, runs, strict=True):
            new_folder = Path(aside) / folder.name
            new = {r["run_id"]: r for r in Store(new_folder).runs()}.get(run.run_id)
            out.append({"run": run.label(), **_compare(folder, row, new_folder, new)})
    return out


def _is_headline(row: dict[str, str]) -> bool:
    laptop = PROTOCOLS["laptop"]
    cell = (row["protocol"], row["scheme"], row["depth"], float(row["lr"]))
    return cell == (laptop.name, "plain", str(max(laptop.depths)), max(laptop.lrs))


def _party(folder: Path, row: dict[str, str], catalogue: Catalogue) -> list[Run]:
    """The runs to train as one model to repeat this one: those of its group if the tables hold all, else itself."""
    mates = [run_of(other, catalogue) for other in Store(folder).runs() if row["group"] and other["group"] == row["group"]]
    return mates if mates and group_id(sorted(mates, key=group_order)) == row["group"] else [run_of(row, catalogue)]


def _compare(folder: Path, row: dict[str, str], new_folder: Path, new: dict[str, str] | None) -> dict[str, object]:
    """Byte-equality where machine, commit and versions are the same; elsewhere outcome and early loss."""
    if new is None or new["status"] != "done":
        return {"compared": "nothing", "agrees": False, "why": "the run broke: " + (new["reason"] if new else "no row")}
    if all(row[name] == new[name] for name in SAME_MACHINE):
        old_tables, new_tables = (RowsByRun(where).written(own) for where, own in ((folder, row), (new_folder, new)))
        same = row == new and all(old_tables.get(name) == new_tables.get(name) for name in SIDES if name != "throughput")
        return {"compared": "bytes", "agrees": same, "why": "" if same else "tables differ"}
    old_early, new_early = (_early(f, r) for f, r in ((folder, row), (new_folder, new)))
    worst = max((abs(a - b) / abs(a) for a, b in zip(old_early, new_early, strict=False)), default=float("inf"))
    agrees = fate(row["outcome"]) == fate(new["outcome"]) and len(old_early) == len(new_early) and worst <= EARLY_RTOL
    differs = ", ".join(name for name in SAME_MACHINE if row[name] != new[name])
    why = f"other {differs}; outcome {row['outcome']} / {new['outcome']}, loss of {EARLY} steps within {worst:.1e}"
    return {"compared": "outcome and early loss", "agrees": agrees, "why": why}


def _early(folder: Path, row: dict[str, str]) -> list[float]:
    return RowsByRun(folder).frame("curves", row)["loss"][:EARLY].tolist()
