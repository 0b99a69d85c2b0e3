"""A verdict on every claim of the paper, from the committed tables: REPRODUCTION.md, and the README's eight rows of it."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

import pandas as pd

from suite.environment import ROOT
from suite.evidence import claims_collapse, claims_gradients, claims_others, claims_scale, claims_schemes
from suite.evidence.claim import Claim, Part
from suite.evidence.claims_tables import Tables
from suite.evidence.markdown import table
from suite.evidence.verdicts import VERDICTS
from suite.evidence.words import render

PAGE = "REPRODUCTION.md"
CHAPTERS = {
    "The collapse": claims_collapse, "Inside the network": claims_gradients, "The schemes": claims_schemes,
    "The split, or the scale of the branch": claims_scale, "Start, mean mode, depth, and what was not run": claims_others,
}  # fmt: skip
SHOWN = (  # in the README
    "The collapse is finite", "All tokens become equal", "It can strike a long-healthy run", "It begins in the shallow blocks",
    "MV-Split prevents that collapse", "MV-Split trains where plain crashes", "MV-Split learns better than LayerScale",
    "A thousand blocks are trainable",
)  # fmt: skip


def judged(tables: Tables) -> dict[str, list[Claim]]:
    """All claims, by chapter."""
    return {title: chapter.claims(tables) for title, chapter in CHAPTERS.items()}


@lru_cache(maxsize=1)
def of_folder(results: Path) -> tuple[dict[str, list[Claim]], pd.DataFrame]:
    """The claims of a results folder, by chapter, and the runs that they rest on."""
    tables = Tables(results)
    return judged(tables), tables.runs


def counted(chapters: dict[str, list[Claim]]) -> Counter[str]:
    """How many claims have each verdict."""
    return Counter(claim.verdict for claims in chapters.values() for claim in claims)


def reproduction(results: Path) -> str:
    """The page of all claims, in Markdown."""
    chapters, runs = of_folder(results.resolve())
    counts = counted(chapters)
    tokens = sorted(set(runs["image_tokens"] + runs["caption_tokens"]))
    return render("reproduction", chapters=chapters, counts={verdict: counts[verdict] for verdict in VERDICTS}, rows=_rows, runs=len(runs),
                  widths=sorted(set(runs["width"])), tokens=tokens, depths=sorted(set(runs["depth"]))) + "\n"  # fmt: skip


def _rows(claim: Claim) -> str:
    """The parts of a claim as a Markdown table."""
    return table(["asked", "ours", "rule", "verdict"],
                 ([part.says, part.seen, f"{part.rule} ({part.rule.why})" if part.rule.why else part.rule, part.verdict]
                  for part in claim.parts))  # fmt: skip


def headline(results: Path) -> str:
    """Markdown for the README: eight claims, their verdicts, and of each the first number, and the first that says otherwise."""
    known = {claim.title: claim for claims in of_folder(results.resolve())[0].values() for claim in claims}
    rows = [[claim.says, f"[{claim.verdict}]({PAGE}#{claim.anchor})", "; ".join(f"{part.says}: {part.seen}" for part in _telling(claim))]
            for claim in (known[title] for title in SHOWN)]  # fmt: skip
    shown = table(["the paper says", "verdict", "ours"], rows)
    return (f"{shown}\n\nIn part: the effect is there but smaller than the paper's, or only some of the claim's numbers hold. "
            f"All {len(known)} claims, each with its rule: [{PAGE}]({PAGE}).")  # fmt: skip


def _telling(claim: Claim) -> list[Part]:
    """A claim's first number, and the first that has another verdict."""
    first = claim.parts[0]
    return [first, *[part for part in claim.parts if part.verdict != first.verdict][:1]]


def _place(results: Path) -> Path:
    """Where the page of a results folder stands: beside the README for the committed one, else in the folder."""
    return (ROOT if results.resolve() == ROOT / "results" else results) / PAGE


def write(results: Path) -> Path:
    path = _place(results)
    path.write_text(reproduction(results), encoding="utf-8")
    return path


def differs(results: Path) -> list[str]:
    """A problem line where the page is not what the tables give; nothing in an installed copy, which has none."""
    path = _place(results)
    if not path.exists() or path.read_text(encoding="utf-8") == reproduction(results):
        return []
    return [f"{PAGE}: is not what {results.name} gives; mend with: python -m suite claims --write"]
