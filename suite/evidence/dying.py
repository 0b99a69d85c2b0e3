"""README's "How it dies": hazards, critical rates of the longer horizon, and every healthy death, from the anatomy's tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from suite.evidence.deaths import CALM_UNTIL, deaths
from suite.evidence.edges import said
from suite.evidence.hazard import HEALTHY, LOOSER, PER, Risk, hazard_ratio, longer, risks
from suite.evidence.markdown import table
from suite.presets import PROTOCOLS
from suite.protocol import Protocol
from suite.records.tables import RowsByRun, Store

SERIES = [(PROTOCOLS["anatomy"], PROTOCOLS["frontier"]), (PROTOCOLS["anatomy64"], PROTOCOLS["frontier64"])]
SPECIAL = {item for cell in (*PROTOCOLS["anatomy"].cells, *PROTOCOLS["deep"].cells) for item in cell.params.split(",") if item} - {"beta=1"}


def dying(results: Path) -> str:
    """Markdown, for 16 and for 64 image tokens: tables of hazards, of critical rates at two horizons, and of healthy deaths."""
    intro = (f"A run is healthy while its held-out loss is below {HEALTHY:g} *c*; intervals are 95 %, exact for a Poisson count. In the "
             "tables of healthy deaths, left first: what was the first to leave the range of its calm steps, more than "
             f"{CALM_UNTIL} steps before the crash, with the steps from the crash (or before, where it is outside when the search starts). "
             "From: the block where the trunk's similarity (1-TCS), and the one where the writers' centered gradient (g_ctr), left "
             "first.")  # fmt: skip
    return "\n\n".join([intro, *(part for protocols in SERIES for part in _series(results, *protocols))])


def _series(results: Path, anatomy: Protocol, frontier: Protocol) -> list[str]:
    """What `dying` says of one protocol's runs; [] where there is none."""
    folder = results / anatomy.name
    rows = [row for row in Store(folder).runs() if row["protocol_version"] == str(anatomy.version)]
    if not rows:
        return []
    known = risks(rows, RowsByRun(folder))
    healthy = [death for death in deaths(folder) if death["healthy"] and death["row"] in rows]
    parts = [f"**{rows[0]['image_tokens']} image tokens** (`{anatomy.name}`, {len(rows)} runs).",
             table(["scheme", "blocks", "rate", "runs", "died", "healthy then", "at steps", "healthy steps",
                    f"deaths in {PER} healthy steps"],
                   [_hazard(risk) for risk in known]), _sum(known), *_ratios(known),
             f"With {LOOSER:g} *c* for {HEALTHY:g}: {_over(risks(rows, RowsByRun(folder), LOOSER))}."]  # fmt: skip
    if edges := _edges(Store(results / frontier.name).runs(), rows, frontier):
        parts += [f"Critical rates by step {frontier.horizon} and by step {anatomy.horizon} (of the hotter rates at which all die early, "
                  "the frontier's runs count for both):",
                  table(["scheme", "blocks", f"LR50@{frontier.horizon}", f"LR50@{anatomy.horizon}"], edges)]  # fmt: skip
    if healthy:
        parts += [f"Every healthy death ({len(healthy)} run{'s' * (len(healthy) > 1)}):",
                  table(["scheme", "blocks", "rate", "seed", "step", "lowest loss", "state", "MMS signature", "left first", "trunk from",
                         "gradient from"], [_death(death) for death in healthy])]  # fmt: skip
    return parts


def name(scheme: str, params: str) -> str:
    """A scheme with what its parameters have of the plan's special ones."""
    own = [item for item in params.split(",") if item in SPECIAL]
    return " ".join([scheme, *own])


def interval(risk: Risk) -> str:
    middle, low, high = risk.hazard
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]" if risk.healthy_steps else "-"


