"""What the committed frontier, laptop and rounding tables say, in sentences whose every number is worked out from
their rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd

from suite.evidence.cells import controlled, runs_of
from suite.evidence.decided import standing
from suite.evidence.edges import PRIMARY, Edge, Ratio, edges, ratios
from suite.evidence.hazard import PER, risks, with_health
from suite.evidence.stats import Critical
from suite.presets import PROTOCOLS
from suite.protocol import SCHEMES
from suite.records.store import TABLES, read
from suite.verdict.outcome import DEAD, UNUSABLE

WELL = 0.5  # of c: a run whose loss has been below it trained well (a quarter of the way from what the digits allow, .65, to c = 2)

Edges = dict[tuple[str, int], Edge]


def findings(results: Path) -> str:
    """Markdown bullets. Raises ValueError where the tables contradict the words of one."""
    runs = controlled(runs_of(results / "frontier"))
    found = _by_scheme(runs)
    cool, hot = PROTOCOLS["laptop"].lrs
    parts = [*_below(results), _plain(found), _primary(runs, found), _how(runs), _others(found), _cool(runs, cool), _hot(runs, hot),
             _healthy(runs), *_more_tokens(results), *_roundings(results)]  # fmt: skip
    return "\n".join(f"- {sentence}" for sentence in parts)


def _holds(true: bool, words: str) -> None:
    if not true:
        raise ValueError(f"the tables do not bear out {words!r}; mend suite/evidence/findings.py")


def _by_scheme(runs: pd.DataFrame) -> Edges:
    return {(edge.cell.scheme, edge.cell.depth): edge for edge in edges(runs)}


def _rate(one: Critical) -> str:
    return f"{one} (n = {one.n})"


def _counts(outcomes: pd.Series) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in outcomes.value_counts().items())


def _plain(found: Edges) -> str:
    plain = {depth: edge for (scheme, depth), edge in sorted(found.items()) if scheme == PRIMARY[1]}
    rates = "; ".join(f"{depth} blocks {_rate(edge.lr50)}" for depth, edge in plain.items())
    words = "The deeper a plain network, the colder it must be trained."
    _holds(all(deep.lr50.high <= less.lr50.low for less, deep in pairwise(plain.values())), words)
    return f"**{words}** LR50@{next(iter(plain.values())).horizon} of plain: {rates}."


def _primary(runs: pd.DataFrame, found: Edges) -> str:
    """MV-Split over plain, with a word for each depth: does the interval leave 1 out, is a side not monotone."""

    def describe(bad: Sequence[str]) -> str:
        parts = []
        for ratio in _main(ratios(runs, bad)):
            word = "above 1" if ratio.low > 1 else "below 1" if ratio.high < 1 else "not told apart from 1"
            sides = [found[scheme, ratio.depth] for scheme in PRIMARY]
            if any((side.lr50 if bad == DEAD else side.lr50u).falls for side in sides):
                word += ", but fewer die at some hotter rate, so half is no edge"
            parts.append(f"{ratio.depth} blocks {ratio} (n = {ratio.n[0]} and {ratio.n[1]}), {word}")
        return "; ".join(parts)

    return (f"**MV-Split against plain**, the comparison fixed beforehand. LR50 over LR50: {describe(DEAD)}. Counting runs that never "
            f"trained as well, LR50u over LR50u: {describe(UNUSABLE)}.")  # fmt: skip


def _main(found: list[Ratio]) -> list[Ratio]:
    """The primary comparison, by depth."""
    return sorted((ratio for ratio in found if ratio.primary), key=lambda ratio: ratio.depth)


def _others(found: Edges) -> str:
    deepest = max(depth for _, depth in found)
    there = {scheme: found[scheme, deepest].lr50u for scheme in SCHEMES if (scheme, deepest) in found}
    rates = "; ".join(f"{scheme} {_rate(one)}" for scheme, one in there.items())
    words = "LayerScale, ReZero and DeepNorm can be trained hotter than both."
    _holds(all(one.low >= max(there[name].high for name in PRIMARY) for scheme, one in there.items() if scheme not in PRIMARY), words)
    return f"**{words}** LR50u at {deepest} blocks (intervals unadjusted): {rates}."


def _how(runs: pd.DataFrame) -> str:
    """The ways in which the schemes of the primary comparison fail, at the depths and rates that both were run at."""
    pair, parts = runs[runs["scheme"].isin(PRIMARY)], []
    pair = pair[pair.groupby(["depth", "lr"])["scheme"].transform("nunique") == len(PRIMARY)]
    for scheme in reversed(PRIMARY):
        outcomes = pair.loc[pair["scheme"] == scheme, "outcome"]
        parts.append(f"{scheme} {_counts(outcomes[outcomes.isin(UNUSABLE)])} of {len(outcomes)} runs")
    return f"**They fail in different ways.** At the rates that both were run at: {'; '.join(parts)}."


def _cool(runs: pd.DataFrame, cool: float) -> str:
    depth = runs["depth"].max()
    losses = runs[(runs["depth"] == depth) & (runs["lr"] == cool)].groupby("scheme", sort=False)["heldout_loss"]
    known = losses.agg(["mean", "min", "max", "size"])
    parts = [f"{one.Index} {one.mean:.3f} ({one.min:.3f} to {one.max:.3f}, n = {one.size})" for one in known.itertuples()]
    words = f"Where all live at {depth} blocks, plain learns worst."
    _holds(known.loc[PRIMARY[1], "min"] > known["max"].drop(PRIMARY[1]).max(), words)
    return f"**{words}** Held-out loss at {cool:g}, mean and range: {'; '.join(parts)}."


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
    found, parts = _by_scheme(runs), []
    usable = {ratio.depth: ratio for ratio in _main(ratios(runs, UNUSABLE)) if ratio.ratio is not None}
    for ratio in _main(ratios(runs)):
        if ratio.ratio is not None:
            more = f"; of LR50u {usable[ratio.depth]}" if ratio.depth in usable else ""
            rates = ", ".join(f"{scheme} {_rate(found[scheme, ratio.depth].lr50)}" for scheme in reversed(PRIMARY))
            horizon = found[PRIMARY[0], ratio.depth].horizon
            parts.append(f"at {ratio.depth} blocks LR50@{horizon} of {rates}, a ratio of {ratio}{more}")
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
