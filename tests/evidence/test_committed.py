"""What is committed holds: the tables bear out themselves, and every number of every page. Blocks take a minute and are made once."""

import re
import subprocess
import sys

import pytest

from paper_figures import draw
from suite.environment import ROOT
from suite.evidence import critical_rates, decided, pages, verify
from suite.evidence.cells import runs_of
from suite.evidence.measures import WITHIN
from suite.presets import PROTOCOLS
from suite.sweep.frontier import PRECISION
from suite.verdict import outcome
from suite.verdict.best import FRESH

RESULTS = ROOT / "results"
PICTURES = ROOT / "paper_figures" / "out"
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in
         (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), RESULTS / "README.md")}  # fmt: skip


@pytest.fixture(scope="module")
def blocks():
    """The blocks of the committed results."""
    return pages.blocks(RESULTS)


@pytest.fixture
def made(blocks, monkeypatch):
    """The same for whoever asks `pages`, which makes them anew each time."""

    def kept(results):
        assert results == RESULTS
        return blocks

    monkeypatch.setattr(pages, "blocks", kept)
    return blocks


@pytest.mark.slow
def test_committed_pictures_show_what_the_tables_give():
    assert draw.stale(RESULTS, PICTURES) == []


def test_committed_results_are_sound(made):
    checked, problems = verify.verify(RESULTS)
    assert not problems
    assert checked >= 15


