"""The report: whole, self-contained, small; its Markdown as HTML; and in a real browser where there is one."""

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from paper_figures.gallery import Picture, gallery
from suite.cli import main
from suite.environment import ROOT
from suite.evidence import html
from suite.evidence.richtext import blocks, inline
from suite.records.package import write_package
from suite.records.schema import TABLES
from suite.records.store import read_rows, write_rows

VOID = {"meta", "img", "br", "hr", "link", "input"}
FETCHES = {"src", "srcset", "data", "poster", "action", "background"}  # attributes that make a browser load something


class Checker(HTMLParser):
    """Whether tags are closed in order; ids, links, what would be loaded, headings and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.loads, self.headings, self.tags, self.styles = [], [], [], [], [], set(), ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.loads += [value for name, value in attrs.items() if name in FETCHES or (name == "href" and tag != "a")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)
        if self.open and self.open[-1] == "style":
            self.styles += data


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The page of a results folder of some runs of `laptop`, made from the command line."""
    folder = tmp_path_factory.mktemp("small")
    results = folder / "results" / "laptop"
    results.mkdir(parents=True)
    rows = [row for row in read_rows(ROOT / "results/laptop/runs.csv", TABLES["runs"]) if row["scheme"] == "plain"]
    write_rows(results / "runs.csv", TABLES["runs"], rows)
    write_package(results)
    assert main(["report", "--html", str(folder / "deep" / "report.html"), "--results", str(folder / "results")]) == 0
    return (folder / "deep" / "report.html").read_text(encoding="utf-8")


def check(text):
    """What every page must hold."""
    found = Checker(text)
    assert found.open == [] and len(set(found.ids)) == len(found.ids)
    assert all(link[1:] in found.ids for link in found.links if link.startswith("#"))
    assert all(link.startswith(("#", "https://arxiv.org/")) for link in found.links)
    assert all(value.startswith("data:image/webp;base64,") for value in found.loads)
    assert not found.tags & {"script", "iframe", "object", "link", "base"} and not re.search(r"url\(|@import", found.styles)
    assert len(text.encode()) < 5_000_000
    return found


def test_a_small_page_is_whole_and_needs_nothing(small):
    found = check(small)
    assert found.headings == ["ScreamBench: report", "Fates", "Claims", "Figures", "Reproduce"]
    assert small.count("<details") > 20 and 'class="verdict not-tested"' in small and "prefers-color-scheme: dark" in small
    pictures = found.loads
    assert pictures
    for uri in pictures:
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
            assert picture.format == "WEBP" and 0 < picture.width <= 1100


def test_figures_writes_the_same_page_beside_its_pictures(small, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results/laptop", results / "laptop", ignore=lambda _, names: set(names) - {"runs.csv", "datapackage.json"})
    rows = [row for row in read_rows(results / "laptop/runs.csv", TABLES["runs"]) if row["scheme"] == "plain"]
    write_rows(results / "laptop/runs.csv", TABLES["runs"], rows)
    assert main(["figures", "--results", str(results)]) == 0
    assert (results / "figures/report.html").read_text(encoding="utf-8") == small


def test_every_table_scrolls_in_a_box_of_its_own(small):
    assert small.count("<table>") == small.count('<div class="wide" tabindex="0"><table>') > 0
    assert small.count("<img ") == small.count('<div class="wide picture" tabindex="0"><img ')


def test_a_page_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "laptop").mkdir()
    huge = Picture("a-b", "A", "B", (), 1, 1, "data:image/webp;base64," + "A" * html.LARGEST)
    with pytest.raises(ValueError, match="MB"):
        html.page(tmp_path, [huge])


def test_without_runs_there_is_no_page(tmp_path, capsys):
    assert main(["report", "--html", str(tmp_path / "page.html"), "--results", str(tmp_path)]) == 2
    assert "no results to report" in capsys.readouterr().err and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(("words", "made"), [
    ("a < b & *c*", "a &lt; b &amp; <em>c</em>"),
    ("**Bold, `x < *y*` and 0.5 *c*.**", "<strong>Bold, <code>x &lt; *y*</code> and 0.5 <em>c</em>.</strong>"),
    ("[words](docs/rules.md) and [paper](https://arxiv.org/abs/2605.06169)", 'words and <a href="https://arxiv.org/abs/2605.06169">paper</a>'),
    ("2 * 3 * 4, mean_mode_x", "2 * 3 * 4, mean_mode_x"),
    ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
])  # fmt: skip
def test_a_line_of_markdown(words, made):
    assert inline(words) == made


def test_blocks_of_markdown():
    text = "# Head\n\n- one\n  goes on\n- two\n\n| a | b |\n|---|---|\n| 1 | `x` |\n\nA\nline."
    assert blocks(text) == ("<h3>Head</h3>\n<ul><li>one goes on</li><li>two</li></ul>\n"
                            '<div class="wide" tabindex="0"><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td>'
                            "<td><code>x</code></td></tr></tbody></table></div>\n<p>A line.</p>")  # fmt: skip


@pytest.mark.slow
def test_the_committed_results_make_a_page():
    found = check(html.page(ROOT / "results", gallery(ROOT / "results", ROOT / "paper_figures" / "out")))
    assert found.headings == ["ScreamBench: report", "Findings", "Ranking", "Scale of the branch", "Critical rates and windows", "Fates",
                              "Survival", "Autopsy", "Claims", "Figures", "Reproduce"]  # fmt: skip
    assert len(found.loads) == len(list((ROOT / "paper_figures" / "out").glob("*.png")))


CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)


@pytest.mark.skipif(CHROME is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(small, tmp_path, width):
    """In a frame of that width, which tells its parent how wide its page is; anything on the console would be an error of it."""
    tell = "<script>addEventListener('load', () => parent.postMessage(document.documentElement.scrollWidth, '*'))</script>"
    (tmp_path / "page.html").write_text(small.replace("</body>", f"{tell}</body>"), encoding="utf-8")
    heard = "<script>addEventListener('message', said => document.body.dataset.wide = said.data)</script>"
    (tmp_path / "frame.html").write_text(f"<iframe src=page.html width={width} height=800 style='border:0'></iframe>{heard}")
    words = [CHROME, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr",
             "--virtual-time-budget=8000", "--dump-dom", (tmp_path / "frame.html").as_uri()]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert int(re.search(r'data-wide="(\d+)"', done.stdout)[1]) <= width
    assert "CONSOLE" not in done.stderr
