"""README's numbers: how the failure looks, and the schemes at the greatest depth of the frontier, one row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from scipy.stats import ttest_rel

from suite.evidence.bench import on_cpu
from suite.evidence.cells import cells, controlled, runs_of
from suite.evidence.critical_rates import pool, pooled
from suite.evidence.edges import PRIMARY, REFERENCE, Ratio, compared, hypotheses, ratios
from suite.evidence.families import FIXED, start
from suite.evidence.hazard import Risk, evals_of, risks, with_health
from suite.evidence.hypotheses import EQUAL, equal_deaths
from suite.evidence.markdown import table
from suite.evidence.measures import Measures
from suite.evidence.ranking import TOLD_APART, place, placed
from suite.evidence.shares import share
from suite.evidence.stats import Critical
from suite.evidence.words import called, holds, render, thousandths
from suite.records.store import read
from suite.verdict.outcome import DEAD

AFTER = 400  # steps trained on behind a death that tell whether a run comes back


class BelowEdge(NamedTuple):
    """The deepest, hottest cells of `anatomy` of which the primary comparison has both, and all runs of that protocol."""

    depth: int
    lr: float
    plain: Risk
    split: Risk
    runs: pd.DataFrame


class AtScale(NamedTuple):
    """The fixed gain with the lowest loss, and MV-Split from the same scale; edges are ratios of LR50 to plain's."""

    g: float
    gain: Measures
    edge: Ratio
    small: Ratio
    equal: int  # deaths of MV-Split from that scale with equal tokens
    deaths: int


def below_edge(results: Path) -> BelowEdge:
    """Of the committed runs."""
    runs = with_health(results / "anatomy")
    known = {(risk.depth, risk.lr, risk.name): risk for risk in risks(runs)}
    depth, lr = max(key[:2] for key in known if all((*key[:2], scheme) in known for scheme in PRIMARY))
    return BelowEdge(depth, lr, known[depth, lr, "plain"], known[depth, lr, "mvsplit"], runs)


def at_scale(results: Path, depth: int) -> AtScale:
    """Of protocol `scale`. Raises ValueError where no gain has an MV-Split network of its scale beside it."""
    runs = cells(controlled(pool(results, "scale")))
    found = {one.cell: one for one in pooled(results, "scale") if one.cell.depth == depth and one.cell.writers == "zero" and one.fresh}
    split = {start(cell): cell for cell in found if cell.scheme == PRIMARY[0] and cell in runs}
    gains = [one for cell, one in found.items() if cell.scheme == "gain" and start(cell) in split]
    holds(bool(gains), "a fixed gain and MV-Split from its scale were measured")
    best = min(gains, key=lambda one: one.best_loss.value)
    plain = next(mine for cell, mine in runs.items() if cell.scheme == REFERENCE and cell.depth == depth)
    small = split[start(best.cell)]
    over = [compared(cell.scheme, depth, runs[cell], plain) for cell in (best.cell, small)]
    holds(found[small].best_loss.value <= found[split[1.0]].best_loss.value, "a small start of MV-Split does not raise its loss")
    return AtScale(start(best.cell), best, *over, *equal_deaths(runs[small]))


def of_plain(results: Path, depth: int) -> Measures:
    """What plain is ranked by at a depth of the frontier."""
    return next(one for one in pooled(results, "frontier") if (one.cell.scheme, one.cell.depth) == (REFERENCE, depth))


def failure(results: Path) -> str:
    """Markdown: what became of the schemes of the primary comparison below their edges, and of the dead behind their death."""
    below = below_edge(results)
    runs = below.runs
    dead = runs[runs["outcome"].isin(DEAD) & (runs["last_step"] - runs["crash_step"] >= AFTER)]
    up = dead["best_loss"] + (dead["constant_loss"] - dead["best_loss"]) / 2
    holds(not (dead["final_loss"] < up).any(), "no dead run comes back")
    holds(not (dead.loc[dead["name"] == PRIMARY[0], "state"] == EQUAL).any(), "the tokens of MV-Split's dead stay apart")
    holds(below.plain.runs == below.plain.dead == 8 and below.split.dead == len(below.split.when), "all eight plain networks die")
    levels = {scheme: dead.loc[dead["name"] == scheme, "final_loss"] for scheme in PRIMARY}
    return render("failure", **below._asdict(), horizon=runs["horizon"].iloc[0], constant=runs["constant_loss"].iloc[0], after=AFTER,
                  levels=levels, dead=len(dead), edge=of_plain(results, below.depth).edge.horizon)


