"""What the committed frontier, laptop and rounding tables say, in sentences whose every number is worked out from
their rows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pandas as pd

from suite.evidence.cells import controlled, runs_of
from suite.evidence.decided import standing
from suite.evidence.edges import PRIMARY, REFERENCE, Ratio, edges, hypotheses, ratios
from suite.evidence.hazard import PER, risks, with_health
from suite.evidence.measures import Measures, measures
from suite.evidence.ranking import ranked
from suite.evidence.stats import Critical
from suite.presets import PROTOCOLS
from suite.records.store import TABLES, read
from suite.verdict.outcome import DEAD, UNUSABLE

Numbers = dict[tuple[str, int], Measures]  # by scheme and depth
LEVEL_OF_TEST = 0.05  # of a p, after Holm
WELL = 0.5  # of c: a run whose loss has been below it trained well (a quarter of the way from what the digits allow, .65, to c = 2)

def findings(results: Path) -> str:
    """Markdown bullets. Raises ValueError where the tables contradict the words of one."""
    runs = controlled(runs_of(results / "frontier"))
    found = {(one.cell.scheme, one.cell.depth): one for one in measures(runs)}
    compared = {one.depth: one for one in ratios(runs, hypotheses(results, "frontier")) if one.adjusted is not None}
    hot = PROTOCOLS["laptop"].lrs[1]
    parts = [*_below(results), _best(found), _windows(found), _plain(found), _primary(compared), _how(runs), _scale(found), _hot(runs, hot),
             _healthy(runs), *_more_tokens(results), *_roundings(results)]  # fmt: skip
    return "\n".join(f"- {sentence}" for sentence in parts)


def _holds(true: bool, words: str) -> None:
    if not true:
        raise ValueError(f"the tables do not bear out {words!r}; mend suite/evidence/findings.py")


def _rate(one: Critical) -> str:
    return f"{one} (n = {one.n})"


def _counts(outcomes: pd.Series) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in outcomes.value_counts().items())


def _deepest(found: Numbers) -> list[Measures]:
    """The schemes at the greatest depth, from the best loss up."""
    depth = max(depth for _, depth in found)
    return sorted((one for (_, at), one in found.items() if at == depth), key=lambda one: one.best_loss.value)


def _best(found: Numbers) -> str:
    mine = _deepest(found)
    parts = [f"{one.cell.scheme} {one.best_loss.value:.3f} [{one.best_loss.low:.3f}, {one.best_loss.high:.3f}] at {one.best_lr:.2e} "
             f"(n = {len(one.best_values)})" for one in mine]  # fmt: skip
    others = [one.cell.scheme for one, tie in ranked(mine) if tie][1:]
    alone = f"tied with it: {', '.join(others)}" if others else f"told apart from all by pairs of seeds{_everywhere(found, mine[0])}"
    behind = mine[-1].best_loss.value / mine[0].best_loss.value - 1
    return (f"**At its own best rate {mine[0].cell.scheme} learns best; the last is {behind:.0%} behind.** Best loss at "
            f"{mine[0].cell.depth} blocks: {'; '.join(parts)}; {alone}.")  # fmt: skip


def _everywhere(found: Numbers, first: Measures) -> str:
    """Whether the best scheme of the greatest depth is so, alone, at every depth, in words."""
    for depth in {depth for _, depth in found}:
        tied = [one.cell.scheme for one, tie in ranked([one for (_, at), one in found.items() if at == depth]) if tie]
        if tied != [first.cell.scheme]:
            return ""
    return ", at the other depths too"


def _windows(found: Numbers) -> str:
    mine = sorted(_deepest(found), key=lambda one: -one.window.value)
    parts = [f"{one.cell.scheme} {one.window}" for one in mine]
    margins = [f"{one.cell.scheme} {one.margin}" for one in mine]
    return (f"**How wide the range of good rates is** at {mine[0].cell.depth} blocks, in octaves with a loss within 5 % of the best: "
            f"{'; '.join(parts)}. From the best rate to LR10, in octaves: {'; '.join(margins)}.")  # fmt: skip


def _plain(found: Numbers) -> str:
    plain = {depth: one.edge for (scheme, depth), one in sorted(found.items()) if scheme == REFERENCE}
    rates = "; ".join(f"{depth} blocks {_rate(edge.lr50)}" for depth, edge in plain.items())
    words = "The deeper a plain network, the colder it must be trained."
    _holds(all(deep.lr50.high <= less.lr50.low for less, deep in pairwise(plain.values())), words)
    return f"**{words}** LR50@{next(iter(plain.values())).horizon} of plain: {rates}."


def _primary(compared: dict[int, Ratio]) -> str:
    """MV-Split over plain, with a word for each depth: is it told apart from 1."""
    parts = []
    for depth, ratio in sorted(compared.items()):
        word = "not told apart from 1" if ratio.adjusted > LEVEL_OF_TEST else "above 1" if ratio.ratio > 1 else "below 1"
        parts.append(f"{depth} blocks {ratio} (n = {ratio.n[0]} and {ratio.n[1]}), {word} (p = {ratio.adjusted:.2g})")
    return (f"**MV-Split against plain**, of one scale, the comparison fixed beforehand: LR50 over LR50 at {'; '.join(parts)} (Holm over "
            f"{len(compared)}). Fixed was the rate of the dead; that the untrained count as well was decided after looking.")  # fmt: skip


def _scale(found: Numbers) -> str:
    rates = "; ".join(f"{one.cell.scheme} {_rate(one.edge.lr50)}" for one in _deepest(found))
    depth = _deepest(found)[0].cell.depth
    return ("**LR50 ranks no schemes of unequal scale**: a step of Adam does less through a smaller branch, whose best rate and edge "
            f"are both hotter. At {depth} blocks: {rates}.")  # fmt: skip


def _how(runs: pd.DataFrame) -> str:
    """The ways in which the schemes of the primary comparison fail, at the depths and rates that both were run at."""
    pair, parts = runs[runs["scheme"].isin(PRIMARY)], []
    pair = pair[pair.groupby(["depth", "lr"])["scheme"].transform("nunique") == len(PRIMARY)]
    for scheme in reversed(PRIMARY):
        outcomes = pair.loc[pair["scheme"] == scheme, "outcome"]
        parts.append(f"{scheme} {_counts(outcomes[outcomes.isin(UNUSABLE)])} of {len(outcomes)} runs")
    return f"**They fail in different ways.** At the rates that both were run at: {'; '.join(parts)}."


def _hot(runs: pd.DataFrame, hot: float) -> str:
    deepest = runs["depth"].max()
    parts = [f"{scheme} ({found})" for (scheme, depth), found in standing(runs, hot).items() if depth == deepest and found.n]
    return f"**At the hot rate of {hot:g}** and {deepest} blocks: {'; '.join(parts)}."


def _healthy(runs: pd.DataFrame) -> str:
    """How the dead died: of the finished controlled runs of the frontier that are dead."""
    dead, half = runs[runs["outcome"].isin(DEAD)], runs["horizon"].iloc[0] // 2
    well = dead[dead["best_loss"] < WELL * dead["constant_loss"]]
    by = ", ".join(f"{n} {scheme}" for scheme, n in well["scheme"].value_counts(sort=False).items())
    return (f"**How they die.** Of {len(runs)} runs {len(dead)} died ({_counts(dead['outcome'])}); "
            f"{len(well)} of them had a loss under {WELL:g} *c* before ({by or 'none'}). The median death is at step "
            f"{dead['crash_step'].median():g}, {(dead['crash_step'] <= half).sum()} of {len(dead)} in the first {half} steps.")  # fmt: skip


def _more_tokens(results: Path) -> list[str]:
    """The primary comparison with 64 image tokens."""
    runs = runs_of(results / "frontier64")
    found, parts = {(edge.cell.scheme, edge.cell.depth): edge for edge in edges(runs)}, []
    for ratio in ratios(runs, hypotheses(results, "frontier64")):
        rates = ", ".join(f"{scheme} {_rate(found[scheme, ratio.depth].lr50)}" for scheme in (ratio.over, ratio.scheme))
        parts.append(f"at {ratio.depth} blocks LR50@{found[ratio.scheme, ratio.depth].horizon} of {rates}, a ratio of {ratio}")
    return [f"**With {runs['image_tokens'].iloc[0]} image tokens** for 16: {'; '.join(parts)}."] if parts else []


def _roundings(results: Path) -> list[str]:
    if not (results / "rounding" / TABLES["rounding"].path).exists():
        return []
    runs = read(results / "rounding", "rounding").query("counts")
    kinds = runs["outcome"].mask(runs["outcome"].isin(DEAD), "dead")
    cells = runs.groupby(["scheme", "depth", "lr"], sort=False)
    parts = [f"{scheme} {_counts(kinds[at.index])} of {len(at)}" for (scheme, *_), at in cells]
    depths, rates = (", ".join(f"{value:g}" for value in sorted(set(runs[name]))) for name in ("depth", "lr"))
    return [f"**Rounding.** Seed 0 at {depths} blocks and {rates}, again under other instruction sets, eager, and from weights "
            f"moved by one unit in the last place: {'; '.join(parts)}."]  # fmt: skip


def _below(results: Path) -> list[str]:
    """The anatomy's runs below the edge, where both schemes of the comparison have the same rate and depth."""
    runs = with_health(results / "anatomy")
    known = {(risk.depth, risk.lr, risk.name): risk for risk in risks(runs)}
    shared = sorted({key[:2] for key in known if all((*key[:2], scheme) in known for scheme in PRIMARY)})
    parts = []
    for depth, lr in shared:
        for scheme in reversed(PRIMARY):
            risk = known[depth, lr, scheme]
            gone = runs[runs["died_healthy"] & (runs["name"] == scheme) & (runs["depth"] == depth) & (runs["lr"] == lr)]
            as_paper = (gone["mms_signature"].fillna(False) & (gone["state"] == "mean_dominated")).sum()
            steps = f" (step{'s' * (len(gone) > 1)} {', '.join(map(str, risk.when))})" if len(gone) else ""
            parts.append(
                f"{scheme} at {depth} blocks and {lr:g}: {risk.dead} of {risk.runs} died, {len(gone)} of them healthy{steps}, "
                f"{as_paper} of these {len(gone)} with equal tokens and the paper's gradient event; {risk} deaths in {PER} healthy steps"
            )
    words = f"at a rate below both edges of {PROTOCOLS['frontier'].horizon} steps"
    return [f"**Healthy, then gone.** {runs['horizon'].iloc[0]} steps {words}: {'; '.join(parts)}."] if parts else []
