"""The blocks of the pages that are made from the committed runs: which page each stands on, and whether it is what the runs give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from suite.environment import ROOT
from suite.evidence import claims
from suite.evidence.anatomy import anatomy
from suite.evidence.answer import answer
from suite.evidence.autopsy import left_of_the_dead
from suite.evidence.blind import blind
from suite.evidence.branch_scale import branch_scale
from suite.evidence.cells import runs_of
from suite.evidence.costs import costs
from suite.evidence.deep import deep
from suite.evidence.detecting import detecting
from suite.evidence.early_warning import early_warning
from suite.evidence.findings import findings
from suite.evidence.head_to_head import head_to_head, sentence
from suite.evidence.headline import failure, headline
from suite.evidence.remedies import remedies
from suite.evidence.report import edge_tables, outcome_table
from suite.evidence.zoo import zoo
from suite.presets import PROTOCOLS
from suite.records.schema import TABLES

END = "<!-- end -->"


class Block(NamedTuple):
    """What stands on a page below a marker. needs: the folders of results that it is made from; anyone: whether their
    runs may be a user's, who has not all of the schemes."""

    page: str
    title: str
    needs: tuple[str, ...]
    make: Callable[[Path], str]
    anyone: bool = False

    @property
    def begin(self) -> str:
        return f"<!-- {self.title}: made by `python -m suite report` -->"


BLOCKS = (
    Block("README.md", "answer", ("frontier", "anatomy", "scale", "bench"), answer),
    Block("README.md", "failure", ("anatomy", "frontier"), failure),
    Block("README.md", "ranking", ("frontier", "scale", "bench"), headline),
    Block("README.md", "claims", ("frontier", "anatomy", "deep", "stdinit", "detect", "bench"), claims.headline),
    Block("README.md", "detectors", ("detect",), lambda results: sentence(results / "detect")),
    Block("docs/branch_scale.md", "branch scale", ("scale", "frontier"), branch_scale),
    Block("docs/findings.md", "findings", ("frontier", "anatomy", "rounding", "frontier64"), findings),
    Block("docs/findings.md", "critical rates", ("frontier",), lambda results: edge_tables(results / "frontier"), True),
    Block("docs/findings.md", "outcomes", ("laptop",),
          lambda results: outcome_table(results / "laptop", results / "frontier"), True),
    Block("docs/findings.md", "the paper's depths", ("deep",), deep, True),
    Block("docs/how_it_dies.md", "deaths", ("anatomy", "frontier"), anatomy, True),
    Block("docs/how_it_dies.md", "autopsy", ("autopsy",), left_of_the_dead),
    Block("docs/how_it_dies.md", "remedies", ("remedies",), remedies),
    Block("docs/detect.md", "detect", ("detect",), lambda results: detecting(results / "detect"), True),
    Block("docs/detect.md", "posted logs", ("detect",), blind),
    Block("docs/detect.md", "head to head", ("detect",), lambda results: head_to_head(results / "detect")),
    Block("docs/detect.md", "zoo", ("detect",), lambda results: zoo(results / "detect")),
    Block("docs/detect.md", "early warning", ("frontier", "anatomy"), early_warning),
    Block("docs/performance.md", "costs", ("bench",), costs),
)


def blocks(results: Path) -> dict[Block, str]:
    """The text of each block that the folder has the runs for, between its marker and END."""
    ours = results.resolve() == ROOT / "results"
    return {block: f"{block.begin}\n\n{block.make(results).strip()}\n\n{END}" for block in BLOCKS
            if (ours or block.anyone) and all(_has(results / name) for name in block.needs)}  # fmt: skip


def _has(folder: Path) -> bool:
    """Whether a folder is there; of a protocol's, whether it has runs of the version of today, or autopsies, which keep no runs."""
    if folder.name not in PROTOCOLS or (folder / TABLES["autopsy"].path).exists():
        return folder.is_dir()
    return bool((runs_of(folder)["protocol_version"] == PROTOCOLS[folder.name].version).any())


def differ(results: Path, root: Path = ROOT) -> list[str]:
    """A problem line for each block that does not stand on its page as the results give it; nothing in an installed copy."""
    return [f"{block.page}: what stands below {block.begin} is not what {results.name} gives; mend with: python -m suite report --write"
            for block, made, text in _on_pages(results, root) if made not in text]  # fmt: skip


def write(results: Path, root: Path = ROOT) -> None:
    """Put the blocks onto their pages. Raises ValueError where markers are missing."""
    for block, made, _ in _on_pages(results, root):
        page = root / block.page
        before, found, rest = page.read_text(encoding="utf-8").partition(block.begin)
        _, end, after = rest.partition(END)
        if not (found and end):
            raise ValueError(f"{block.page}: the markers {block.begin} and {END} are missing")
        page.write_text(before + made + after, encoding="utf-8")


def _on_pages(results: Path, root: Path) -> Iterator[tuple[Block, str, str]]:
    """Each block with its text and that of its page."""
    if (root / "README.md").exists():
        for block, made in blocks(results).items():
            yield block, made, (root / block.page).read_text(encoding="utf-8")
