"""How it dies: hazards, their ratios, critical rates of the longer horizon, and every healthy death, from the anatomy's tables."""

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
from suite.evidence.words import called, render
from suite.presets import PROTOCOLS
from suite.protocol import Protocol

SERIES = [(PROTOCOLS["anatomy"], PROTOCOLS["frontier"]), (PROTOCOLS["anatomy64"], PROTOCOLS["frontier64"])]


def anatomy(results: Path) -> str:
    """Markdown, for 16 and 64 image tokens: hazards in two pieces, their ratios, critical rates at two horizons, healthy deaths."""
    series = [found for protocols in SERIES if (found := _series(results, *protocols))]
    return render("anatomy", series=series, healthy=HEALTHY, looser=LOOSER, cut=CUT, per=PER, calm_until=CALM_UNTIL)


def _series(results: Path, anatomy: Protocol, frontier: Protocol) -> dict[str, object]:
    """What the template asks for of one protocol's runs; nothing where there is none."""
    folder = results / anatomy.name
    runs = with_health(folder)
    if runs.empty or runs["protocol_version"].iloc[0] != anatomy.version:
        return {}
    known, healthy = risks(runs), [death for death in deaths(folder) if death.run.died_healthy]
    pieces = [f"up to step {CUT}: deaths", "steps", f"in {PER}", "after it: deaths", "steps", f"in {PER}"]
    lines = [(HEALTHY, known), (LOOSER, risks(with_health(folder, LOOSER)))]
    ratios, edges = _ratios(known, anatomy), _edges(runs_of(results / frontier.name), runs, frontier)
    last = ["scheme", "blocks", "rate", "seed", "step", "lowest loss", "state", "MMS signature", "left first", "trunk from",
            "gradient from"]
    return {
        "tokens": runs["image_tokens"].iloc[0], "name": anatomy.name, "runs": len(runs), "short": frontier.horizon, "long": anatomy.horizon,
        "together": table(["healthy below", "scheme", *pieces], [[f"{line:g} *c*", called(scheme), *_cells(risk)] for line, found in lines
                                                                 for scheme, risk in _together(found).items()]),
        "hazards": table(["scheme", "blocks", "rate", "runs", "died", *pieces], map(_hazard, known)),
        "ratios": ratios and table(["plain over", "matched by", "blocks", "rates", f"up to step {CUT}", "after it"], ratios),
        "edges": edges and table(["scheme", "blocks", f"LR50@{frontier.horizon}", f"LR50@{anatomy.horizon}"], edges),
        "deaths": healthy and table(last, map(_death, healthy)), "n_deaths": len(healthy),
    }  # fmt: skip


def _hazard(risk: Risk) -> list[object]:
    return [called(risk.name), risk.depth, f"{risk.lr:g}", risk.runs, risk.dead, *_cells(risk)]


def _cells(risk: Risk) -> list[object]:
    return [cell for piece in risk.pieces for cell in (piece.deaths, f"{piece.steps:,}", piece)]


def _together(known: Sequence[Risk]) -> dict[str, Risk]:
    """The risks of each scheme over its cells and rates."""
    by = defaultdict(list)
    for risk in known:
        by[risk.name].append(risk)
    return {scheme: reduce(add, own) for scheme, own in by.items()}


def _ratios(known: Sequence[Risk], protocol: Protocol) -> list[list[object]]:
    """Rows of plain's hazard over the others': at each rate that both have, and at each distance from the edge."""
    out, at = [], {(risk.name, risk.depth, risk.lr): risk for risk in known}
    for (scheme, depth, lr), risk in at.items():
        if scheme != "plain" and (plain := at.get(("plain", depth, lr))):
            out.append([called(scheme), "rate", depth, f"{lr:g}", *_pieces(plain, risk)])
    places, pairs = _places(protocol), []
    for (scheme, depth, place), lr in places.items():
        mine, plain = at.get((scheme, depth, lr)), at.get(("plain", depth, places.get(("plain", depth, place))))
        if scheme != "plain" and mine and plain:
            pairs.append((plain, mine))
            out.append([called(scheme), f"distance: {place}", depth, f"{plain.lr:g} and {lr:g}", *_pieces(plain, mine)])
    for scheme in dict.fromkeys(mine.name for _, mine in pairs):
        own = [pair for pair in pairs if pair[1].name == scheme]
        if len(own) > 1:
            out.append([called(scheme), "distance: all", ", ".join(map(str, sorted({mine.depth for _, mine in own}))), "all",
                        *_pieces(*(reduce(add, side) for side in zip(*own)))])  # fmt: skip
    return out


def _places(protocol: Protocol) -> dict[tuple[str, int, str], float]:
    """(scheme, depth, highest or second) -> rate of the plan, for cells without parameters of their own.

    The plan has the two highest rates of the lattice below each edge, by `hazard.rates_below`.
    """
    return {(cell.scheme, depth, place): lr for cell in protocol.cells if not cell.params for depth in cell.depths or protocol.depths
            for place, lr in zip(("highest", "second"), sorted(cell.lrs or protocol.lrs, reverse=True))}  # fmt: skip


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
        out.append([called(name(cell.scheme, cell.params)), cell.depth, describe(early), above])
    return out


def _death(death: Death) -> list[object]:
    run = death.run
    first = f"{', '.join(death.first)} ({_when(death.left.min())})" if death.first else "nothing"
    signature = {True: "yes", False: "no"}.get(run.mms_signature, "-")
    return [called(run.name), run.depth, f"{run.lr:g}", run.seed, run.crash_step, f"{run.best_loss:.2f}", run.state.replace("_", "-"),
            signature, first,
            *(f"block {found[0]} ({_when(found[1])})" if found else "-" for found in (death.forward, death.backward))]  # fmt: skip


def _when(step: float) -> str:
    """Steps from the crash; one at which the search starts may lie further back."""
    return f"{step:+.0f}" + (" or before" if step == -CALM_UNTIL else "")