def headline(results: Path) -> str:
    """Markdown: the ranking at the frontier's greatest depth, and what it says. Raises ValueError where the tables contradict a word."""
    runs = controlled(runs_of(results / "frontier"))
    every = pooled(results, "frontier")
    depths = sorted({one.cell.depth for one in every})
    ranked = placed([one for one in every if one.cell.depth == depths[-1]])
    found = [one for one, _ in ranked]
    dead = runs[(runs["depth"] == depths[-1]) & runs["outcome"].isin(DEAD)]
    equal = {scheme: (mine["state"] == EQUAL) for scheme, mine in dead.groupby("scheme")}
    over = on_cpu(read(results / "bench", "bench"), "step", depths[-1], "over_plain")
    heads = ["place", "scheme", "scale", "best loss", "best rate", "window", "margin", "edge", "deaths with equal tokens", "cost"]
    rows = [[place(at), called(one.cell.label), _scale(one), f"{one.best_loss.value:.3f} [{one.best_loss.low:.3f}, "
             f"{one.best_loss.high:.3f}]", thousandths(one.best_lr), one.window, one.margin, _edge(one.edge.lr50),
             _of(equal[one.cell.scheme]), f"{over[one.cell.scheme] - 1:+.0%}" if one.cell.scheme in over else "-"]
            for one, at in ranked]  # fmt: skip
    first, by = found[0], {one.cell.scheme: one for one in found}
    ahead = [depth for depth in depths if _alone(first, [one for one in every if one.cell.depth == depth])]
    split = primary(results, depths[-1])
    fresh = runs[runs["run_id"].isin(_fresh(runs, found))]
    scale = at_scale(results, depths[-1])
    holds(all(one.window.high >= first.window.low for one in found), "intervals of the windows overlap")
    holds(split.ratio > 1 and not equal[PRIMARY[0]].any(), "the split moves the edge up, and no death of it ends with equal tokens")
    holds(scale.equal > 0.9 * scale.deaths, "MV-Split from a small branch dies as plain does")
    hottest = max(found, key=lambda one: one.edge.lr50.middle)
    early = in_the_time_of(first.edge.horizon / over[first.cell.scheme], first, runs, evals_of(results / "frontier"))
    holds(ttest_rel(early, by[REFERENCE].best_values[early.index]).pvalue > TOLD_APART, "in equal time plain is level with the first")
    return render(
        "headline", table=table(heads, rows), depth=depths[-1], horizon=first.edge.horizon, first=first, last=found[-1], ahead=ahead,
        depths=depths, behind=found[-1].best_loss.value / first.best_loss.value - 1, split=split, equal=equal, gain=scale,
        lower=1 - first.best_loss.value / by[REFERENCE].best_loss.value, at_best=len(fresh),
        unusable=int((fresh["outcome"] != "survived").sum()), hottest=hottest, plain=by[REFERENCE], early=early,
    )  # fmt: skip


def primary(results: Path, depth: int) -> Ratio:
    """The comparison of edges at a depth that was fixed beforehand."""
    found = ratios(controlled(runs_of(results / "frontier")), hypotheses(results, "frontier"))
    return next(one for one in found if one.depth == depth and one.adjusted is not None)


def _fresh(runs: pd.DataFrame, found: Sequence[Measures]) -> list[str]:
    """Ids of the runs behind the best losses."""
    cells = {(one.cell.scheme, one.cell.depth, one.best_lr): set(one.best_values.index) for one in found}
    return [run.run_id for run in runs.itertuples() if run.seed in cells.get((run.scheme, run.depth, run.lr), ())]


def in_the_time_of(steps: float, one: Measures, runs: pd.DataFrame, evals: Callable[[str], pd.DataFrame]) -> pd.Series:
    """Held-out losses by seed of the runs behind a best loss, at their last measurement within so many steps, which is the name."""
    ids = runs[runs["run_id"].isin(_fresh(runs, [one]))].set_index("seed")["run_id"]
    known = {seed: evals(run_id).set_index("step")["heldout_loss"] for seed, run_id in ids.items()}
    step = max(step for step in next(iter(known.values())).index if step <= steps)
    return pd.Series({seed: losses[step] for seed, losses in known.items()}, name=step)


def _alone(first: Measures, found: Sequence[Measures]) -> bool:
    """Whether a scheme has the first place of a depth to itself."""
    return any(one.cell.scheme == first.cell.scheme and at == (1, 1) for one, at in placed(found))


def _edge(found: Critical) -> str:
    return f"{thousandths(found.rate)} [{thousandths(found.low)}, {thousandths(found.high)}]" if found.kind == "fit" else str(found)


def _of(equal: pd.Series) -> str:
    return f"{equal.sum()} of {len(equal)} {share(equal.sum(), len(equal))}"


def _scale(one: Measures) -> str:
    return f"{start(one.cell):.2g}, {'fixed' if one.cell.scheme in FIXED else 'learned'}"
