"""The results in words and tables for people: the README's blocks, generated from the committed runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from suite.environment import ROOT
from suite.evidence.deep import deep
from suite.evidence.detecting import detecting
from suite.evidence.dying import dying
from suite.evidence.early_warning import early_warning
from suite.evidence.edges import PRIMARY, Edge, edges, edges_beside, ratios, said
from suite.evidence.findings import findings
from suite.evidence.headline import UNSURE, in_words, standing
from suite.evidence.markdown import table
from suite.presets import PROTOCOLS
from suite.protocol import SCHEMES
from suite.records.beside import compare
from suite.records.tables import TABLES, Store, format_table, read_rows
from suite.verdict.crash import STUCK
from suite.verdict.outcomes import DEAD, UNUSABLE

END = "<!-- end -->"
WORDS = {"survived": "survived", "stuck": "**stuck**", "collapsed": "**collapsed**", "degraded": "**degraded**", "nonfinite": "**nan**",
         "untrained": "**untrained**", "too_short": "too short"}  # fmt: skip
README = ROOT / "README.md"
SEEN = ("data", "scheme", "arm", "params", "writers", "depth", "lr", "mine_seeds", "mine_outcome", "mine_crash_step", "mine_final_loss",
        "committed_seeds", "committed_outcome", "committed_crash_step", "committed_final_loss", "agree")  # fmt: skip
SENSITIVITY = (0.5, 0.7)  # of c, beside the 0.6 that makes a run stuck; issue 14


def beside(mine: Path, committed: Path) -> str:
    """Your runs of one protocol beside the committed ones as a text table: cell by cell, or of a search the critical rates.

    all_seeds: what the committed frontier's runs of a laptop cell came to; where they disagree, so may yours: `agree` is then "coin".

    One cell of a search says little: near an edge it is a coin.
    """
    if mine.name in PROTOCOLS and PROTOCOLS[mine.name].search:
        return edges_beside(mine, committed)
    rows = compare(mine, committed)
    seeds = _standings(committed.parent / "frontier", rows) if mine.name == "laptop" else {}
    for row in rows:
        row["all_seeds"] = seeds.get((float(row["lr"]), row["scheme"], int(row["depth"])))
        if row["agree"] is False and (row["all_seeds"] or "").startswith(UNSURE):
            row["agree"] = "coin"
    return format_table(rows, (*SEEN, *["all_seeds"] * bool(seeds)))


def outcome_table(folder: Path, frontier: Path | None = None) -> str:
    """Markdown: schemes by depth and rate, outcome with crash step or held-out loss and FID; controlled arm.

    frontier: a folder whose runs at the same rates say how the cell ends with other seeds.
    """
    rows = [r for r in Store(folder).runs() if r["arm"] == "controlled"]
    scores, many = _scores(folder), _standings(frontier, rows)
    columns = sorted({(float(r["lr"]), int(r["depth"])) for r in rows})
    order = {name: i for i, name in enumerate(SCHEMES)}
    names = sorted({r["scheme"] for r in rows}, key=lambda n: (order.get(n, len(order)), n))
    lines = []
    for name in names:
        cells = []
        for lr, depth in columns:
            found = [r for r in rows if r["scheme"] == name and (float(r["lr"]), int(r["depth"])) == (lr, depth)]
            shown = "; ".join(_cell(r, scores) for r in sorted(found, key=lambda r: int(r["seed"]))) or "-"
            cells.append(f"{shown} ({many[lr, name, depth]})" if (lr, name, depth) in many else shown)
        lines.append([name, *cells])
    return table(["scheme", *(f"{depth} blocks, {lr:g}" for lr, depth in columns)], lines)


def _scores(folder: Path) -> dict[str, str]:
    path = folder / TABLES["quality"].path
    return {r["run_id"]: r["fid"] for r in read_rows(path, TABLES["quality"]) if r["fid"]} if path.exists() else {}


def _standings(frontier: Path | None, rows: Sequence[dict[str, str]]) -> dict[tuple[float, str, int], str]:
    """By (rate, scheme, depth) what the frontier's runs at that rate came to, in words; nothing where it has none."""
    if frontier is None or not (frontier / "runs.csv").exists():
        return {}
    known, out = Store(frontier).runs(), {}
    for lr in sorted({float(r["lr"]) for r in rows}):
        for (scheme, depth), found in standing(known, lr).items():
            if found["n"]:
                out[lr, scheme, depth] = in_words(found)
    return out


def _cell(row: dict[str, str], scores: dict[str, str]) -> str:
    if row["status"] != "done":
        return row["status"]
    if row["crash_step"]:
        return f"{WORDS[row['outcome']]} at step {row['crash_step']}"
    late = f" (an event at step {row['late_step']}, behind the horizon)" if row["late_step"] else ""
    fid = f", FID {float(scores[row['run_id']]):.2f}" if row["run_id"] in scores else ""
    if not row["heldout_loss"]:
        raise ValueError(f"runs.csv: run {row['run_id']}: heldout_loss is empty; restore it or run it again")
    return f"{WORDS[row['outcome']]}, {float(row['heldout_loss']):.3f}{fid}{late}"


