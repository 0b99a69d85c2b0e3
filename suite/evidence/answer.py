"""README's first lines: what was found, in four sentences of numbers."""

from __future__ import annotations

from pathlib import Path

from suite.evidence import claims
from suite.evidence.bench import FOLDER
from suite.evidence.cells import how_many
from suite.evidence.critical_rates import pooled
from suite.evidence.edges import PRIMARY
from suite.evidence.headline import at_scale, below_edge, of_plain, primary
from suite.evidence.ranking_table import cost
from suite.evidence.words import holds, render
from suite.records.store import read


def answer(results: Path) -> str:
    """Markdown bullets. Raises ValueError where the tables contradict the words of one."""
    below = below_edge(results)
    plain, scale, split = of_plain(results, below.depth), at_scale(results, below.depth), primary(results, below.depth)
    found = {one.cell.scheme: one for one in pooled(results, "frontier") if one.cell.depth == below.depth}
    ours = found.pop(PRIMARY[0])
    best, gain = ours.best_loss.value, scale.gain.best_loss.value
    behind = sorted(one.best_loss.value / best - 1 for one in found.values())
    holds(behind[0] > 0, "MV-Split learns best")
    holds(best < gain < plain.best_loss.value, "the fixed gain stands between MV-Split and plain")
    chapters, own = claims.of_folder(results.resolve())
    verdicts = claims.counted(chapters)
    return render(
        "answer", plain=below.plain, depth=below.depth, times=below.lr / plain.best_lr, horizon=below.runs["horizon"].iloc[0],
        healthy=min(below.plain.when), behind=behind, split=split, cost=cost(read(results / FOLDER, "bench"), ours.cell), scale=scale,
        over=gain / best - 1, under=1 - gain / plain.best_loss.value, runs=how_many(results), claims=verdicts.total(),
        verdicts=verdicts, width=own["width"].max(),
    )  # fmt: skip
