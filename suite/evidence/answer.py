"""README's first lines: what was found, in four sentences of numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from suite.evidence import claims
from suite.evidence.bench import on_cpu
from suite.evidence.cells import runs_of
from suite.evidence.critical_rates import pooled
from suite.evidence.edges import PRIMARY
from suite.evidence.headline import at_scale, below_edge, of_plain, primary
from suite.evidence.words import holds, render
from suite.presets import PROTOCOLS
from suite.records.store import read


def answer(results: Path) -> str:
    """Markdown bullets. Raises ValueError where the tables contradict the words of one."""
    below = below_edge(results)
    plain, scale, split = of_plain(results, below.depth), at_scale(results, below.depth), primary(results, below.depth)
    found = {one.cell.scheme: one.best_loss.value for one in pooled(results, "frontier") if one.cell.depth == below.depth}
    best, gain = found.pop(PRIMARY[0]), scale.gain.best_loss.value
    behind = sorted(value / best - 1 for value in found.values())
    holds(behind[0] > 0, "MV-Split learns best")
    holds(best < gain < found["plain"], "the fixed gain stands between MV-Split and plain")
    chapters, own = claims.of_folder(results.resolve())
    cost = on_cpu(read(results / "bench", "bench"), "step", below.depth, "over_plain")[PRIMARY[0]]
    verdicts = Counter(claim.verdict for chapter in chapters.values() for claim in chapter)
    return render(
        "answer", plain=below.plain, depth=below.depth, times=below.lr / plain.best_lr, horizon=below.runs["horizon"].iloc[0],
        healthy=min(below.plain.when), behind=behind, split=split, cost=cost, scale=scale,
        over=gain / best - 1, under=1 - gain / found["plain"], runs=sum(len(runs_of(results / name)) for name in PROTOCOLS),
        claims=verdicts.total(), verdicts=verdicts, width=own["width"].max(),
    )  # fmt: skip
