"""The report: one page that needs nothing beside it, from the findings down to every figure. Pictures come from whoever draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from suite.environment import ROOT
from suite.evidence import claims, critical_rates, ranking_table
from suite.evidence.answer import answer
from suite.evidence.autopsy import left_of_the_dead
from suite.evidence.branch_scale import branch_scale
from suite.evidence.cells import finished, how_many, label, runs_of
from suite.evidence.edges import hypotheses, ratios
from suite.evidence.findings import findings
from suite.evidence.hazard import CUT, PER, risks, with_health
from suite.evidence.ranking import place
from suite.evidence.richtext import blocks, inline, table
from suite.evidence.verdicts import VERDICTS, number
from suite.evidence.words import called
from suite.presets import PROTOCOLS
from suite.records.schema import TABLES
from suite.verdict.outcome import OUTCOMES

LARGEST = 5_000_000  # bytes of the page
RANKED = """Place: by best loss, a range for a tie (pairs of seeds, Holm over all pairs of a depth). Scale: the factor on a branch at the
start. Best loss: mean held-out loss at the scheme's own best learning rate, of seeds that did not choose it. Window: octaves of rate with a
loss within 5 % of the depth's best. Margin: octaves from the best rate to the one at which a tenth of the runs fail. Edge (LR50): the rate,
in thousandths, at which half of the runs fail. Cost: time of a step over plain's. Intervals are 95 %."""
EDGES = """LR10, LR50: the rates, in thousandths, at which a tenth and half of the runs are not usable. They move with the scale of a
scheme's branch, so they compare schemes of one scale alone. Sensitivity: mean loss above the best over a fixed range of rates."""


@dataclass(frozen=True)
class Section:
    """One part of the page. pictures: stems of those that are shown in it; how: the commands that make its numbers again, and tables."""

    title: str
    text: Markup
    pictures: tuple[str, ...] = ()
    how: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def page(results: Path, pictures: Sequence) -> str:
    """The whole page. pictures: as `paper_figures.gallery` gives them, of the same results.

    A section of which the folder has no tables is left out. Raises ValueError where the page would be too large.
    """
    made = [make(results) for make in (_findings, _ranking, _scale, _edges, _fates, _survival, _autopsy)]
    shown = [section for section in made if section]
    known = {picture.stem: picture for picture in pictures}
    chapters, _ = claims.of_folder(results.resolve())
    template = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), undefined=StrictUndefined, autoescape=True,
                           trim_blocks=True, lstrip_blocks=True).get_template("report.html.j2")  # fmt: skip
    text = template.render(
        sections=shown, pictures=known, chapters=chapters, verdicts=VERDICTS, inline=inline, rows=_rows, folder=results.name,
        above={stem for section in shown for stem in section.pictures}, runs=how_many(results),
    )  # fmt: skip
    if (size := len(text.encode())) > LARGEST:
        raise ValueError(f"the report would have {size / 1e6:.1f} MB, more than {LARGEST / 1e6:g}: shrink paper_figures/gallery.py's")
    return text


def _folders(results: Path) -> list[Path]:
    """The folders of today's protocols that have runs."""
    return [results / name for name in PROTOCOLS if (results / name / TABLES["runs"].path).exists()]


def _rows(claim: claims.Claim) -> Markup:
    return table(["asked", "ours", "rule", "verdict"], [[part.says, part.seen, f"{part.rule} ({part.rule.why})", part.verdict]
                                                        for part in claim.parts])  # fmt: skip


def _interval(row: dict, name: str, digits: int = 2) -> str:
    """A number of a row with its interval; "at least" where a window ends with the rates that were run."""
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    ends = "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{'at least ' * bool(row.get(f'{name}_open'))}{value:.{digits}f}{ends}"


def _rate(row: dict, name: str) -> str:
    """A critical rate in thousandths with its interval, or the bound that is known."""
    low, high, kind = (row.get(f"{name}{end}") for end in ("_low", "_high", "_kind"))
    if kind != "fit":
        return f"above {number(1e3 * low)}" if kind == "above" else f"below {number(1e3 * high)}"
    return f"{number(1e3 * row[name])} [{number(1e3 * low)}, {number(1e3 * high)}]"


def _findings(results: Path) -> Section | None:
    if results.resolve() != ROOT / "results":
        return None
    how = ("python -m suite report", "tables: frontier, anatomy, frontier64, rounding")
    return Section("Findings", Markup("\n").join([blocks(answer(results)), blocks("### In detail"), blocks(findings(results))]), how=how)


def _by_place(rows: list[dict]) -> dict[tuple[str, int], list[dict]]:
    """Rows by protocol and depth, deepest first."""
    places = sorted({(row["protocol"], row["depth"]) for row in rows}, key=lambda at: (at[0], -at[1]))
    return {at: [row for row in rows if (row["protocol"], row["depth"]) == at] for at in places}


