"""README's "How it dies": hazards, their ratios, critical rates of the longer horizon, and every healthy death, from the
anatomy's tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path

import pandas as pd

from suite.evidence.cells import name, runs_of
from suite.evidence.deaths import CALM_UNTIL, Death, deaths
from suite.evidence.edges import describe
from suite.evidence.hazard import CUT, HEALTHY, LOOSER, PER, Risk, hazard_ratio, longer, risks, with_health
from suite.evidence.markdown import table
from suite.presets import PROTOCOLS
from suite.protocol import Protocol

SERIES = [(PROTOCOLS["anatomy"], PROTOCOLS["frontier"]), (PROTOCOLS["anatomy64"], PROTOCOLS["frontier64"])]


def anatomy(results: Path) -> str:
    """Markdown, for 16 and 64 image tokens: hazards in two pieces, their ratios, critical rates at two horizons, healthy deaths."""
    intro = (f"A run is healthy while its held-out loss is below {HEALTHY:g} *c*; intervals are 95 %, exact for Poisson counts, two-sided "
             f"for 0 too. Step {CUT} was chosen as the border after the deaths were seen. In the tables of healthy deaths, left first: "
             f"what was the first to leave the range of its calm steps, more than {CALM_UNTIL} steps before the crash, with the steps "
             "from the crash (or before, where it is outside when the search starts). From: the block where the trunk's similarity "
             "(1-TCS), and the one where the writers' centered gradient (g_ctr), left first.")  # fmt: skip
    return "\n\n".join([intro, *(part for protocols in SERIES for part in _series(results, *protocols))])


def _series(results: Path, anatomy: Protocol, frontier: Protocol) -> list[str]:
    """What is said of one protocol's runs; [] where there is none."""
    folder = results / anatomy.name
    runs = with_health(folder)
    if runs.empty or runs["protocol_version"].iloc[0] != anatomy.version:
        return []
    known, healthy = risks(runs), [death for death in deaths(folder) if death.run.died_healthy]
    parts = [f"**{runs['image_tokens'].iloc[0]} image tokens** (`{anatomy.name}`, {len(runs)} runs). {_over(known)}",
             f"In each piece: healthy deaths, healthy steps, deaths in {PER} healthy steps.",
             table(["scheme", "blocks", "rate", "runs", "died", f"up to step {CUT}: deaths", "steps", f"in {PER}", "after it: deaths",
                    "steps", f"in {PER}"], map(_hazard, known))]  # fmt: skip
    if ratios := _ratios(known, anatomy):
        parts += ["Plain's hazard over that of another scheme, at one rate and at one distance from the edge (hottest: each scheme at the "
                  "hottest rate of the lattice below its own edge; second: at the one below); exact if both are constant within a piece. "
                  "In brackets: interval; healthy deaths of the two.",
                  table(["plain over", "matched by", "blocks", "rates", f"up to step {CUT}", "after it"], ratios)]  # fmt: skip
    parts += [f"With {LOOSER:g} *c* for {HEALTHY:g}: {_over(risks(with_health(folder, LOOSER)))}"]
    if edges := _edges(runs_of(results / frontier.name), runs, frontier):
        parts += [f"Critical rates by step {frontier.horizon} and by step {anatomy.horizon} (of the hotter rates at which all die early, "
                  "the frontier's runs count for both; what both protocols trained is one and the same run to step "
                  f"{frontier.horizon}):",
                  table(["scheme", "blocks", f"LR50@{frontier.horizon}", f"LR50@{anatomy.horizon}"], edges)]  # fmt: skip
    if healthy:
        parts += [f"Every healthy death ({len(healthy)} run{'s' * (len(healthy) > 1)}):",
                  table(["scheme", "blocks", "rate", "seed", "step", "lowest loss", "state", "MMS signature", "left first", "trunk from",
                         "gradient from"], map(_death, healthy))]  # fmt: skip
    return parts


def _hazard(risk: Risk) -> list[object]:
    return [risk.name, risk.depth, f"{risk.lr:g}", risk.runs, risk.dead,
            *(cell for piece in risk.pieces for cell in (piece.deaths, piece.steps, piece))]  # fmt: skip


def _together(known: Sequence[Risk]) -> dict[str, Risk]:
    """The risks of each scheme over its cells and rates."""
    by = defaultdict(list)
    for risk in known:
        by[risk.name].append(risk)
    return {scheme: reduce(add, own) for scheme, own in by.items()}


def _over(known: Sequence[Risk]) -> str:
    """The hazards of each scheme over its cells, piece by piece, in words."""
    said = []
    for words, which in ((f"Up to step {CUT}", 0), ("after it", 1)):
        pieces = {scheme: risk.pieces[which] for scheme, risk in _together(known).items()}
        said.append(f"{words}: " + "; ".join(
            f"{scheme} {piece.deaths} healthy death{'s' * (piece.deaths != 1)} in {piece.steps:,} healthy steps, {piece} in {PER}"
            for scheme, piece in pieces.items()))  # fmt: skip
    return ". ".join(said).replace(". after", ". After") + "."


def _ratios(known: Sequence[Risk], protocol: Protocol) -> list[list[object]]:
    """Rows of plain's hazard over the others': at each rate that both have, and at each distance from the edge."""
    out, at = [], {(risk.name, risk.depth, risk.lr): risk for risk in known}
    for (scheme, depth, lr), risk in at.items():
        if scheme != "plain" and (plain := at.get(("plain", depth, lr))):
            out.append([scheme, "rate", depth, f"{lr:g}", *_pieces(plain, risk)])
    places, pairs = _places(protocol), []
    for (scheme, depth, place), lr in places.items():
        mine, plain = at.get((scheme, depth, lr)), at.get(("plain", depth, places.get(("plain", depth, place))))
        if scheme != "plain" and mine and plain:
            pairs.append((plain, mine))
            out.append([scheme, f"distance: {place}", depth, f"{plain.lr:g} and {lr:g}", *_pieces(plain, mine)])
    for scheme in dict.fromkeys(mine.name for _, mine in pairs):
        own = [pair for pair in pairs if pair[1].name == scheme]
        if len(own) > 1:
            out.append([scheme, "distance: all", ", ".join(map(str, sorted({mine.depth for _, mine in own}))), "all",
                        *_pieces(*(reduce(add, side) for side in zip(*own)))])  # fmt: skip
    return out


def _places(protocol: Protocol) -> dict[tuple[str, int, str], float]:
    """(scheme, depth, hottest or second) -> rate of the plan, for cells without parameters of their own.

    The plan has the two hottest rates of the lattice below each edge, by `hazard.rates_below`.
    """
    return {(cell.scheme, depth, place): lr for cell in protocol.cells if not cell.params for depth in cell.depths or protocol.depths
            for place, lr in zip(("hottest", "second"), sorted(cell.lrs or protocol.lrs, reverse=True))}  # fmt: skip


def _pieces(plain: Risk, other: Risk) -> list[str]:
    """The ratio of each piece in words; "-" where there is none."""
    out = []
    for mine, theirs in zip(plain.pieces, other.pieces):
        counts, found = f"{mine.deaths} and {theirs.deaths}", hazard_ratio(mine, theirs)
        ends = [f"{end:.0f}" if end >= 10 else f"{end:.2g}" for end in found or ()]
        out.append(f"{ends[0]} [{ends[1]}, {ends[2]}; {counts}]" if ends else f"- [{counts}]")
    return out


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
