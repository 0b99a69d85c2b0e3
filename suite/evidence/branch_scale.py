"""Protocol `scale` in words: gains of equal size with and without the split, and what its hypotheses came to."""

from __future__ import annotations

from pathlib import Path

from suite.evidence.cells import cells, label, runs_of
from suite.evidence.critical_rates import pool, pooled
from suite.evidence.hypotheses import equal_deaths, hypotheses_table, judge
from suite.evidence.markdown import table
from suite.evidence.ranking import ranking
from suite.evidence.words import called
from suite.presets import PROTOCOLS
from suite.sweep.frontier import core_hours

NAME = "scale"


def branch_scale(results: Path) -> str:
    """Markdown: the ranking at each depth of the protocol, who dies with equal tokens, the hypotheses, and what is not measured yet."""
    own = set(runs_of(results / NAME)["depth"])
    found = [one for one in pooled(results, NAME) if one.cell.depth in own and one.fresh and one.cell.arm == "controlled"]
    runs = cells(pool(results, NAME))
    deaths = [(one.cell.label, one.cell.depth, *equal_deaths(runs[one.cell])) for one in found]
    parts = [
        ranking(found), "Deaths that end with all tokens equal:",
        table(["scheme", "blocks", "with equal tokens", "deaths"], [(called(words), depth, k, n) for words, depth, k, n in deaths if n]),
        "The hypotheses, written down before the protocol's first run:", hypotheses_table(judge(results, NAME)),
    ]  # fmt: skip
    if left := missing({(one.cell.label, one.cell.depth) for one in found}):
        parts.append(f"Not measured yet, with its cost: {left}.")
    return "\n\n".join(parts)


def missing(known: set[tuple[str, int]]) -> str:
    """The cells of the plan that have no best loss, by depth, with the hours of a processor core that they take from nothing."""
    protocol, out = PROTOCOLS[NAME], []
    wanted = [(label(c.scheme, c.params, c.writers, c.arm), depth) for c in protocol.cells for depth in c.depths or protocol.depths]
    for depth in sorted({depth for _, depth in wanted}):
        labels = [called(words) for words, at in wanted if at == depth and (words, at) not in known]
        hours = len(labels) * core_hours(depth, protocol.length)
        if labels:
            out.append(f"at {depth} blocks {', '.join(labels)} (about {hours:.0f} core-hours)")
    return "; ".join(out)
