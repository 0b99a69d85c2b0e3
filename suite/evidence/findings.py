"""What the committed frontier, laptop and rounding tables say, in sentences whose every number is worked out from their rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

from suite.evidence.dying import SPECIAL, interval
from suite.evidence.edges import PRIMARY, Edge, cells, edges, ratios
from suite.evidence.hazard import PER, healthy_deaths, risks
from suite.evidence.headline import in_words, standing
from suite.evidence.stats import Critical
from suite.presets import PROTOCOLS
from suite.protocol import SCHEMES
from suite.records.tables import TABLES, RowsByRun, Store, read_rows
from suite.verdict.outcomes import DEAD, UNUSABLE

WELL = 0.5  # of c: a run whose loss has been below it trained well (a quarter of the way from what the digits allow, .65, to c = 2)

Rows = Sequence[dict[str, str]]


def findings(results: Path) -> str:
    """Markdown bullets. Raises ValueError where the tables contradict the words of one."""
    rows = Store(results / "frontier").runs()
    found = {(edge.scheme, edge.depth): edge for edge in edges(rows) if edge.cell[1] == "controlled"}
    cool, hot = PROTOCOLS["laptop"].lrs
    said = [_plain(found), _primary(rows, found), _how(rows), _others(found), _cool(rows, cool), _hot(rows, hot), _healthy(rows)]
    return "\n".join(f"- {sentence}" for sentence in [*_below(results), *said, *_more_tokens(results), *_roundings(results)])


def _holds(true: bool, words: str) -> None:
    if not true:
        raise ValueError(f"the tables do not bear out {words!r}; mend suite/evidence/findings.py")


def _rate(one: Critical) -> str:
    return f"{one} (n = {one.n})"


def _ratio(row: dict) -> str:
    """A ratio of critical rates with its interval, or that alone."""
    middle = "" if row["ratio"] is None else f"{row['ratio']:.2f} "
    return f"{middle}[{row['low']:.2f}, {'∞' if row['high'] == float('inf') else format(row['high'], '.2f')}]"


def _plain(found: dict[tuple[str, int], Edge]) -> str:
    depths = sorted(depth for scheme, depth in found if scheme == PRIMARY[1])
    rates = "; ".join(f"{depth} blocks {_rate(found[PRIMARY[1], depth].lr50)}" for depth in depths)
    words = "The deeper a plain network, the colder it must be trained."
    _holds(all(found[PRIMARY[1], deep].lr50.high <= found[PRIMARY[1], less].lr50.low for less, deep in pairwise(depths)), words)
    return f"**{words}** LR50@{found[PRIMARY[1], depths[0]].horizon} of plain: {rates}."


def _primary(rows: Rows, found: dict[tuple[str, int], Edge]) -> str:
    """MV-Split over plain, with a word for each depth on whether the interval leaves 1 out, or a side is not monotone."""

    def said(bad: Sequence[str]) -> str:
        parts = []
        for row in sorted((r for r in ratios(rows, bad) if r["kind"] == "primary"), key=lambda r: r["depth"]):
            word = "above 1" if row["low"] > 1 else "below 1" if row["high"] < 1 else "not told apart from 1"
            sides = [found[scheme, row["depth"]] for scheme in PRIMARY]
            if any((side.lr50 if bad == DEAD else side.lr50u).falls for side in sides):
                word += ", but fewer die at some hotter rate, so half is no edge"
            parts.append(f"{row['depth']} blocks {_ratio(row)} (n = {row['n']} and {row['n_plain']}), {word}")
        return "; ".join(parts)

    return (f"**MV-Split against plain**, the comparison fixed beforehand. LR50 over LR50: {said(DEAD)}. Counting runs that never trained "
            f"as well, LR50u over LR50u: {said(UNUSABLE)}.")  # fmt: skip


def _others(found: dict[tuple[str, int], Edge]) -> str:
    deepest = max(depth for _, depth in found)
    there = {scheme: found[scheme, deepest].lr50u for scheme in SCHEMES if (scheme, deepest) in found}
    rates = "; ".join(f"{scheme} {_rate(one)}" for scheme, one in there.items())
    words = "LayerScale, ReZero and DeepNorm can be trained hotter than both."
    _holds(all(one.low >= max(there[name].high for name in PRIMARY) for scheme, one in there.items() if scheme not in PRIMARY), words)
    return f"**{words}** LR50u at {deepest} blocks (intervals unadjusted): {rates}."


def _how(rows: Rows) -> str:
    """The ways in which the schemes of the primary comparison fail, at the depths and rates that both were run at."""
    parts, at = [], defaultdict(lambda: defaultdict(list))
    for cell, runs in cells(rows).items():
        if cell[1] == "controlled":
            for row in runs:
                at[cell[0]][row["depth"], row["lr"]].append(row["outcome"])
    shared = set.intersection(*(set(at[scheme]) for scheme in PRIMARY))
    for scheme in reversed(PRIMARY):
        mine = [outcome for where in sorted(shared) for outcome in at[scheme][where]]
        counts = Counter(outcome.replace("_", " ") for outcome in mine if outcome in UNUSABLE)
        parts.append(f"{scheme} {', '.join(f'{n} {outcome}' for outcome, n in counts.most_common())} of {len(mine)} runs")
    return f"**They fail in different ways.** At the rates that both were run at: {'; '.join(parts)}."


def _cool(rows: Rows, cool: float) -> str:
    depth = max(int(cell[-1]) for cell in cells(rows))
    losses = defaultdict(list)
    for cell, mine in cells(rows).items():
        if cell[1] == "controlled" and int(cell[-1]) == depth:
            losses[cell[0]] += [float(row["heldout_loss"]) for row in mine if float(row["lr"]) == cool]
    parts = [f"{scheme} {mean(own):.3f} ({min(own):.3f} to {max(own):.3f}, n = {len(own)})" for scheme, own in losses.items()]
    words = f"Where all live at {depth} blocks, plain learns worst."
    _holds(all(min(losses[PRIMARY[1]]) > max(own) for scheme, own in losses.items() if scheme != PRIMARY[1]), words)
    return f"**{words}** Held-out loss at {cool:g}, mean and range: {'; '.join(parts)}."


def _hot(rows: Rows, hot: float) -> str:
    known = standing(rows, hot)
    deepest = max(depth for _, depth in known)
    parts = []
    for scheme in SCHEMES:
        cell = known.get((scheme, deepest), {"n": 0})
        if cell["n"]:
            parts.append(f"{scheme} ({in_words(cell)})")
    return f"**At the hot rate of {hot:g}** and {deepest} blocks: {'; '.join(parts)}."


def _healthy(rows: Rows) -> str:
    """How the dead died: of the finished controlled runs of the frontier that are dead."""
    mine = [row for runs in cells(rows).values() for row in runs if row["arm"] == "controlled"]
    dead = [row for row in mine if row["outcome"] in DEAD]
    well = [row for row in dead if float(row["best_loss"]) < WELL * float(row["constant_loss"])]
    kinds = Counter(row["outcome"] for row in dead)
    steps, half = [int(row["crash_step"]) for row in dead], int(mine[0]["horizon"]) // 2
    by = ", ".join(f"{n} {scheme}" for scheme, n in Counter(row["scheme"] for row in well).items())
    return (f"**How they die.** Of {len(mine)} runs {len(dead)} died ({', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}); "
            f"{len(well)} of them had a loss under {WELL:g} *c* before ({by or 'none'}). The median death is at step {median(steps):g}, "
            f"{sum(step <= half for step in steps)} of {len(steps)} in the first {half} steps.")  # fmt: skip


def _more_tokens(results: Path) -> list[str]:
    """The primary comparison with 64 image tokens."""
    rows = Store(results / "frontier64").runs()
    found = {(edge.scheme, edge.depth): edge for edge in edges(rows)}
    parts, usable = [], {row["depth"]: row for row in ratios(rows, UNUSABLE) if row["kind"] == "primary" and row["ratio"] is not None}
    for row in ratios(rows):
        if row["kind"] == "primary" and row["ratio"] is not None:
            also = usable.get(row["depth"])
            more = f"; of LR50u {_ratio(also)}" if also else ""
            rates = ", ".join(f"{scheme} {_rate(found[scheme, row['depth']].lr50)}" for scheme in reversed(PRIMARY))
            parts.append(f"at {row['depth']} blocks LR50@{found[PRIMARY[0], row['depth']].horizon} of {rates}, "
                         f"a ratio of {_ratio(row)}{more}")  # fmt: skip
    return [f"**With {rows[0]['image_tokens']} image tokens** for 16: {'; '.join(parts)}."] if parts else []


def _roundings(results: Path) -> list[str]:
    path = results / "rounding" / TABLES["rounding"].path
    if not path.exists():
        return []
    by_cell = defaultdict(list)
    for row in read_rows(path, TABLES["rounding"]):
        if row["counts"] == "true":
            by_cell[row["scheme"], row["depth"], row["lr"]].append(row["outcome"])
    parts = []
    for (scheme, _, _), outcomes in by_cell.items():
        kinds = Counter("dead" if outcome in DEAD else outcome for outcome in outcomes)
        parts.append(f"{scheme} {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())} of {len(outcomes)}")
    depths, rates = (", ".join(sorted({key[i] for key in by_cell})) for i in (1, 2))
    return [f"**Rounding.** Seed 0 at {depths} blocks and {rates}, again under other instruction sets, eager, and from weights "
            f"moved by one unit in the last place: {'; '.join(parts)}."]  # fmt: skip


def _below(results: Path) -> list[str]:
    """The anatomy's runs below the edge, where both schemes of the comparison were trained at the same rate and depth."""
    folder = results / "anatomy"
    mine = [row for row in Store(folder).runs() if row["protocol_version"] == str(PROTOCOLS["anatomy"].version)]
    usual = [risk for risk in risks(mine, RowsByRun(folder)) if SPECIAL.isdisjoint(risk.params.split(","))]
    known = {(risk.depth, risk.lr, risk.scheme): risk for risk in usual}
    shared = sorted({key[:2] for key in known if all((*key[:2], scheme) in known for scheme in PRIMARY)})
    if not shared:
        return []
    well = healthy_deaths(folder)
    healthy = [row for row in mine if row["run_id"] in well]
    parts = []
    for depth, lr in shared:
        for scheme in reversed(PRIMARY):
            risk = known[depth, lr, scheme]
            cell = scheme, risk.params, depth, lr
            gone = [row for row in healthy if (row["scheme"], row["params"], int(row["depth"]), float(row["lr"])) == cell]
            as_paper = sum(row["mms_signature"] == "true" and row["state"] == "mean_dominated" for row in gone)
            steps = f" (step{'s' * (len(gone) > 1)} {', '.join(map(str, risk.when))})"
            parts.append(
                f"{scheme} at {depth} blocks and {lr:g}: {risk.dead} of {risk.runs} died, {len(gone)} of them healthy{steps * bool(gone)}, "
                f"{as_paper} of these {len(gone)} with equal tokens and the paper's gradient event; "
                f"{interval(risk)} deaths in {PER} healthy steps"
            )
    steps, horizon = mine[0]["horizon"], PROTOCOLS["frontier"].horizon
    return [f"**Healthy, then gone.** {steps} steps at a rate below both edges of {horizon} steps: {'; '.join(parts)}."]