def _hazard(risk: Risk) -> list[str]:
    when = " to ".join(dict.fromkeys(str(step) for step in (*risk.when[:1], *risk.when[-1:]))) or "-"
    return [name(risk.scheme, risk.params), str(risk.depth), f"{risk.lr:g}", str(risk.runs), str(risk.dead), str(risk.healthy_dead), when,
            str(risk.healthy_steps), interval(risk)]  # fmt: skip


def _sum(known: Sequence[Risk]) -> str:
    return f"Over all rates, which are not the same for all: {_over(known)}."


def _over(known: Sequence[Risk]) -> str:
    """The hazards of each scheme over its cells, in words."""
    by = defaultdict(list)
    for risk in known:
        by[name(risk.scheme, risk.params)].append(risk)
    words = []
    for scheme, own in by.items():
        runs, dead, well, steps = (sum(getattr(risk, what) for risk in own) for what in ("runs", "dead", "healthy_dead", "healthy_steps"))
        over, when = interval(Risk(scheme, "", 0, 0.0, runs, dead, well, steps)), sorted(step for risk in own for step in risk.when)
        at = f" (steps {when[0]} to {when[-1]})" if well > 1 else f" (step {when[0]})" if well else ""
        words.append(f"{scheme} {well} healthy death{'s' * (well != 1)}{at} in {steps} healthy steps of {runs} runs: {over} in {PER}")
    return "; ".join(words)


def _ratios(known: Sequence[Risk]) -> list[str]:
    """The hazard of `plain` over that of every other scheme at a depth and rate that both have, in words; [] where there is none."""
    words, at = [], {(name(risk.scheme, risk.params), risk.depth, risk.lr): risk for risk in known}
    for (scheme, depth, lr), risk in at.items():
        plain = at.get(("plain", depth, lr))
        if scheme != "plain" and plain and (found := hazard_ratio(plain, risk)):
            ends = ", ".join(f"{end:.0f}" if end >= 10 else f"{end:.2g}" for end in found[1:])
            words.append(f"{found[0]:.1f} [{ends}] times that of {scheme} at {depth} blocks and {lr:g} "
                         f"({plain.healthy_dead} and {risk.healthy_dead} deaths)")  # fmt: skip
    return [f"At one and the same rate, plain's hazard is {'; '.join(words)}; exact if both hazards are constant."] if words else []


def _edges(short_rows: Sequence[dict[str, str]], rows: Sequence[dict[str, str]], frontier: Protocol) -> list[list[str]]:
    out = []
    for cell, (short, long, bound) in longer(short_rows, rows).items():
        above = said(long)
        if long.kind == "above" and bound:
            above += f", at most {bound[0]:.2e} ({bound[1]} of {bound[2]} dead by step {frontier.horizon})"
        out.append([name(cell[0], cell[2]), cell[-1], said(short), above])
    return out


def _death(death: dict) -> list[str]:
    row, left = death["row"], death["left"]
    first = min((step for step in left.values() if step == step), default=None)
    before = " or before" * (first == -CALM_UNTIL)
    what = f"{', '.join(death['first'])} ({first:+.0f}{before})" if death["first"] else "nothing"
    state = row["state"].replace("_", "-")
    return [name(row["scheme"], row["params"]), row["depth"], row["lr"], row["seed"], row["crash_step"], f"{float(row['best_loss']):.2f}",
            state, {"true": "yes", "false": "no"}.get(row["mms_signature"], "-"), what,
            _block(death["block_forward"]), _block(death["block_backward"])]  # fmt: skip


def _block(found: tuple[int, float] | None) -> str:
    return f"block {found[0]} ({found[1]:+.0f}{' or before' * (found[1] == -CALM_UNTIL)})" if found else "-"


def kinds(healthy: Sequence[dict]) -> dict[str, Counter]:
    """Scheme -> how many of its healthy deaths ended in which state, with the MMS signature or without."""
    out = defaultdict(Counter)
    for death in healthy:
        out[name(death["row"]["scheme"], death["row"]["params"])][death["row"]["state"], death["row"]["mms_signature"]] += 1
    return out
