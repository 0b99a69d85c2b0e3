"""A sweep sent to Slurm. No cluster is at hand: submitit itself is real where it is installed, and talks to stand-ins for Slurm's
commands that start the tasks of an array here; without submitit a small stand-in takes its place."""

import functools
import importlib.util
import os
import stat
import subprocess
import sys
import types
from pathlib import Path

import pytest

from suite import cli
from suite.protocol import Run
from suite.records.store import TABLES, Store, read, read_rows, write_rows
from suite.sweep import slurm as cluster
from suite.sweep.execute import execute
from suite.sweep.plan import Selection, make_plan

SELECTION = ["--protocol", "smoke", "--schemes", "plain", "--executor", "slurm"]
SLURM = {
    "sbatch": """
import os, re, subprocess, sys
text = open(sys.argv[1]).read()
open(os.environ["STAND_IN"] + "/script", "w").write(text)
last = re.search(r"#SBATCH --array=0-(\\d+)", text)
for i in range(int(last[1]) + 1) if last else [None]:
    env = os.environ | {"SLURM_JOB_ID": "41", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"}
    if i is not None:
        env |= {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": str(i)}
    null = subprocess.DEVNULL  # submitit reads this program's output to its end
    subprocess.Popen(["bash", sys.argv[1]], env=env, start_new_session=True, stdin=null, stdout=null, stderr=null)
print("Submitted batch job 41")
""",
    "srun": """
import os, sys
words, files = sys.argv[1:], []
while words[0].startswith("--"):
    flag = words.pop(0)
    if flag in ("--output", "--error"):
        name = words.pop(0).replace("%A", "41").replace("%a", os.environ.get("SLURM_ARRAY_TASK_ID", "")).replace("%j", "41")
        os.dup2(os.open(name.replace("%t", "0"), os.O_WRONLY | os.O_CREAT), 1 if flag == "--output" else 2)
os.execvp(words[0], words)
""",
    "sacct": """
import os
print("JobID|State|NodeList")
for i in range(2):
    print(f"41_{i}|{open(os.environ['STAND_IN'] + '/state').read()}|here")
""",
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Slurm's commands as programs on PATH; returns the folder where `state` says what sacct answers, and `script` what was sent."""
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in SLURM.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(stat.S_IRWXU)
    (folder / "state").write_text("RUNNING")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(folder))
    return folder


class Executor:
    """What the suite uses of submitit.SlurmExecutor; tasks run one after the other when they are submitted."""

    seen: dict = {}
    broken = False  # tasks that die before they write anything

    def __init__(self, folder):
        self.seen.clear()

    def update_parameters(self, **settings):
        self.seen.update(settings)

    def submit_array(self, functions):
        if not self.broken:
            assert all(function().returncode == 0 for function in functions)
        return [types.SimpleNamespace(job_id=f"41_{i}", done=lambda: True) for i in range(len(functions))]


@pytest.fixture
def submitit(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(SlurmExecutor=Executor))
    monkeypatch.setattr(Executor, "broken", False)
    return Executor


def send(capsys, results, *words, settings="jobs=2,time=5"):
    """(exit status, lines on standard error) of a run on Slurm."""
    status = cli.main(["run", *SELECTION, "--slurm", settings, *words, "--results", str(results)])
    return status, capsys.readouterr().err.splitlines()


def check_two_runs(results):
    """Both runs of the selection are in the tables, trained, by two tasks; no table is left with a task."""
    runs = make_plan(Selection("smoke", ("plain",)))
    assert Store(results / "smoke").done_ids() == {run.run_id for run in runs}
    assert read(results / "smoke", "curves").groupby("run_id").size().tolist() == [14, 14]
    assert not list((results / ".work" / "shards").glob("*/smoke"))
    assert sorted(path.name for path in (results / ".work" / "shards").iterdir()) == ["1-of-2", "2-of-2"]


@pytest.mark.slow
def test_tasks_train_their_shares_and_the_tables_are_gathered(tmp_path, capsys, submitit):
    status, err = send(capsys, tmp_path / "r", settings="jobs=2,time=5,partition=gpu,exclude=n1,n2")
    assert status == 0 and err == ["2 runs: 0 done before, 2 to do", "job 41: 2 tasks", "[2/2]"]
    assert submitit.seen == {"job_name": "screambench", "time": 5, "partition": "gpu", "exclude": "n1,n2"}
    check_two_runs(tmp_path / "r")
    submitit.broken = True  # would be noticed
    status, err = send(capsys, tmp_path / "r")
    assert status == 0 and err == ["2 runs: 2 done before, 0 to do"]