def _ranking(results: Path) -> Section | None:
    parts = [blocks(RANKED)]
    for (protocol, depth), rows in _by_place(ranking_table.rows(results)).items():
        parts.append(blocks(f"### {depth} blocks ({protocol})"))
        parts.append(table(
            ["place", "scheme", "scale", "best loss", "window", "margin", "edge", "deaths with equal tokens", "cost"],
            [[place((row["place"], row["place_last"])), _scheme(row), "-" if row["scale"] is None else number(row["scale"]),
              _interval(row, "best_loss", 3) + (f" (n = {row['fresh']})" if row["fresh"] else " (of the search)"),
              _interval(row, "window"), _interval(row, "margin"), f"{_rate(row, 'lr50')} (n = {row['lr50_runs']})",
              f"{row['deaths_equal']} of {row['deaths']}",
              _cost(row["step_over_plain"])] for row in rows]))  # fmt: skip
    how = ("python -m suite report", "tables: ranking.csv, frontier/runs.csv, bench/bench.csv",
           "train them again: python -m suite run --protocol frontier")  # fmt: skip
    return Section("Ranking", Markup("\n").join(parts), how=how) if len(parts) > 1 else None


def _scale(results: Path) -> Section | None:
    if results.resolve() != ROOT / "results":
        return None
    how = ("python -m suite report", "tables: scale/runs.csv, hypotheses.csv", "train them again: python -m suite run --protocol scale")
    return Section("Scale of the branch", blocks(branch_scale(results)), ("scale-branch_scale",), how)


def _scheme(row: dict) -> str:
    return called(label(row["scheme"], row["params"], row["writers"], row["arm"]))


def _cost(over: float | None) -> str:
    return "-" if over is None else "0%" if over == 1 else f"{over - 1:+.0%}"


def _edges(results: Path) -> Section | None:
    rows = critical_rates.rows(results)
    if not rows:
        return None
    parts = [blocks(EDGES)]
    for (protocol, depth), at in _by_place(rows).items():
        parts.append(blocks(f"### {depth} blocks ({protocol})"))
        parts.append(table(["scheme", "best rate", "window", "LR10", "LR50", "sensitivity", "runs"],
                           [[_scheme(row), number(1e3 * row["best_lr"]), _interval(row, "window"), _rate(row, "lr10"),
                             _rate(row, "lr50"), f"{row['sensitivity']:.2f}", row["runs"]] for row in at]))  # fmt: skip
    compared = ratios(runs_of(results / "frontier"), hypotheses(results, "frontier")) if (results / "hypotheses.csv").exists() else []
    if asked := [one for one in compared if one.adjusted is not None]:
        parts.append(blocks("### The comparison that was fixed beforehand"))
        parts.append(table(["blocks", "LR50 of MV-Split over plain's", "p (Holm)", "runs"],
                           [[one.depth, one, f"{one.adjusted:.2g}", f"{one.n[0]} and {one.n[1]}"] for one in asked]))  # fmt: skip
    how = ("python -m suite report", "tables: critical_rates.csv, hypotheses.csv, frontier/runs.csv, frontier64/runs.csv",
           "train them again: python -m suite run --protocol frontier")  # fmt: skip
    return Section("Critical rates and windows", Markup("\n").join(parts), ("frontier-critical_rates", "frontier64-critical_rates"), how)


def _fates(results: Path) -> Section | None:
    parts = []
    for folder in _folders(results):
        runs = finished(runs_of(folder))
        counts = runs.groupby(["name", "depth"], sort=False)["outcome"].value_counts().unstack(fill_value=0)
        counts = counts[[name for name in OUTCOMES if name in counts]]
        rows = [[called(scheme), depth, *map(int, at), int(at.sum())] for (scheme, depth), at in counts.iterrows()]
        parts += [blocks(f"### {folder.name}"), table(["scheme", "blocks", *counts, "runs"], rows)]
    how = ("python -m suite status --results results", "tables: runs.csv of each protocol")
    return Section("Fates", Markup("\n").join(parts), ("frontier-fates", "frontier64-fates"), how) if parts else None


def _survival(results: Path) -> Section | None:
    parts = []
    for name in ("anatomy", "anatomy64"):
        if not (results / name / TABLES["runs"].path).exists():
            continue
        rows = [[called(risk.name), risk.depth, number(1e3 * risk.lr), risk.runs, risk.dead, *(str(piece) for piece in risk.pieces)]
                for risk in risks(with_health(results / name))]  # fmt: skip
        parts += [blocks(f"### {name}"), table(["scheme", "blocks", "rate", "runs", "died", f"up to step {CUT}", "after it"], rows)]
    intro = blocks(f"Deaths of healthy runs in {PER} healthy steps, with exact intervals of a Poisson count; rates in thousandths, below "
                   "each scheme's own edge.")  # fmt: skip
    how = ("python -m suite report", "tables: anatomy/runs.csv, anatomy/evals.csv, anatomy64",
           "train them again: python -m suite run --protocol anatomy")  # fmt: skip
    return Section("Survival", Markup("\n").join([intro, *parts]), ("anatomy-survival",), how) if parts else None


def _autopsy(results: Path) -> Section | None:
    if not (results / "autopsy" / TABLES["autopsy"].path).exists():
        return None
    how = ("python -m suite autopsy --results results", "tables: autopsy/autopsy.csv, autopsy/references.csv")
    return Section("Autopsy", blocks(left_of_the_dead(results)), ("autopsy-interventions",), how)
