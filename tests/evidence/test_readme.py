"""What a reader copies from the README works: its Python runs, and the names of ours that it mentions are there."""

import importlib
import re
import subprocess
import sys
from collections import Counter

import pytest

from suite.environment import ROOT
from suite.evidence import decided, report
from suite.evidence.cells import runs_of
from suite.presets import PROTOCOLS
from suite.records.tables import Store

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_it_shows_a_monitor_a_scheme_the_tables_and_an_audit():
    assert [word in block for word, block in zip(("Monitor(", "@register", "read_csv", "audit("), BLOCKS, strict=True)] == [True] * 4


@pytest.mark.parametrize("block", BLOCKS, ids=["monitor", "scheme", "tables", "audit"])
def test_its_python_runs(block, tmp_path):
    file = tmp_path / "example.py"
    file.write_text(block)
    done = subprocess.run([sys.executable, "-c", f"import runpy; runpy.run_path({str(file)!r})"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(suite(?:\.\w+)+)", TEXT))))
def test_the_names_it_mentions_are_there(name):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:suite|tests|baselines|paper_figures)/[\w/.]*)`", TEXT))))
def test_the_files_it_mentions_are_there(path):
    assert (ROOT / path).exists()


def test_every_number_of_the_results_is_made_from_the_tables():
    """Up to "Run it", and in "How it dies", prose has only the protocols' numbers, the rules' and those of version 2's story; the rest are
    blocks of `report`."""
    assert report.readme_differs(ROOT / "results") == []
    dies = TEXT.index("## How it dies")
    prose = TEXT[: TEXT.index("## Run it")] + TEXT[dies : TEXT.index("## Known differences")]
    prose = re.sub(r"```.*?```", "", prose, flags=re.S)
    for begin, block in report.blocks(ROOT / "results").items():
        assert begin in prose
        prose = prose.replace(block, "")
    prose = re.sub(r"\]\([^)]*\)|<[^>]*>", "]", prose)  # addresses
    frontier = PROTOCOLS["frontier"]
    rows = Store(ROOT / "results" / "frontier").runs()
    seeds = Counter((row["scheme"], row["depth"], row["lr"]) for row in rows)
    allowed = {
        *map(str, frontier.depths), str(frontier.horizon), f"LR50@{frontier.horizon}", "LR50", "LR50u", str(frontier.width), "1,797", "8",
        str(min(seeds.values())), str(max(seeds.values())), "1000", "95", "0", "2023", "50",
        "2", "3", "0.64", "0.02", "100", "1.5", "66", "1.92",  # versions 2 and 3: weights, and the run that two processors judged apart
        "3,000", "7", "1.6", "12", "128", "16", "64", "80", "200", "1,000", "5",  # anatomy's plan; the monitor's cost; targets
    }  # fmt: skip
    found = set(re.findall(r"LR50u?(?:@\d+)?|\d+(?:,\d{3})*(?:\.\d+)?", prose))
    assert found <= allowed, found - allowed


def test_the_laptops_two_rates_are_those_of_the_rule():
    assert PROTOCOLS["laptop"].lrs == decided.rates(runs_of(ROOT / "results" / "frontier"))
    assert PROTOCOLS["laptop"].unscored == PROTOCOLS["laptop"].lrs[1:]
