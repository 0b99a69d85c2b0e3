"""README's numbers: how the failure looks, and the schemes at the greatest depth of the frontier, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from suite.evidence.bench import on_cpu
from suite.evidence.cells import controlled, runs_of
from suite.evidence.critical_rates import pooled
from suite.evidence.decided import share
from suite.evidence.edges import PRIMARY, REFERENCE, hypotheses, ratios
from suite.evidence.families import FIXED, start
from suite.evidence.hazard import risks, with_health
from suite.evidence.markdown import table
from suite.evidence.measures import Measures
from suite.evidence.ranking import place, placed
from suite.evidence.stats import Critical
from suite.evidence.words import called, holds, render, thousandths
from suite.records.store import read
from suite.verdict.outcome import DEAD

AFTER = 400  # steps trained on behind a death that tell whether a run comes back


def failure(results: Path) -> str:
    """Markdown: what became of the schemes of the primary comparison below their edges, and of the dead behind their death."""
    runs = with_health(results / "anatomy")
    known = {(risk.depth, risk.lr, risk.name): risk for risk in risks(runs)}
    depth, lr = max(key[:2] for key in known if all((*key[:2], scheme) in known for scheme in PRIMARY))
    dead = runs[runs["outcome"].isin(DEAD) & (runs["last_step"] - runs["crash_step"] >= AFTER)]
    up = dead["best_loss"] + (dead["constant_loss"] - dead["best_loss"]) / 2
    back = int((dead["final_loss"] < up).sum())
    holds(not back, "no dead run comes back")
    holds(not (dead.loc[dead["name"] == PRIMARY[0], "state"] == "mean_dominated").any(), "the tokens of MV-Split's dead stay apart")
    levels = {scheme: dead.loc[dead["name"] == scheme, "final_loss"] for scheme in PRIMARY}
    return render("failure", depth=depth, lr=lr, horizon=runs["horizon"].iloc[0], constant=runs["constant_loss"].iloc[0], after=AFTER,
                  plain=known[depth, lr, "plain"], split=known[depth, lr, "mvsplit"], levels=levels, dead=len(dead))


def headline(results: Path) -> str:
    """Markdown: the ranking at the frontier's greatest depth, and what it says. Raises ValueError where the tables contradict a word."""
    runs = controlled(runs_of(results / "frontier"))
    every = pooled(results, "frontier")
    depths = sorted({one.cell.depth for one in every})
    ranked = placed([one for one in every if one.cell.depth == depths[-1]])
    found = [one for one, _ in ranked]
    dead = runs[(runs["depth"] == depths[-1]) & runs["outcome"].isin(DEAD)]
    equal = {scheme: (mine["state"] == "mean_dominated") for scheme, mine in dead.groupby("scheme")}
    over = on_cpu(read(results / "bench", "bench"), "step", depths[-1], "over_plain")
    heads = ["place", "scheme", "scale of the branch", "best loss", "window", "margin", "edge", "deaths with equal tokens", "cost"]
    rows = [[place(at), called(one.cell.label), _scale(one), f"{one.best_loss.value:.3f} [{one.best_loss.low:.3f}, "
             f"{one.best_loss.high:.3f}]", one.window, one.margin, _edge(one.edge.lr50), _of(equal[one.cell.scheme]),
             f"{over[one.cell.scheme] - 1:+.0%}" if one.cell.scheme in over else "-"]
            for one, at in ranked]  # fmt: skip
    first = found[0]
    ahead = [depth for depth in depths if _alone(first, [one for one in every if one.cell.depth == depth])]
    compared = [one for one in ratios(runs, hypotheses(results, "frontier")) if one.depth == depths[-1]]
    split = next(one for one in compared if one.adjusted is not None)
    others = [one for one in compared if one.adjusted is None]
    fresh = runs[runs["run_id"].isin(_fresh(runs, found))]
    edges = {one.cell.scheme: one.edge.lr50.rate for one in found}
    small = {one.scheme for one in others}
    holds(all(one.window.high >= first.window.low for one in found), "intervals of the windows overlap")
    holds(split.ratio > 1 and not equal[PRIMARY[0]].any(), "the split moves the edge up, and no death of it ends with equal tokens")
    holds(all(equal[scheme].mean() > 0.9 for scheme in small | {REFERENCE}), "a small branch dies as plain does")
    holds(all(rank[0] >= dict((one.cell.scheme, at) for one, at in ranked)[REFERENCE][0] for one, rank in ranked
              if one.cell.scheme in small), "a small branch learns no better than plain")  # fmt: skip
    return render(
        "headline", table=table(heads, rows), depth=depths[-1], horizon=first.edge.horizon, first=first, ahead=ahead, depths=depths,
        behind=found[-1].best_loss.value / first.best_loss.value - 1, split=split, equal=equal,
        others=others, costs=over, at_best=len(fresh),
        unusable=int((fresh["outcome"] != "survived").sum()), spread=max(edges.values()) / min(edges.values()),
        margins=2 ** (max(one.margin.value for one in found) - min(one.margin.value for one in found)),
    )  # fmt: skip


def _fresh(runs: pd.DataFrame, found: Sequence[Measures]) -> list[str]:
    """Ids of the runs behind the best losses."""
    cells = {(one.cell.scheme, one.cell.depth, one.best_lr): set(one.best_values.index) for one in found}
    return [run.run_id for run in runs.itertuples() if run.seed in cells.get((run.scheme, run.depth, run.lr), ())]


def _alone(first: Measures, found: Sequence[Measures]) -> bool:
    """Whether a scheme has the first place of a depth to itself."""
    return any(one.cell.scheme == first.cell.scheme and at == (1, 1) for one, at in placed(found))


def _edge(found: Critical) -> str:
    return f"{thousandths(found.rate)} [{thousandths(found.low)}, {thousandths(found.high)}]" if found.kind == "fit" else str(found)


def _of(equal: pd.Series) -> str:
    return f"{equal.sum()} of {len(equal)} {share(equal.sum(), len(equal))}"


def _scale(one: Measures) -> str:
    return f"{start(one.cell):.2g}, {'fixed' if one.cell.scheme in FIXED else 'learned'}"
