"""What the committed tables say beyond the ranking: numbers for the sentences of templates/findings.md.j2."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pandas as pd

from suite.evidence.again import edges_again, nudges
from suite.evidence.cells import controlled, runs_of
from suite.evidence.decided import standing
from suite.evidence.edges import PRIMARY, REFERENCE, Edge, edges, hypotheses, ratios
from suite.evidence.hazard import risks, with_health
from suite.evidence.hypotheses import EQUAL
from suite.evidence.words import holds, render
from suite.presets import PROTOCOLS
from suite.verdict.outcome import DEAD, UNUSABLE

LEVEL_OF_TEST = 0.05  # of a p, after Holm
WELL = 0.5  # of c: a run whose loss has been below it trained well (a quarter of the way from what the digits allow, .65, to c = 2)


def findings(results: Path) -> str:
    """Markdown bullets. Raises ValueError where the tables contradict the words of one."""
    runs = controlled(runs_of(results / "frontier"))
    frontier, high = PROTOCOLS["frontier"], PROTOCOLS["laptop"].lrs[1]
    depth = runs["depth"].max()
    compared = [one for one in ratios(runs, hypotheses(results, "frontier")) if one.adjusted is not None]
    return render(
        "findings", short=frontier.horizon, depth=depth, high=high, below=_below(results), plain=_plain(edges(runs)),
        level=LEVEL_OF_TEST, compared=sorted(compared, key=lambda one: one.depth), ways=_ways(runs), dead=_dead(runs), well=WELL,
        standing={scheme: found for (scheme, at), found in standing(runs, high).items() if at == depth and found.n},
        tokens=_more_tokens(results), rounding=_roundings(results), again=edges_again(results),
    )  # fmt: skip


def _plain(found: list[Edge]) -> list[Edge]:
    """Plain's edges from the shallowest on."""
    plain = sorted((edge for edge in found if edge.cell.scheme == REFERENCE), key=lambda edge: edge.cell.depth)
    holds(all(deep.lr50.high <= less.lr50.low for less, deep in pairwise(plain)), "the deeper a plain network, the lower its edge")
    return plain


def _counts(outcomes: pd.Series) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in outcomes.value_counts().items())


def _ways(runs: pd.DataFrame) -> dict[str, tuple[str, int]]:
    """By scheme of the primary comparison how its runs failed, and how many there are, at the depths and rates that both were run at."""
    pair = runs[runs["scheme"].isin(PRIMARY)]
    pair = pair[pair.groupby(["depth", "lr"])["scheme"].transform("nunique") == len(PRIMARY)]
    by = {scheme: pair.loc[pair["scheme"] == scheme, "outcome"] for scheme in reversed(PRIMARY)}
    return {scheme: (_counts(outcomes[outcomes.isin(UNUSABLE)]), len(outcomes)) for scheme, outcomes in by.items()}


def _dead(runs: pd.DataFrame) -> dict[str, object]:
    """How the dead of the frontier died."""
    dead, half = runs[runs["outcome"].isin(DEAD)], runs["horizon"].iloc[0] // 2
    well = dead[dead["best_loss"] < WELL * dead["constant_loss"]]
    by = dict(well["scheme"].value_counts(sort=False))
    return {"runs": len(runs), "n": len(dead), "outcomes": _counts(dead["outcome"]), "well": len(well), "by": by, "half": half,
            "median": dead["crash_step"].median(), "soon": int((dead["crash_step"] <= half).sum())}  # fmt: skip


def _more_tokens(results: Path) -> list[dict[str, object]]:
    """The primary comparison with more image tokens, an entry a depth."""
    runs = runs_of(results / "frontier64")
    found = {(edge.cell.scheme, edge.cell.depth): edge for edge in edges(runs)}
    return [{"n": runs["image_tokens"].iloc[0], "depth": one.depth, "ratio": one, "edges": [found[scheme, one.depth] for scheme in
             (one.over, one.scheme)]} for one in ratios(runs, hypotheses(results, "frontier64"))]  # fmt: skip


def _roundings(results: Path) -> dict[str, object]:
    """What became of one run of each scheme under other roundings."""
    runs, _ = nudges(results)
    kinds = runs["outcome"].mask(runs["outcome"].isin(DEAD), "dead")
    by = {scheme: (_counts(kinds[mine.index]), len(mine)) for scheme, mine in runs.groupby("scheme", sort=False)}
    return {"by": by, **{name: ", ".join(f"{value:g}" for value in sorted(set(runs[name]))) for name in ("depth", "lr")}}


def _below(results: Path) -> dict[str, object]:
    """The anatomy's runs below the edge, where both schemes of the comparison have the same rate and depth."""
    runs = with_health(results / "anatomy")
    known = {(risk.depth, risk.lr, risk.name): risk for risk in risks(runs)}
    shared = sorted({key[:2] for key in known if all((*key[:2], scheme) in known for scheme in PRIMARY)})
    cells = []
    for risk in (known[depth, lr, scheme] for depth, lr in shared for scheme in reversed(PRIMARY)):
        gone = runs[runs["died_healthy"] & (runs["name"] == risk.name) & (runs["depth"] == risk.depth) & (runs["lr"] == risk.lr)]
        as_paper = (gone["mms_signature"].fillna(False) & (gone["state"] == EQUAL)).sum()
        cells.append({"risk": risk, "healthy": len(gone), "as_paper": as_paper})
    return {"horizon": runs["horizon"].iloc[0], "cells": cells}
