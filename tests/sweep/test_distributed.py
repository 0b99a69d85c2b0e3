"""Two data-parallel processes train the run that one process trains: same global batch, same curve within rounding."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from suite import cli, environment
from suite.environment import ROOT
from suite.records.store import Store, read
from suite.scale import distributed
from suite.sweep.claim import Claim
from suite.sweep.plan import Selection, make_plan

RUN = ["-m", "suite", "run", "--protocol", "smoke", "--schemes", "mvsplit", "--depths", "2"]
# --multi_gpu is Accelerate's word for "start several processes"; it needs no GPU, and --cpu starts one unless there is MPI
ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "2"]
LAUNCH = [*ACCELERATE, "--multi_gpu", "--main_process_port", "0"]

LATE = "import atexit, suite.__main__ as m; atexit.register(print, 'torn down', flush=True); m.main = lambda: 2; m.program()"


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


@pytest.fixture
def held(tmp_path):
    """A run that another sweep has: (its label, a function that asserts that the owner's hold and folder stay)."""
    (run,) = make_plan(Selection("smoke", schemes=("mvsplit",), depths=(2,)))
    claim = Claim(tmp_path, run.run_id)
    assert claim.take()
    (claim.path.parent / "state").write_text("the owner's")

    def stays():
        assert (claim.path.parent / "state").exists() and not (tmp_path / "smoke" / "runs.csv").exists()
        assert not Claim(tmp_path, run.run_id).take()

    return run.label(), stays


def command(capsys, monkeypatch, words, results, **env):
    """(status, lines on standard error) of a run in this process, as a launcher's first."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    status = cli.main([*words[2:], "--results", str(results)])
    return status, capsys.readouterr().err.splitlines()


def test_the_first_process_leaves_a_run_alone_that_is_held(held, tmp_path, capsys, monkeypatch, scratch_registry):
    label, stays = held
    monkeypatch.setattr(distributed, "PartialState", lambda **_: SimpleNamespace(is_main_process=True))
    for name in ("gather_object", "broadcast_object_list"):
        monkeypatch.setattr(distributed, name, lambda values: values)
    status, err = command(capsys, monkeypatch, RUN, tmp_path, WORLD_SIZE="2", RANK="0", ACCELERATE_USE_CPU="true")
    assert status == 2 and err[-1].startswith(f"error: {label}: another") and "holds this run" in err[-1]
    stays()


@pytest.mark.slow
def test_a_run_that_is_held_is_left_alone(held, tmp_path):
    """A sweep (or another launcher) has it: one process says so, none trains, and the owner's hold and folder stay."""
    label, stays = held
    second = launch([*LAUNCH, *RUN], tmp_path, ACCELERATE_USE_CPU="true")
    assert second.returncode != 0
    (line,) = [line for line in second.stderr.splitlines() if "holds this run" in line]
    assert line.startswith(f"error: {label}: another")
    stays()


def test_a_launcher_takes_exactly_one_run(tmp_path, capsys, monkeypatch):
    status, err = command(capsys, monkeypatch, [*RUN[:-2], "--depths", "2,3"], tmp_path / "many", WORLD_SIZE="2", RANK="0")
    assert status == 2
    assert err[-1].startswith("error: under a launcher exactly one run")
    assert not (tmp_path / "many" / "smoke").exists()


@pytest.mark.parametrize(("world", "torn_down"), [("1", True), ("2", False)])
def test_a_launched_process_ends_without_pythons_teardown(tmp_path, world, torn_down):
    """In which gloo's threads abort it now and then, with all its work done."""
    done = launch(["-c", LATE], tmp_path / "none", WORLD_SIZE=world, RANK="0")
    assert done.returncode == 2
    assert ("torn down" in done.stdout) is torn_down


@pytest.mark.parametrize("env, ending", [
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "shards by Accelerate's FSDP2 alone: launch without DeepSpeed"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "set fsdp_version: 2, as in suite/scale/fsdp2.yaml"),
])  # fmt: skip
def test_other_sharding_is_refused(tmp_path, capsys, monkeypatch, env, ending):
    """Accelerate would leave the model whole on every process, and say nothing."""
    status, err = command(capsys, monkeypatch, RUN, tmp_path / "sharded", WORLD_SIZE="2", RANK="0", **env)
    assert status == 2 and err[-1].endswith(ending)
    assert not (tmp_path / "sharded").exists()


def check_said(status, err):
    assert status == 0 and any("0 runs" in line for line in err)
    assert [line for line in err if "accelerate started one process" in line and "--multi_gpu" in line]


@pytest.mark.slow
def test_one_process_in_place_of_two_is_said(tmp_path):
    """`accelerate launch --cpu` without MPI; the selection is empty, so that nothing is trained."""
    done = launch([*ACCELERATE, "--cpu", *RUN, "--shard", "2/2"], tmp_path / "none")
    check_said(done.returncode, done.stderr.splitlines())


def test_what_accelerate_sets_for_one_process_is_recognised(tmp_path, capsys, monkeypatch):
    """As above, with the variables alone."""
    of_accelerate = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "True"}
    check_said(*command(capsys, monkeypatch, [*RUN, "--shard", "2/2"], tmp_path / "none", **of_accelerate))


@pytest.mark.parametrize(("env", "expected"), [
    ({}, 1), ({"WORLD_SIZE": "1"}, 1), ({"WORLD_SIZE": "4"}, 4), ({"ACCELERATE_USE_CPU": "True", "OMPI_COMM_WORLD_SIZE": "2"}, 2),
    ({"ACCELERATE_USE_CPU": "True", "PMI_SIZE": "3"}, 3),
    ({"PMI_SIZE": "3"}, 1),  # srun without Accelerate: a sweep on each rank, which share the work
])
def test_how_many_processes_a_launcher_started(monkeypatch, env, expected):
    for name in ("WORLD_SIZE", "ACCELERATE_USE_CPU", *environment.MPI):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert environment.processes() == expected
