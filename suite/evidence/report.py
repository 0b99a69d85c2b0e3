"""The results as tables for people: what became of each cell, and the edges of a frontier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from suite.evidence.cells import in_order, runs_of
from suite.evidence.critical_rates import pooled
from suite.evidence.decided import Standing, standing
from suite.evidence.edges import PRIMARY, REFERENCE, Edge, Ratio, describe, edges_beside, hypotheses, ratios
from suite.evidence.markdown import grid, table
from suite.evidence.ranking import ranking
from suite.evidence.words import called, render
from suite.presets import PROTOCOLS
from suite.records.beside import compare
from suite.records.store import TABLES, format_table, read
from suite.sweep.frontier import PRECISION

WORDS = {"survived": "survived", "stuck": "**stuck**", "collapsed": "**collapsed**", "degraded": "**degraded**", "nonfinite": "**nan**",
         "untrained": "**untrained**", "too_short": "too short"}  # fmt: skip
SEEN = ("data", "scheme", "arm", "params", "writers", "depth", "lr", "mine_seeds", "mine_outcome", "mine_crash_step", "mine_final_loss",
        "committed_seeds", "committed_outcome", "committed_crash_step", "committed_final_loss", "agree")  # fmt: skip


def beside(mine: Path, committed: Path) -> str:
    """Your runs of one protocol beside the committed ones as a text table: cell by cell, or of a search the critical
    rates.

    all_seeds: what the committed frontier's runs of a laptop cell came to; where they disagree, so may yours: `agree`
    is then "mixed" or "borderline". One cell of a search says little: near an edge it ends by chance.
    """
    if mine.name in PROTOCOLS and PROTOCOLS[mine.name].search:
        return edges_beside(mine, committed)
    rows = compare(mine, committed)
    seeds = _standings(committed.parent / "frontier", {float(row["lr"]) for row in rows}) if mine.name == "laptop" else {}
    for row in rows:
        known = seeds.get((row["scheme"], (float(row["lr"]), int(row["depth"]))))
        row["all_seeds"] = known and str(known)
        if row["agree"] is False and known and known.word:
            row["agree"] = known.word
    return format_table(rows, (*SEEN, *["all_seeds"] * bool(seeds)))


def outcome_table(folder: Path, frontier: Path) -> str:
    """Markdown: schemes by depth and rate, outcome with crash step or held-out loss and FID; controlled arm.

    frontier: a folder whose runs at the same rates say how the cell ends with other seeds.
    """
    runs = in_order(runs_of(folder).query("arm == 'controlled' and control == ''").sort_values("seed"))
    scores = read(folder, "quality").dropna(subset="fid").groupby("run_id")["fid"].last()
    places = sorted(set(zip(runs["lr"], runs["depth"])))
    cells, many = {}, _standings(frontier, set(runs["lr"]))
    for (scheme, lr, depth), at in runs.groupby(["scheme", "lr", "depth"], sort=False):
        key = scheme, (lr, depth)
        beside = f" ({many[key]})" if key in many else ""
        cells[called(scheme), key[1]] = "; ".join(_cell(run, scores) for run in at.itertuples()) + beside
    return grid({(lr, depth): f"{depth} blocks, {lr:g}" for lr, depth in places}, cells)


def _standings(frontier: Path, lrs: set[float]) -> dict[tuple[str, tuple[float, int]], Standing]:
    """By (scheme, (rate, depth)) what the frontier's runs at that rate came to; nothing where it has none."""
    runs = runs_of(frontier)
    return {(scheme, (lr, depth)): found for lr in lrs for (scheme, depth), found in standing(runs, lr).items() if found.n}


