"""What a reader copies from the README works: its Python runs, and the names of ours that it mentions are there."""

import importlib
import re
import runpy

import pytest

from suite.environment import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_it_shows_a_monitor_a_scheme_the_tables_and_an_audit():
    assert [word in block for word, block in zip(("Monitor(", "@register", "read_csv", "audit("), BLOCKS, strict=True)] == [True] * 4


@pytest.mark.parametrize("block", BLOCKS, ids=["monitor", "scheme", "tables", "audit"])
def test_its_python_runs(block, tmp_path, monkeypatch, scratch_registry):
    (tmp_path / "example.py").write_text(block)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(tmp_path / "example.py"))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(suite(?:\.\w+)+)", TEXT))))
def test_the_names_it_mentions_are_there(name):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:suite|tests|baselines|paper_figures)/[\w/.]*)`", TEXT))))
def test_the_files_it_mentions_are_there(path):
    assert (ROOT / path).exists()
