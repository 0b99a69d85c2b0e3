"""README's "How it dies": hazards, critical rates of the longer horizon, and every healthy death, from the anatomy's
tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from suite.evidence.cells import name, runs_of
from suite.evidence.deaths import CALM_UNTIL, Death, deaths
from suite.evidence.edges import describe
from suite.evidence.hazard import HEALTHY, LOOSER, PER, Risk, hazard_ratio, longer, risks, with_health
from suite.evidence.markdown import table
from suite.presets import PROTOCOLS
from suite.protocol import Protocol

SERIES = [(PROTOCOLS["anatomy"], PROTOCOLS["frontier"]), (PROTOCOLS["anatomy64"], PROTOCOLS["frontier64"])]


def how_it_dies(results: Path) -> str:
    """Markdown, for 16 and 64 image tokens: tables of hazards, critical rates at two horizons, healthy deaths."""
    intro = (f"A run is healthy while its held-out loss is below {HEALTHY:g} *c*; intervals are 95 %, exact for a Poisson count. In the "
             "tables of healthy deaths, left first: what was the first to leave the range of its calm steps, more than "
             f"{CALM_UNTIL} steps before the crash, with the steps from the crash (or before, where it is outside when the search starts). "
             "From: the block where the trunk's similarity (1-TCS), and the one where the writers' centered gradient (g_ctr), left "
             "first.")  # fmt: skip
    return "\n\n".join([intro, *(part for protocols in SERIES for part in _series(results, *protocols))])


def _series(results: Path, anatomy: Protocol, frontier: Protocol) -> list[str]:
    """What is said of one protocol's runs; [] where there is none."""
    folder = results / anatomy.name
    runs = with_health(folder)
    if runs.empty or runs["protocol_version"].iloc[0] != anatomy.version:
        return []
    known, healthy = risks(runs), [death for death in deaths(folder) if death.run.died_healthy]
    parts = [f"**{runs['image_tokens'].iloc[0]} image tokens** (`{anatomy.name}`, {len(runs)} runs).",
             table(["scheme", "blocks", "rate", "runs", "died", "healthy then", "at steps", "healthy steps",
                    f"deaths in {PER} healthy steps"], map(_hazard, known)),
             f"Over all rates, which are not the same for all: {_over(known)}.", *_ratios(known),
             f"With {LOOSER:g} *c* for {HEALTHY:g}: {_over(risks(with_health(folder, LOOSER)))}."]  # fmt: skip
    if edges := _edges(runs_of(results / frontier.name), runs, frontier):
        parts += [f"Critical rates by step {frontier.horizon} and by step {anatomy.horizon} (of the hotter rates at which all die early, "
                  "the frontier's runs count for both):",
                  table(["scheme", "blocks", f"LR50@{frontier.horizon}", f"LR50@{anatomy.horizon}"], edges)]  # fmt: skip
    if healthy:
        parts += [f"Every healthy death ({len(healthy)} run{'s' * (len(healthy) > 1)}):",
                  table(["scheme", "blocks", "rate", "seed", "step", "lowest loss", "state", "MMS signature", "left first", "trunk from",
                         "gradient from"], map(_death, healthy))]  # fmt: skip
    return parts


def _hazard(risk: Risk) -> list[object]:
    when = " to ".join(dict.fromkeys(f"{step}" for step in (*risk.when[:1], *risk.when[-1:]))) or "-"
    return [risk.name, risk.depth, f"{risk.lr:g}", risk.runs, risk.dead, len(risk.when), when, risk.steps, risk]


def _over(known: Sequence[Risk]) -> str:
    """The hazards of each scheme over its cells, in words."""
    by, words = defaultdict(list), []
    for risk in known:
        by[risk.name].append(risk)
    for scheme, own in by.items():
        runs, dead, steps = (sum(getattr(risk, what) for risk in own) for what in ("runs", "dead", "steps"))
        over = Risk(scheme, 0, 0.0, runs, dead, steps, tuple(sorted(chain.from_iterable(risk.when for risk in own))))
        when, n = over.when, len(over.when)
        at = f" (steps {when[0]} to {when[-1]})" if n > 1 else f" (step {when[0]})" if n else ""
        words.append(f"{scheme} {n} healthy death{'s' * (n != 1)}{at} in {steps} healthy steps of {runs} runs: {over} in {PER}")
    return "; ".join(words)


def _ratios(known: Sequence[Risk]) -> list[str]:
    """The hazard of `plain` over that of every other scheme at a depth and rate that both have, in words; [] where
    there is none."""
    words, at = [], {(risk.name, risk.depth, risk.lr): risk for risk in known}
    for (scheme, depth, lr), risk in at.items():
        plain = at.get(("plain", depth, lr))
        if scheme != "plain" and plain and (found := hazard_ratio(plain, risk)):
            ends = ", ".join(f"{end:.0f}" if end >= 10 else f"{end:.2g}" for end in found[1:])
            words.append(f"{found[0]:.1f} [{ends}] times that of {scheme} at {depth} blocks and {lr:g} "
                         f"({len(plain.when)} and {len(risk.when)} deaths)")  # fmt: skip
    return [f"At one and the same rate, plain's hazard is {'; '.join(words)}; exact if both hazards are constant."] if words else []


def _edges(short: pd.DataFrame, long: pd.DataFrame, frontier: Protocol) -> list[list[object]]:
    out = []
    for cell, (early, late, bound) in longer(short, long).items():
        above = describe(late)
        if late.kind == "above" and bound:
            above += f", at most {bound[0]:.2e} ({bound[1]} of {bound[2]} dead by step {frontier.horizon})"
        out.append([name(cell.scheme, cell.params), cell.depth, describe(early), above])
    return out


def _death(death: Death) -> list[object]:
    run = death.run
    first = f"{', '.join(death.first)} ({_when(death.left.min())})" if death.first else "nothing"
    signature = {True: "yes", False: "no"}.get(run.mms_signature, "-")
    return [run.name, run.depth, f"{run.lr:g}", run.seed, run.crash_step, f"{run.best_loss:.2f}", run.state.replace("_", "-"), signature,
            first, *(f"block {found[0]} ({_when(found[1])})" if found else "-" for found in (death.forward, death.backward))]  # fmt: skip


def _when(step: float) -> str:
    """Steps from the crash; one at which the search starts may lie further back."""
    return f"{step:+.0f}" + (" or before" if step == -CALM_UNTIL else "")
