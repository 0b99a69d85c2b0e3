"""Two data-parallel processes train the run that one process trains: same global batch, same curve within rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from suite.tables import Store, read

ROOT = Path(__file__).resolve().parent.parent
RUN = ["-m", "suite", "run", "--protocol", "smoke", "--schemes", "mvsplit", "--depths", "2"]
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(words, results, **env):
    """Run from the repository; returns the finished process."""
    environ = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")}
    return subprocess.run(
        [sys.executable, *words, "--results", str(results)], cwd=ROOT, env=environ | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_two_processes_train_the_same_run(tmp_path):
    together = launch([*LAUNCH, *RUN], tmp_path / "two", ACCELERATE_USE_CPU="true")
    assert together.returncode == 0, together.stderr[-2000:]
    alone = launch(RUN, tmp_path / "one")
    assert alone.returncode == 0, alone.stderr[-2000:]
    two, one = (read(tmp_path / side / "smoke", "curves") for side in ("two", "one"))
    assert len(one) == len(two) == 14
    for column in ("loss", "grad_norm"):
        assert two[column].to_numpy() == pytest.approx(one[column].to_numpy(), rel=1e-4)
    assert (two["grad_norm"] > 0.1).all()
    rows = [Store(tmp_path / side / "smoke").runs()[0] for side in ("two", "one")]
    assert [row["processes"] for row in rows] == ["2", "1"]
    assert rows[0]["run_id"] == rows[1]["run_id"]


def test_a_launcher_takes_exactly_one_run(tmp_path):
    words = [*RUN[:-2], "--depths", "2,3"]
    done = launch(words, tmp_path / "many", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: under a launcher exactly one run")
    assert not (tmp_path / "many" / "smoke").exists()