def edge_tables(folder: Path) -> str:
    """Markdown of a frontier: LR50 and LR50u by scheme and depth, the ratios to plain, and what another bound on `stuck` changes."""
    rows = Store(folder).runs()
    found = edges(rows)
    horizon = found[0].horizon
    parts = [
        f"LR50@{horizon}: half are dead by step {horizon}.",
        _by_depth(found, lambda edge: said(edge.lr50)),
        f"LR50u@{horizon}: the same, counting the stuck and the untrained as well.",
        _by_depth(found, lambda edge: said(edge.lr50u)),
        f"Over plain's, per depth. {PRIMARY[0]} over {PRIMARY[1]} was fixed as the comparison before the runs; the other intervals are "
        "unadjusted.", _ratio_table(rows),
        f"A run is stuck where both its losses end above {STUCK:g} *c*. " + _sensitivity(rows, found),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _by_depth(found: Sequence[Edge], text: Callable[[Edge], str]) -> str:
    depths = sorted({edge.depth for edge in found})
    cells = {(edge.label, edge.depth): text(edge) for edge in found}
    labels = list(dict.fromkeys(edge.label for edge in found))
    return table(["scheme", *(f"{depth} blocks" for depth in depths)],
                     [[label, *(cells.get((label, depth), "-") for depth in depths)] for label in labels])  # fmt: skip


def _ratio_table(rows: Sequence[dict[str, str]]) -> str:
    lines = []
    sides = zip(ratios(rows, DEAD), ratios(rows, UNUSABLE), strict=True)
    for dead, unusable in sorted(sides, key=lambda pair: (pair[0]["kind"] != "primary", pair[0]["depth"])):
        lines.append([dead["scheme"], str(dead["depth"]), _ratio(dead), _ratio(unusable), dead["kind"]])
    return table(["scheme", "blocks", "LR50 over plain's", "LR50u over plain's", "comparison"], lines)


def _ratio(row: dict[str, object]) -> str:
    middle = "" if row["ratio"] is None else f"{row['ratio']:.2f} "
    high = "∞" if row["high"] == float("inf") else f"{row['high']:.2f}"
    return f"{middle}[{row['low']:.2f}, {high}] (n = {row['n']} and {row['n_plain']})"


def _sensitivity(rows: Sequence[dict[str, str]], found: Sequence[Edge]) -> str:
    """In words: the cells whose LR50u another bound changes."""
    said_ = {(edge.label, edge.depth): str(edge.lr50u) for edge in found}
    out = []
    for bound in SENSITIVITY:
        other = {(edge.label, edge.depth): str(edge.lr50u) for edge in edges(rows, bound)}
        changed = [f"{key[0]} at {key[1]} blocks {other[key]}" for key in said_ if other[key] != said_[key]]
        out.append(f"With {bound:g} *c* LR50u is " + (f"otherwise in {len(changed)} of {len(said_)} cells: {'; '.join(changed)}"
                                                     if changed else f"the same in all {len(said_)} cells") + ".")  # fmt: skip
    return " ".join(out)


def _laptop(results: Path) -> str:
    return outcome_table(results / "laptop", results / "frontier")


def _frontier(results: Path) -> str:
    return edge_tables(results / "frontier")


BLOCKS: dict[str, tuple[str, Callable[[Path], str]]] = {  # by the folder that must be there: marker, and what stands below it
    "laptop": ("<!-- outcomes: made by `python -m suite report` -->", _laptop),
    "frontier": ("<!-- critical rates: made by `python -m suite report` -->", _frontier),
    "anatomy": ("<!-- deaths: made by `python -m suite report` -->", dying),
    "deep": ("<!-- the paper's depths: made by `python -m suite report` -->", deep),
}
DETECT = "<!-- detect: made by `python -m suite report` -->"
WARNING = "<!-- early warning: made by `python -m suite report` -->"
FOUND = "<!-- findings: made by `python -m suite report` -->"  # of the committed results alone


def _has(folder: Path) -> bool:
    """Whether a folder has runs of the protocol's version of today."""
    version = str(PROTOCOLS[folder.name].version)
    return any(row["protocol_version"] == version for row in Store(folder).runs())


def blocks(results: Path) -> dict[str, str]:
    """By its first line, each block of the README for which the results folder has the runs."""
    made = {begin: make(results) for name, (begin, make) in BLOCKS.items() if _has(results / name)}
    if (results / "detect").is_dir():
        made[DETECT] = detecting(results / "detect")
    if results.resolve() == ROOT / "results" and all(_has(results / name) for name in ("laptop", "frontier")):
        made[FOUND], made[WARNING] = findings(results), early_warning(results)
    return {begin: f"{begin}\n\n{text}\n\n{END}" for begin, text in made.items()}


def readme_differs(results: Path) -> list[str]:
    """A problem line for each of the README's blocks that is not that of the committed runs."""
    if not README.exists():
        return []
    text = README.read_text(encoding="utf-8")
    return [f"README.md: what stands below {begin} is not what {results.name} gives; mend with: python -m suite report --write"
            for begin, block in blocks(results).items() if block not in text]  # fmt: skip


def write_readme(results: Path) -> None:
    """Replace the README's blocks; ValueError if their markers are gone."""
    text = README.read_text(encoding="utf-8")
    for begin, block in blocks(results).items():
        before, found, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        if not (found and end):
            raise ValueError(f"README.md: the markers {begin} and {END} are missing")
        text = before + block + after
    README.write_text(text, encoding="utf-8")
