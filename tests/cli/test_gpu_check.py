"""tests/gpu/check.sh: what it says without a GPU, and, with a stand-in for Python, that it goes on where it was stopped."""

import os
import re
import subprocess
import sys

import pytest
import torch

from suite.environment import ROOT

SCRIPT = ROOT / "tests" / "gpu" / "check.sh"
PARTS = ("2-step", "3-tests", "4-sweep")
STAND_IN = """#!/bin/sh
if [ "$1" = - ]; then cat >/dev/null; [ -n "$2" ] && echo "card 0: a card"; exit 0; fi
echo "$*" >>"$LOG"
case "$*" in *"$FAILS"*) echo broken; exit 3 ;; esac
"""


def check(folder, **env):
    words = os.environ | {"PYTHON": sys.executable} | env
    done = subprocess.run([str(SCRIPT), str(folder)], env=words, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="would begin to measure")
def test_without_a_gpu_nothing_is_said_to_be_measured(tmp_path):
    code, said = check(tmp_path / "out")
    assert code == 0 and said[0].startswith("1-versions: passed")
    assert said[1:] == [f"{part}: not measured: no CUDA device" for part in PARTS]
    versions = (tmp_path / "out" / "1-versions.txt").read_text()
    assert f"torch {torch.__version__}\n" in versions and "no CUDA device" in versions
    for part in PARTS:
        assert (tmp_path / "out" / f"{part}.txt").read_text() == "not measured: no CUDA device\n"


def test_a_second_call_repeats_what_did_not_pass(tmp_path):
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    env = {"PYTHON": str(python), "LOG": str(log), "FAILS": "cuda and not reference"}
    code, said = check(tmp_path / "out", **env)
    assert code == 1 and said[1] == "2-step: failed with exit status 3 after 0 s"
    assert [line.partition(" in ")[0] for line in said[2:]] == ["3-tests: passed", "4-sweep: passed"]
    assert (tmp_path / "out" / "2-step.txt").read_text().startswith("broken\n")
    assert len(log.read_text().splitlines()) == 3
    code, said = check(tmp_path / "out", **env | {"FAILS": "nothing"})
    assert code == 0 and said[1].startswith("2-step: passed in") and said[2:] == [f"{part}: passed before" for part in PARTS[1:]]
    assert len(log.read_text().splitlines()) == 4


def test_the_limits_add_up_to_eight_minutes_at_most():
    limits = [int(seconds) for seconds in re.findall(r"^part \d-\w+ (\d+) ", SCRIPT.read_text(), re.M)]
    assert len(limits) == 4 and sum(limits[1:]) <= 8 * 60 - 30  # the first takes a second
