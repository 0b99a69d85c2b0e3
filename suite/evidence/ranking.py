"""The ranking of the schemes at each depth, by what does not change when a scheme rescales its learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pandas as pd
from scipy.stats import ttest_rel

from suite.evidence.cells import Cell
from suite.evidence.edges import REFERENCE, describe
from suite.evidence.markdown import table
from suite.evidence.measures import Measures
from suite.evidence.stats import holm
from suite.evidence.words import called
from suite.protocol import NO_PARAMS

TOLD_APART = 0.05  # largest p of a pair of schemes of which one is taken to be better


def placed(found: Sequence[Measures]) -> list[tuple[Measures, tuple[int, int]]]:
    """The cells of one depth from the best loss up, each with the best and the worst place that it may have.

    Another stands surely before or behind it where runs of the same seeds tell the two apart (Student, in pairs, Holm
    over all pairs of cells), or where there are no such runs.
    """
    found = sorted(found, key=lambda one: one.best_loss.value)
    pairs = list(combinations(range(len(found)), 2))
    known = holm([_p(found[i].best_values, found[j].best_values) for i, j in pairs])
    apart = [pair for pair, p in zip(pairs, known) if p <= TOLD_APART]
    return [(one, (1 + sum(j == k for _, j in apart), len(found) - sum(i == k for i, _ in apart))) for k, one in enumerate(found)]


def place(at: tuple[int, int]) -> str:
    """Places in words: "1", or "2 to 4" of a scheme that ties with others."""
    return f"{at[0]}" if at[0] == at[1] else f"{at[0]} to {at[1]}"


def paired(one: Measures, over: Measures) -> pd.Series:
    """By seed that both have: the loss of one at its best rate over that of the other, less 1."""
    return (one.best_values / over.best_values).dropna() - 1


def _p(one: pd.Series, other: pd.Series) -> float:
    seeds = one.index.intersection(other.index)
    return float(ttest_rel(one[seeds], other[seeds]).pvalue) if len(seeds) > 2 else 0.0


def untuned(one: Measures, found: Sequence[Measures]) -> float | None:
    """The expected loss of a cell at plain's best rate, at its depth and on its data: what one has who swaps the scheme and keeps the rate.
    None where either was not run."""
    reference = Cell(REFERENCE, "controlled", NO_PARAMS, "zero", 1.0, one.cell.data, one.cell.compiled, one.cell.depth)
    plain = next((other for other in found if other.cell == reference), None)
    return plain and one.loss_at(plain.best_lr)


def ranking(found: Sequence[Measures]) -> str:
    """Markdown: a table for each depth, deepest first."""
    parts = []
    for depth in sorted({one.cell.depth for one in found}, reverse=True):
        rows = [_row(one, at, untuned(one, found)) for one, at in placed([one for one in found if one.cell.depth == depth])]
        heads = [f"{depth} blocks", "place", "best loss", "at rate", "at plain's rate", "window", "margin", "LR10", "LR50",
                 "LR sensitivity"]  # fmt: skip
        parts.append(table(heads, rows))
    return "\n\n".join(parts)


def _row(one: Measures, at: tuple[int, int], common: float | None) -> list[object]:
    loss = one.best_loss
    ends = "" if pd.isna(loss.low) else f" [{loss.low:.3f}, {loss.high:.3f}]"
    n = f"n = {one.fresh}" if one.fresh else f"n = {len(one.best_values)}, of the search"
    return [called(one.cell.label), place(at), f"{loss.value:.3f}{ends} ({n})", f"{one.best_lr:.2e}",
            "-" if common is None else f"{common:.3f}", one.window, one.margin,
            describe(one.edge.lr10), describe(one.edge.lr50), f"{one.sensitivity:.2f}"]  # fmt: skip