def test_a_stranger_comes_to_the_same_numbers():
    """A program that never imports `suite`, and reads the tables alone."""
    found = subprocess.run([sys.executable, "tests/evidence/stranger.py"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    rows = sum(1 for _ in open(RESULTS / "critical_rates.csv", encoding="utf-8")) - 1
    assert rows > 20 and f"{rows} rows" in found.stdout
    assert "import suite" not in (text := (ROOT / "tests/evidence/stranger.py").read_text()) and "from suite" not in text


def test_what_critical_rates_says_is_what_the_runs_give():
    assert critical_rates.differs(RESULTS) == []


def test_committed_files_are_small():
    sizes = {path: path.stat().st_size for path in RESULTS.rglob("*") if path.is_file() and "local" not in path.parts}
    sizes = {path: size for path, size in sizes.items() if ".work" not in path.parts}
    assert max(sizes.values()) < 10e6
    assert sum(sizes.values()) < 30e6


def test_every_block_stands_on_its_page(made, tmp_path):
    assert len(made) == len(pages.BLOCKS)
    for name, text in PAGES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert pages.differ(RESULTS, tmp_path) == []
    page = tmp_path / "docs" / "findings.md"
    page.write_text(page.read_text().replace("**collapsed** at", "**thrived** at"))  # in one block, the laptop's outcomes
    (problem,) = pages.differ(RESULTS, tmp_path)
    assert "docs/findings.md" in problem and "outcomes" in problem
    pages.write(RESULTS, tmp_path)
    assert pages.differ(RESULTS, tmp_path) == [] and {name: (tmp_path / name).read_text() for name in PAGES} == PAGES
    page.write_text(page.read_text().replace("outcomes: made", "outcomes: taken"))
    with pytest.raises(ValueError, match="markers .*outcomes.* are missing"):
        pages.write(RESULTS, tmp_path)


FRONTIER, LONG, PAPER = (PROTOCOLS[name] for name in ("frontier", "anatomy", "paper"))
NUMBERS = {  # what prose may say beside the blocks: numbers of the protocols, and those that the test behind a comment holds
    "README.md": {"95", "100", "400", "1000", str(FRONTIER.horizon), str(LONG.horizon), str(FRONTIER.width), str(PAPER.width), "8",
                  "3.11", "3"},  # what run_all.sh asks for: tests/cli/test_run_all.py
    "docs/branch_scale.md": {"15", "50", "5"},  # the search's rule of stopping, as it was called; the plan; measures.WITHIN
    "docs/detect.md": {"50", "95", "1,000", "25", "5", "1", "0", "200",  # targets, and the settings of suite/evidence/early_warning.py
                       "1.5", "1.6", "12", "128", "16", "64", "80",  # tests/bench/monitor_cost.py, by hand
                       "201"},  # results/detect/rivals.py
    "docs/findings.md": {"0", "95", "400", "1000", str(FRONTIER.width),  # tests/evidence/test_deep.py
                         "2", "3", "0.64", "0.02", "100", "1.5", "66", "1.92"},  # versions 2 and 3, and a run of version 2
    "docs/glossary.md": {"LR50", "LR10", "0.45", "1", "2", "2.0", "4", "5", "6", "7"},  # the paper's equations; hazard.HEALTHY
    "docs/how_it_dies.md": {"3,000", "400", "50", "100", "64", "1,000", "12", "32", "5", "7", "2", "3",
                             "95", "999"},  # Adam's beta2: suite/controls.py, suite/protocol.py; tests/evidence/test_hazard.py
    "docs/paper_scale.md": {"3", "1024", "400", "1000", "100,000", "8", "16", "1", "0.03", "256", "20", "4", "2", "32", "50,000",
                            "5.45", "13.64", "4.58", "128", "236", "321", "589", "100",  # tests/sweep/test_cost.py
                            "28", "196", "64", "3.125", "9625"},  # tests/training/test_quarter.py, tests/quality/test_mnist_features.py
    "docs/performance.md": {"10", "100", "1000", "256", "25", "12,800", "2.13", "8"},  # the laptop's samples; tests/gpu/check.sh
    "docs/rules.md": {"0", "0.02", "1", "1.5", "1.6", "16", "20", "256", "64", "300", "3,000", "100,000", "2023", "0.64",  # the paper's
                      "32", "1,797", "297", "8", "25", "100", "400", "3", "2.0", "95", "LR10", "LR50",
                      "0.8", "48", "50", "5", "2", "4", "200", "10", "6", "0.6", "7"},  # tests/verdict/test_rule_text.py, and below
    "docs/running.md": {"3.11", "3", "2.13", "0", "2", "10", "15", "100", "1", "16", "35", "40", "0.1", "12,000", "120", "8",
                        "64", "17"},  # of float64; results/entries/scalar, with a watch
    "results/README.md": {"25", "50", "100", "64", "0", "400", "1000", "128", "11"},
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_number_of_prose_is_one_that_is_held(page):
    """Blocks are what the tables give, examples are run (test_readme.py); what is left has no number of its own."""
    assert set(NUMBERS) == set(PAGES)
    prose = re.sub(r"<!-- [^>]*: made by .*?<!-- end -->", "", PAGES[page], flags=re.S)
    prose = re.sub(r"```.*?```", "", prose, flags=re.S)
    prose = re.sub(r"\]\([^)]*\)|<[^>]*>", "]", prose)  # addresses
    found = set(re.findall(r"LR\d0(?:@\d+)?|\d+(?:,\d{3})*(?:\.\d+)?", prose))
    assert found and found <= NUMBERS[page], found - NUMBERS[page]


def test_the_rules_page_has_the_numbers_of_the_rules():
    text = re.sub(r"\s+", " ", PAGES["docs/rules.md"])
    runs = runs_of(RESULTS / "frontier")
    seeds = runs[runs["seed"] < FRESH].groupby(["scheme", "depth", "lr"]).size()
    for words in (
        f"above {outcome.STUCK:g} *c*", f"below {1 - outcome.CLEARLY_BELOW:g} *c*", f"under {outcome.MIN_STEPS} steps",
        f"within {100 * outcome.AT_CONSTANT:g} % of (*c* - *m*)", f"within {100 * (WITHIN - 1):.0f} % of the best loss",
        f"± {100 * PRECISION:g} %", f"{seeds.min()} to {seeds.max()} seeds", f"{min(FRONTIER.depths)} to {max(FRONTIER.depths)} blocks",
        f"Width {FRONTIER.width},", f"{FRONTIER.horizon} steps", f"{runs['image_tokens'].iloc[0]} image tokens",
    ):  # fmt: skip
        assert words in text, words


def test_the_laptops_two_rates_are_those_of_the_rule():
    assert PROTOCOLS["laptop"].lrs == decided.rates(runs_of(RESULTS / "frontier"))
    assert PROTOCOLS["laptop"].unscored == PROTOCOLS["laptop"].lrs[1:]


def test_what_is_said_of_healthy_deaths_is_the_hazard_tables(blocks):
    """Counted here from the runs and held-out losses alone; a variant of a scheme (attention only) is another cell."""
    import pandas as pd

    folder = RESULTS / "anatomy"
    runs, evals = (pd.read_csv(folder / name, dtype={"run_id": str}) for name in ("runs.csv", "evals.csv"))
    line = next(line for block in blocks.values() for line in block.splitlines() if "Healthy, then gone" in line)
    said = re.findall(r"(plain|MV-Split) at (\d+) blocks and ([\d.]+): (\d+) of (\d+) died, (\d+) of them healthy", line)
    assert said
    for scheme, depth, lr, dead, n, healthy in said:
        mine = runs[(runs.scheme == {"MV-Split": "mvsplit"}.get(scheme, scheme)) & (runs.depth == int(depth)) & (runs.lr == float(lr))]
        mine = mine[mine.params.isin(["-", "alpha=0,beta=1,sites=both"])]
        gone = mine[mine.outcome.isin(["collapsed", "degraded", "nonfinite"])]
        before = [evals[(evals.run_id == row.run_id) & (evals.step < row.crash_step - 10)].heldout_loss for row in gone.itertuples()]
        well = sum(len(losses) > 0 and losses.iloc[-1] < 0.45 * row.constant_loss for losses, row in zip(before, gone.itertuples()))
        assert (len(gone), len(mine), well) == (int(dead), int(n), int(healthy))
