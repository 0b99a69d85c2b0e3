"""What a reader copies from the README works: its Python runs, and the names of ours that it mentions are there."""

import importlib
import re
import subprocess
import sys

import pytest

from suite.environment import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_it_shows_a_scheme_the_tables_and_an_audit():
    assert [word in block for word, block in zip(("@register", "read_csv", "audit("), BLOCKS, strict=True)] == [True] * 3


@pytest.mark.parametrize("block", BLOCKS, ids=["scheme", "tables", "audit"])
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