def _cell(run, scores: pd.Series) -> str:
    if run.status != "done":
        return run.status
    if pd.notna(run.crash_step):
        return f"{WORDS[run.outcome]} at step {run.crash_step}"
    late = f" (an event at step {run.late_step}, behind the horizon)" if pd.notna(run.late_step) else ""
    fid = f", FID {scores[run.run_id]:.2f}" if run.run_id in scores else ""
    if pd.isna(run.heldout_loss):
        raise ValueError(f"runs.csv: run {run.run_id}: heldout_loss is empty; restore it or run it again")
    return f"{WORDS[run.outcome]}, {run.heldout_loss:.3f}{fid}{late}"


def edge_tables(folder: Path) -> str:
    """Markdown of a frontier: the ranking of the schemes at each depth, the edges of one scale compared, the edges of the dead."""
    runs = runs_of(folder)
    found = pooled(folder.parent, folder.name)
    instrument = folder.parent / "instrument"
    return render("edges", ranking=ranking(found), horizon=found[0].edge.horizon, reference=REFERENCE, ratios=_ratio_table(folder, runs),
                  dead=_by_depth([one.edge for one in found], _dead), thresholds=_thresholds(instrument),
                  search=_search(instrument))  # fmt: skip


def _thresholds(folder: Path) -> str:
    """What other thresholds of the crash rule make of the comparison that was fixed beforehand; "" where it was not asked."""
    if not (folder / TABLES["thresholds"].path).exists():
        return ""
    known = read(folder, "thresholds")
    depths, rows = sorted(set(known["depth"])), []
    for (name, value), at in known.groupby(["threshold", "value"], sort=False):
        ours = at[at["scheme"] == PRIMARY[0]].set_index("depth").loc[depths]
        rows.append([name, f"{value:g}", f"{at['changed'].sum()} of {at['runs'].sum()}",
                     *(f"{one.ratio:.2f} [{one.ratio_low:.2f}, {one.ratio_high:.2f}]" for one in ours.itertuples())])  # fmt: skip
    return table(["threshold", "value", "changed", *(f"{depth} blocks" for depth in depths)], rows)


def _search(folder: Path) -> dict[str, object]:
    """What the search costs and how often its intervals hold the truth; nothing where it was not asked.

    shares: its block-steps over those of the searches that trained the runs; simulated: the rows of simulation.csv that are its.
    """
    if not (folder / TABLES["replay"].path).exists():
        return {}
    replay, simulated = read(folder, "replay"), read(folder, "simulation")
    steps = {design: replay[(replay["design"] == design) & replay["precision"].isin(at)]["block_steps"].sum()
             for design, at in (("committed", [np.nan]), ("grid", [np.nan]), ("targets", [PRECISION]))}  # fmt: skip
    ours = simulated[(simulated["design"] == "targets") & (simulated["precision"] == PRECISION)]
    return {"simulated": ours, "shares": [steps["targets"] / steps[design] for design in ("committed", "grid")]}


def _by_depth(found: Sequence[Edge], text: Callable[[Edge], str]) -> str:
    depths = sorted({edge.cell.depth for edge in found})
    return grid({depth: f"{depth} blocks" for depth in depths}, {(called(edge.cell.label), edge.cell.depth): text(edge) for edge in found})


def _dead(edge: Edge) -> str:
    if edge.has_dead_edge:
        return describe(edge.dead)
    first = f"half first at {edge.first_dead:.2e}" if edge.first_dead else "never half"
    return f"no edge; {first} (n = {edge.dead.n})"


def _ratio_table(folder: Path, runs: pd.DataFrame) -> str:
    found = sorted(ratios(runs, hypotheses(folder.parent, folder.name)), key=lambda one: (one.adjusted is None, one.depth))
    return table(["scheme", "blocks", f"LR50 over {REFERENCE}'s", "comparison"],
                 ([called(one.scheme), one.depth, f"{one} (n = {one.n[0]} and {one.n[1]})", _fixed(one)] for one in found))  # fmt: skip


def _fixed(one: Ratio) -> str:
    return "exploratory" if one.adjusted is None else f"fixed beforehand, p = {one.adjusted:.2g} (Holm)"