def test_a_run_that_lost_its_evals_is_trained_again(tmp_path, capsys, submitit, monkeypatch):
    """Its row still says done; and the same run of the other task, which has all its parts, is left alone."""
    lost, whole = sorted(make_plan(Selection("smoke", ("plain",))), key=lambda run: -run.depth)
    store, trained = Store(tmp_path / "r" / "smoke"), []

    def in_this_process(executor, tasks):
        for task in tasks:
            for run in map(Run.from_json, task["runs"]):
                trained.append(run.run_id)
                Store(Path(task["results"]) / "smoke").add(execute(run, Path(task["results"]), "digits"))
        return [types.SimpleNamespace(job_id="41_0", done=lambda: True)]

    monkeypatch.setattr(cluster, "_submit", in_this_process)
    assert send(capsys, tmp_path / "r")[0] == 0 and store.done_ids() == {lost.run_id, whole.run_id}
    before, table, trained[:] = store.runs(), store.folder / "evals.csv", []
    kept = [row for row in read_rows(table, TABLES["evals"]) if row["run_id"] != lost.run_id]
    write_rows(table, TABLES["evals"], kept)
    assert store.done_ids() == {whole.run_id}
    status, err = send(capsys, tmp_path / "r")
    assert status == 0 and trained == [lost.run_id] and store.done_ids() == {lost.run_id, whole.run_id} and store.runs() == before
    assert f"{lost.label()}: was done but lacks evals of steps 4, 8, 12, ...; it is trained again" in err
    assert "2 runs: 1 done before, 1 to do" in err
    write_rows(table, TABLES["evals"], kept)
    monkeypatch.setattr(cluster, "_submit", lambda executor, tasks: in_this_process(executor, []))  # a task that dies
    status, err = send(capsys, tmp_path / "r")
    assert status == 1 and [line for line in err if line.startswith("broken: ") and "its task ended" in line]


def test_a_task_that_dies_is_a_broken_run(tmp_path, capsys, submitit):
    submitit.broken = True
    status, err = send(capsys, tmp_path / "r")
    assert status == 1 and len([line for line in err if line.startswith("broken: plain") and "its task ended" in line]) == 2


def test_ctrl_c_leaves_the_job_and_says_how_to_look(tmp_path, capsys, submitit, monkeypatch):
    submitit.broken = True

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "_wait", stop)
    status, err = send(capsys, tmp_path / "r")
    assert status == 130 and "squeue -j 41" in err[-1] and "scancel 41" in err[-1]


def test_submitit_and_stand_ins_for_slurm(tmp_path, capsys, slurm, monkeypatch):
    monkeypatch.setattr(cluster, "POLL", 1.0)
    status, err = send(capsys, tmp_path / "r", settings="jobs=2,time=5,partition=gpu,account=me,mem=4GB")
    assert status == 0 and err[-1] == "[2/2]", err
    check_two_runs(tmp_path / "r")
    script = (slurm / "script").read_text().splitlines()
    for line in ("array=0-1%2", "time=5", "partition=gpu", "account=me", "mem=4GB", "job-name=screambench"):
        assert f"#SBATCH --{line}" in script
    assert "[1/1" in (tmp_path / "r" / ".work" / "slurm" / "41_0_0_log.err").read_text()


def test_a_second_call_waits_for_the_first(tmp_path, capsys, slurm):
    logs = tmp_path / "r" / ".work" / "slurm"
    logs.mkdir(parents=True)
    (logs / "41_0_submitted.pkl").write_bytes(b"")
    status, err = send(capsys, tmp_path / "r")
    assert status == 2 and err == ["error: job 41_0 of an earlier call is RUNNING: wait for it, or end it with scancel"]
    assert not (slurm / "script").exists()


@pytest.mark.parametrize(("settings", "words"), [
    ("jobs=2", "minutes a task"), ("time=5", "array tasks"), ("jobs=0,time=5", "array tasks"), ("jobs=2,time=1:00:00", "minutes a task"),
    ("jobs", "not key=value"), ("jobs=2,time=5,qos=", "not key=value"), ("jobs=2,jobs=3,time=5", "given twice"), (",", "not key=value"),
])
def test_settings_that_are_refused(tmp_path, capsys, submitit, settings, words):
    status, err = send(capsys, tmp_path / "r", settings=settings)
    assert status == 2 and len(err) == 1 and err[0].startswith("error: ") and words in err[0]
    assert not (tmp_path / "r").exists()


def test_an_unknown_setting_is_named(tmp_path, capsys, slurm):
    status, err = send(capsys, tmp_path / "r", settings="jobs=2,time=5,partiton=gpu")
    assert status == 2 and len(err) == 1 and "partiton" in err[0]


def test_without_submitit_or_slurm(tmp_path, capsys, monkeypatch):
    if importlib.util.find_spec("submitit"):
        monkeypatch.setenv("PATH", "/nowhere")
        status, err = send(capsys, tmp_path / "r")
        assert status == 2 and len(err) == 1 and "srun" in err[0] and "--executor local" in err[0]
    monkeypatch.setitem(sys.modules, "submitit", None)  # as if not installed
    status, err = send(capsys, tmp_path / "r")
    assert (status, err) == (2, ["error: --executor slurm needs submitit: pip install '.[slurm]' (in the clone)"])


def test_the_tasks_command_needs_nothing_of_the_suite_to_be_unpickled(submitit, monkeypatch):
    """A compute node unpickles it with nothing but the standard library; all else goes through standard input."""
    sent = []
    monkeypatch.setattr(submitit, "submit_array", lambda self, functions: sent.extend(functions))
    cluster._submit(submitit(None), [{"runs": []}])
    assert isinstance(sent[0], functools.partial) and sent[0].func is subprocess.run and sent[0].keywords["input"] == '{"runs": []}'
