"""What is committed holds: the tables bear out themselves, and every number of the README. Its blocks take a minute and are made once."""

import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from paper_figures import draw
from suite.environment import ROOT
from suite.evidence import critical_rates, decided, report, verify
from suite.evidence.cells import runs_of
from suite.presets import PROTOCOLS
from suite.records.store import Store

RESULTS = ROOT / "results"
PICTURES = ROOT / "paper_figures" / "out"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def blocks():
    """The README's blocks, of the committed results."""
    return report.blocks(RESULTS)


@pytest.fixture
def made(blocks, monkeypatch):
    """The same for whoever asks `report`, which makes them anew each time."""

    def kept(results):
        assert results == RESULTS
        return blocks

    monkeypatch.setattr(report, "blocks", kept)
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
    assert "17 rows" in found.stdout
    assert "import suite" not in (text := (ROOT / "tests/evidence/stranger.py").read_text()) and "from suite" not in text


def test_what_critical_rates_says_is_what_the_runs_give():
    assert critical_rates.differs(RESULTS) == []


def test_committed_files_are_small():
    sizes = {path: path.stat().st_size for path in RESULTS.rglob("*") if path.is_file() and "local" not in path.parts}
    sizes = {path: size for path, size in sizes.items() if ".work" not in path.parts}
    assert max(sizes.values()) < 10e6
    assert sum(sizes.values()) < 30e6


def test_readme_table_is_that_of_the_results(made, monkeypatch, tmp_path):
    readme = tmp_path / "README.md"
    shutil.copy(report.README, readme)
    monkeypatch.setattr(report, "README", readme)
    assert report.readme_differs(RESULTS) == []
    readme.write_text(readme.read_text().replace("**collapsed** at", "**thrived** at"))  # in one block, the laptop's outcomes
    assert len(report.readme_differs(RESULTS)) == 1
    report.write_readme(RESULTS)
    assert report.readme_differs(RESULTS) == [] and readme.read_text() == TEXT


def test_every_number_of_the_results_is_made_from_the_tables(made):
    """Up to "Run it", and in "How it dies", prose has only the protocols' numbers, the rules' and those of version 2's story; the rest are
    blocks of `report`."""
    assert report.readme_differs(RESULTS) == []
    dies = TEXT.index("## How it dies")
    prose = TEXT[: TEXT.index("## Run it")] + TEXT[dies : TEXT.index("## Known differences")]
    prose = re.sub(r"```.*?```", "", prose, flags=re.S)
    for begin, block in made.items():
        assert begin in prose
        prose = prose.replace(block, "")
    prose = re.sub(r"\]\([^)]*\)|<[^>]*>", "]", prose)  # addresses
    frontier = PROTOCOLS["frontier"]
    rows = Store(RESULTS / "frontier").runs()
    seeds = Counter((row["scheme"], row["depth"], row["lr"]) for row in rows)
    allowed = {
        *map(str, frontier.depths), str(frontier.horizon), f"LR50@{frontier.horizon}", "LR50", "LR10", str(frontier.width), "1,797", "8",
        str(min(seeds.values())), str(max(seeds.values())), "1000", "95", "0", "2023", "50",
        "2", "3", "0.64", "0.02", "100", "1.5", "66", "1.92",  # versions 2 and 3: weights, and the run that two processors judged apart
        "3,000", "7", "1.6", "12", "128", "16", "64", "80", "200", "1,000", "5",  # anatomy's plan; the monitor's cost; targets
    }  # fmt: skip
    found = set(re.findall(r"LR\d0(?:@\d+)?|\d+(?:,\d{3})*(?:\.\d+)?", prose))
    assert found <= allowed, found - allowed


def test_the_laptops_two_rates_are_those_of_the_rule():
    assert PROTOCOLS["laptop"].lrs == decided.rates(runs_of(RESULTS / "frontier"))
    assert PROTOCOLS["laptop"].unscored == PROTOCOLS["laptop"].lrs[1:]


def test_what_the_readme_says_of_healthy_deaths_is_the_hazard_tables(blocks):
    """Counted here from the runs and held-out losses alone; a variant of a scheme (attention only) is another cell."""
    import pandas as pd

    folder = RESULTS / "anatomy"
    runs, evals = (pd.read_csv(folder / name, dtype={"run_id": str}) for name in ("runs.csv", "evals.csv"))
    line = next(line for line in blocks[report.FOUND].splitlines() if "Healthy, then gone" in line)
    said = re.findall(r"(plain|mvsplit) at (\d+) blocks and ([\d.]+): (\d+) of (\d+) died, (\d+) of them healthy", line)
    assert said
    for scheme, depth, lr, dead, n, healthy in said:
        mine = runs[(runs.scheme == scheme) & (runs.depth == int(depth)) & (runs.lr == float(lr))]
        mine = mine[mine.params.isin(["-", "alpha=0,beta=1,sites=both"])]
        gone = mine[mine.outcome.isin(["collapsed", "degraded", "nonfinite"])]
        before = [evals[(evals.run_id == row.run_id) & (evals.step < row.crash_step - 10)].heldout_loss for row in gone.itertuples()]
        well = sum(len(losses) > 0 and losses.iloc[-1] < 0.45 * row.constant_loss for losses, row in zip(before, gone.itertuples()))
        assert (len(gone), len(mine), well) == (int(dead), int(n), int(healthy))
