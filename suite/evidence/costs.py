"""What training costs, from results/bench: each scheme's step over plain's by depth, and the project's targets."""

from __future__ import annotations

import re
from pathlib import Path

from suite.evidence.bench import on_cpu, targets
from suite.evidence.markdown import grid, table
from suite.evidence.words import called, render
from suite.protocol import SCHEMES
from suite.records.store import read


def costs(results: Path) -> str:
    """Markdown: a grid of the steps, a table of the targets, and when and where they were measured."""
    known = read(results / "bench", "bench")
    steps = known[known["phase"] == "step"]
    depths = sorted(map(int, set(steps.loc[steps["over_plain"].notna(), "depth"])))
    over = {depth: on_cpu(known, "step", depth, "over_plain") for depth in depths}
    cells = {(called(scheme), depth): f"{over[depth][scheme] - 1:+.0%}" for scheme in SCHEMES for depth in depths if scheme in over[depth]}
    own = [on_cpu(known, "step", depth) / on_cpu(known, "step", depth, variant="reference") for depth in depths]
    shares = {depth: share.dropna() for depth, share in zip(depths, own)}
    rounds = {depth: int(on_cpu(known, "step", depth, "rounds").min()) for depth in depths}
    return render("costs", steps=grid({depth: f"{depth} blocks ({rounds[depth]} steps)" for depth in depths}, cells), shares=shares,
                  targets=table(["target", "measured", "bound", "held"], map(_target, targets(known))),
                  hardware=", ".join(sorted(set(known["hardware"].dropna()) - {""})), cold=on_cpu(known, "first_step_cold", 10) / 1e3,
                  warm=on_cpu(known, "first_step_warm", 25) / 1e3)  # fmt: skip


def _target(row: dict[str, str]) -> list[str]:
    measured = re.sub(r"\((\w+)\)", lambda found: f"({called(found[1])})", row["measured"])
    return [row["figure"], measured, row["target"].replace("<", "\\<"), row["held"]]
