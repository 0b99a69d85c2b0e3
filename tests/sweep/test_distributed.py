"""Two data-parallel processes train the run that one process trains: same global batch, same curve within rounding."""

import os
import subprocess
import sys

import pytest

from suite.environment import ROOT
from suite.records.tables import Store, read
from suite.scale import launcher
from suite.sweep.claim import Claim
from suite.sweep.plan import Selection, make_plan

RUN = ["-m", "suite", "run", "--protocol", "smoke", "--schemes", "mvsplit", "--depths", "2"]
# --multi_gpu is Accelerate's word for "start several processes"; it needs no GPU, and --cpu starts one unless there is MPI
ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "2"]
LAUNCH = [*ACCELERATE, "--multi_gpu", "--main_process_port", "0"]

LATE = "import atexit; from suite.__main__ import program; atexit.register(print, 'torn down', flush=True); program()"


def launch(words, results, **env):
    """Run from the repository; returns the finished process."""
    environ = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "ACCELERATE_USE_CPU")}
    environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | env
    return subprocess.run(
        [sys.executable, *words, "--results", str(results)], cwd=ROOT, env=environ,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_the_same_run(tmp_path):
    together = launch([*LAUNCH, *RUN], tmp_path / "two")
    assert together.returncode == 0, together.stderr[-2000:]
    alone = launch(RUN, tmp_path / "one")
    assert alone.returncode == 0, alone.stderr[-2000:]
    assert "accelerate started" not in together.stderr + alone.stderr
    two, one = (read(tmp_path / side / "smoke", "curves") for side in ("two", "one"))
    assert len(one) == len(two) == 14
    for column in ("loss", "grad_norm"):
        assert two[column].to_numpy() == pytest.approx(one[column].to_numpy(), rel=1e-4)
    assert (two["grad_norm"] > 0.1).all()
    rows = [Store(tmp_path / side / "smoke").runs()[0] for side in ("two", "one")]
    assert [row["processes"] for row in rows] == ["2", "1"]
    assert rows[0]["run_id"] == rows[1]["run_id"]
    assert not (tmp_path / "two" / ".work" / rows[0]["run_id"]).exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "two" / "smoke").rglob("*.*")}
    again = launch([*LAUNCH, *RUN], tmp_path / "two", ACCELERATE_USE_CPU="true")
    assert again.returncode == 0 and {path: path.stat().st_mtime_ns for path in before} == before  # done, so nothing is trained


def test_a_run_that_is_held_is_left_alone(tmp_path):
    """A sweep (or another launcher) has it: one process says so, none trains, and the owner's hold and folder stay."""
    (run,) = make_plan(Selection("smoke", schemes=("mvsplit",), depths=(2,)))
    claim = Claim(tmp_path, run.run_id)
    assert claim.take()
    (claim.path.parent / "state").write_text("the owner's")
    second = launch([*LAUNCH, *RUN], tmp_path, ACCELERATE_USE_CPU="true")
    assert second.returncode != 0
    (line,) = [line for line in second.stderr.splitlines() if "holds this run" in line]
    assert line.startswith(f"error: {run.label()}: another")
    assert (claim.path.parent / "state").exists() and not (tmp_path / "smoke" / "runs.csv").exists()
    assert not Claim(tmp_path, run.run_id).take()


def test_a_launcher_takes_exactly_one_run(tmp_path):
    words = [*RUN[:-2], "--depths", "2,3"]
    done = launch(words, tmp_path / "many", WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: under a launcher exactly one run")
    assert not (tmp_path / "many" / "smoke").exists()


@pytest.mark.parametrize(("world", "torn_down"), [("1", True), ("2", False)])
def test_a_launched_process_ends_without_pythons_teardown(tmp_path, world, torn_down):
    """In which gloo's threads abort it now and then, with all its work done; here the work is a refusal."""
    done = launch(["-c", LATE, *RUN[2:], "--shard", "9/9"], tmp_path / "none", WORLD_SIZE=world, RANK="0")
    assert done.returncode == (0 if world == "1" else 2)
    assert ("torn down" in done.stdout) is torn_down


@pytest.mark.parametrize("env, ending", [
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "shards by Accelerate's FSDP2 alone: launch without DeepSpeed"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "set fsdp_version: 2, as in suite/scale/fsdp2.yaml"),
])  # fmt: skip
def test_other_sharding_is_refused(tmp_path, env, ending):
    """Accelerate would leave the model whole on every process, and say nothing."""
    done = launch(RUN, tmp_path / "sharded", WORLD_SIZE="2", RANK="0", **env)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].endswith(ending)
    assert not (tmp_path / "sharded").exists()


def test_one_process_in_place_of_two_is_said(tmp_path):
    """`accelerate launch --cpu` without MPI; the selection is empty, so that nothing is trained."""
    done = launch([*ACCELERATE, "--cpu", *RUN, "--shard", "2/2"], tmp_path / "none")
    assert done.returncode == 0 and "0 runs" in done.stderr
    assert [line for line in done.stderr.splitlines() if "accelerate started one process" in line and "--multi_gpu" in line]


@pytest.mark.parametrize(("env", "expected"), [
    ({}, 1), ({"WORLD_SIZE": "1"}, 1), ({"WORLD_SIZE": "4"}, 4), ({"ACCELERATE_USE_CPU": "True", "OMPI_COMM_WORLD_SIZE": "2"}, 2),
    ({"ACCELERATE_USE_CPU": "True", "PMI_SIZE": "3"}, 3),
    ({"PMI_SIZE": "3"}, 1),  # srun without Accelerate: a sweep on each rank, which share the work
])
def test_how_many_processes_a_launcher_started(monkeypatch, env, expected):
    for name in ("WORLD_SIZE", "ACCELERATE_USE_CPU", *launcher.MPI):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert launcher.processes() == expected
