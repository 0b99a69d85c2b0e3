"""The results in words and tables for people: the README's outcome table, generated from the committed runs."""

from __future__ import annotations

from pathlib import Path

from suite.environment import ROOT
from suite.protocol import SCHEMES
from suite.records.tables import Store

BEGIN, END = "<!-- outcomes: made by `python -m suite report` -->", "<!-- end -->"
WORDS = {"survived": "survived", "stuck": "**stuck**", "collapsed": "**collapsed**", "degraded": "**degraded**", "nonfinite": "**nan**",
         "collapsed_at_init": "**collapsed at init**", "too_short": "too short"}  # fmt: skip
README = ROOT / "README.md"


def outcome_table(folder: Path) -> str:
    """Markdown: schemes by depth, outcome with crash step or held-out loss and FID; first seed, controlled arm."""
    rows = [r for r in Store(folder).runs() if r["arm"] == "controlled"]
    scores = _scores(folder)
    depths = sorted({int(r["depth"]) for r in rows})
    order = {name: i for i, name in enumerate(SCHEMES)}
    names = sorted({r["scheme"] for r in rows}, key=lambda n: (order.get(n, len(order)), n))
    lines = ["| scheme | " + " | ".join(f"{d} blocks" for d in depths) + " |", "|---" * (len(depths) + 1) + "|"]
    for name in names:
        cells = []
        for depth in depths:
            found = [r for r in rows if r["scheme"] == name and int(r["depth"]) == depth]
            cells.append("; ".join(_cell(r, scores) for r in sorted(found, key=lambda r: int(r["seed"]))) or "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _scores(folder: Path) -> dict[str, str]:
    from suite.records.tables import TABLES, read_rows

    path = folder / TABLES["quality"].path
    return {r["run_id"]: r["fid"] for r in read_rows(path, TABLES["quality"]) if r["fid"]} if path.exists() else {}


def _cell(row: dict[str, str], scores: dict[str, str]) -> str:
    if row["status"] != "done":
        return row["status"]
    if row["crash_step"]:
        return f"{WORDS[row['outcome']]} at step {row['crash_step']}"
    fid = f", FID {float(scores[row['run_id']]):.2f}" if row["run_id"] in scores else ""
    if not row["heldout_loss"]:
        raise ValueError(f"runs.csv: run {row['run_id']}: heldout_loss is empty; restore it or run it again")
    return f"{WORDS[row['outcome']]}, {float(row['heldout_loss']):.3f}{fid}"


def block(results: Path) -> str:
    """What stands between the README's markers."""
    return f"{BEGIN}\n{outcome_table(results / 'laptop')}\n{END}"


def readme_differs(results: Path) -> list[str]:
    """A problem line if the README's table is not that of the committed laptop runs."""
    if not README.exists() or not (results / "laptop" / "runs.csv").exists():
        return []
    if block(results) not in README.read_text(encoding="utf-8"):
        return ["README.md: its outcome table is not that of results/laptop; mend with: python -m suite report --write"]
    return []


def write_readme(results: Path) -> None:
    """Replace the README's table; ValueError if its markers are gone."""
    text = README.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md: the markers {BEGIN} and {END} are missing")
    README.write_text(before + block(results) + after, encoding="utf-8")
