"""What a reader copies from the pages works and prints what they show, their links lead somewhere, and the README stays short."""

import contextlib
import io
import pkgutil
import re
import runpy
from types import SimpleNamespace

import pandas as pd
import pytest

from suite import cli
from suite.environment import ROOT
from suite.evidence.report import beside
from suite.presets import PROTOCOLS
from suite.sweep import search

RESULTS = ROOT / "results"
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in
         (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), RESULTS / "README.md", ROOT / "CHANGELOG.md",
          ROOT / "CONTRIBUTING.md")}  # fmt: skip
README = PAGES["README.md"]
BLOCKS = [(page, block) for page, text in PAGES.items() for block in re.findall(r"```python\n(.*?)```", text, re.S)]
SHOWN = re.findall(r"```text\n(.*?)\n```", README, re.S)  # detect's verdict, collect's table, verify's last line, a search's first, counts


def test_the_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 250 and len(README.encode()) <= 16_000


def test_the_pages_show_a_monitor_a_scheme_the_tables_the_corpus_and_an_audit():
    assert [page for page, _ in BLOCKS] == ["README.md"] * 3 + ["docs/detect.md"] * 2 + ["results/README.md"]
    words = "Monitor(", "@register", "agg(", "corpus(", "audit(", "read_csv"
    assert all(word in block for word, (_, block) in zip(words, BLOCKS, strict=True))


def printed(block, tmp_path) -> str:
    (tmp_path / "example.py").write_text(block)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(tmp_path / "example.py"))
    return out.getvalue()


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=["monitor", "scheme", "counts", "corpus", "audit", "tables"])
def test_its_python_runs(page, block, tmp_path, monkeypatch, scratch_registry):
    monkeypatch.chdir(ROOT)
    out = printed(block, tmp_path)
    if "agg(" in block:
        assert [line.rstrip() for line in out.splitlines()] == SHOWN[4].splitlines()


def test_the_counts_that_it_shows_are_those_of_runs_csv():
    """Each line against the runs themselves; none is missing of a rate that is shown."""
    runs = pd.read_csv(RESULTS / "frontier" / "runs.csv")
    lines, lr, seen = SHOWN[4].splitlines()[2:], None, 0
    for line in lines:
        *rate, scheme, n, dead, usable = line.split()
        lr = float(rate[0]) if rate else lr
        mine = runs[(runs.scheme == scheme) & (runs.depth == 100) & (runs.lr == lr)]
        assert (len(mine), mine.crash_step.notna().sum(), (mine.outcome == "survived").sum()) == (int(n), int(dead), int(usable))
        seen += len(mine)
    shown = [float(line.split()[0]) for line in lines if line[0].isdigit()]
    assert seen == ((runs.depth == 100) & runs.lr.isin(shown)).sum() and len(shown) == 3
    assert {n != dead for n, dead, usable in (line.split()[-3:] for line in lines)} == {True, False}


def test_detect_says_what_it_shows(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (words,) = re.findall(r"python -m suite (detect results/\S+)\n", README)
    assert cli.main(words.split()) == 0
    shown, end = SHOWN[0][:-4], SHOWN[0][-4:]
    assert end == " ..." and capsys.readouterr().out.startswith(shown) and '"outcome": "collapsed"' in shown


def test_the_cells_beside_the_committed_ones_are_those_that_collect_prints():
    head, *rows = beside(RESULTS / "laptop", RESULTS / "laptop").splitlines()
    said = [re.split(r" {2,}", line) for line in SHOWN[1].splitlines()]
    assert set(said[0]) <= set(head.split()) and len(said) == 3
    for cells in said[1:]:
        assert any(set(cells) <= set(re.split(r" {2,}", row.strip())) for row in rows), cells


def test_verify_counts_the_runs_that_it_shows():
    n = sum(len(pd.read_csv(path, usecols=["run_id"])) for path in RESULTS.glob("*/runs.csv") if path.parent.name != "local")
    assert SHOWN[2] == f"results: {n} runs and their pictures checked, 0 problems"


def test_a_search_costs_what_it_shows():
    cost = search.core_hours([SimpleNamespace(depth=100, protocol=PROTOCOLS["frontier"])])
    assert SHOWN[3].startswith(f"a search through 1 cells: about {cost:.1f} core-hours from nothing")


NOW = "\n".join(text for page, text in PAGES.items() if page != "CHANGELOG.md")  # which tells of what was


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(suite(?:\.\w+)+)", NOW))))
def test_the_names_it_mentions_are_there(name):
    assert pkgutil.resolve_name(name)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:suite|tests|baselines|paper_figures|results|docs)/[\w/.]*)`", NOW))))
def test_the_files_it_mentions_are_there(path):
    assert (ROOT / path).exists() or path.startswith(("results/local", "results/entries"))


# ---- links

def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: small letters, hyphens for spaces, a number where there are several alike."""
    text, found = re.sub(r"```.*?```", "", text, flags=re.S), []
    for title in re.findall(r"^#+ (.*)$", text, re.M):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return set(found)


LINKS = sorted({(page, link) for page, text in PAGES.items() for link in
                re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)) if "://" not in link})  # fmt: skip


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_a_link_leads_somewhere(page, link):
    path, _, anchor = link.partition("#")
    target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    assert target.exists() and target.is_relative_to(ROOT)
    assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), anchors(target.read_text(encoding="utf-8"))


def test_anchors_are_made_as_on_github():
    assert anchors("# One run, and *how* sure\n## The paper's own depths\n## `verify` it\n# x\n# x\n```\n# no\n```") == {
        "one-run-and-how-sure", "the-papers-own-depths", "verify-it", "x", "x-1"}  # fmt: skip
    assert len(LINKS) > 40 and any("#" in link for _, link in LINKS)
