"""What a run of a laptop imports of the product: the parent and the processes that it forks together."""

import os
import re
import subprocess
import sys
from pathlib import Path

from suite.environment import ROOT

MOST = 8500  # lines
WORDS = ["run", "--protocol", "smoke", "--schemes", "plain", "--depths", "2"]  # over at once


def test_a_run_imports_half_of_the_product_and_nothing_of_the_papers_own_size(tmp_path):
    env = os.environ | {"PYTHONPROFILEIMPORTTIME": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "suite", *WORDS, "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                          env=env, timeout=280)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stderr + "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    names = set(re.findall(r"\| +((?:suite|baselines|paper_figures)[\w.]*)$", said, re.MULTILINE))
    names.add("baselines.plain")
    assert {"suite.cli", "suite.training.trainer", "suite.records.schema"} <= names
    assert not [name for name in names if re.match(r"suite\.(scale|evidence|detect)|paper_figures", name)]
    assert sum(len(_file(name).read_text().splitlines()) for name in names) <= MOST


def _file(name: str) -> Path:
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
