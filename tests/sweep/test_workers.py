"""A worker that dies, hangs or runs out of memory costs its own run only, and the row says how."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweeps import left_over, plan, rows, steps_trained, work

from suite.environment import ROOT
from suite.records.checks import check_folder
from suite.records.store import read
from suite.sweep import worker_process
from suite.sweep.broken import failure
from suite.sweep.progress import Progress
from suite.sweep.sweep import Sweep
from suite.sweep.work_folder import work_folder
from suite.sweep.worker_process import WorkerProcess
from suite.training.trainer import Trainer

SICK = '''
"""A scheme that dies in the worker, after the first checkpoint, as long as a file named `sick` lies beside this one."""
import os, signal
from pathlib import Path
from suite.registry import register
from suite.residual import Residual

@register("sick")
class Sick(Residual):
    def __init__(self, site, how: str = "kill"):
        super().__init__(site)
        self.how = how

    def merge(self, x_BTD, f_BTD, ctx):
        if x_BTD.shape[0] > 2 and ctx.step > 5 and Path(__file__).with_name("sick").exists():
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "segv":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.how == "memory":
                raise MemoryError("on purpose")
            raise RuntimeError("on\\npurpose")
        return x_BTD + f_BTD
'''


@pytest.mark.slow
def test_a_dying_worker_costs_its_own_run_only(tmp_path):
    plugin, mark = tmp_path / "sick.py", tmp_path / "sick"
    plugin.write_text(SICK)
    mark.touch()
    results = tmp_path / "results"
    hows = ("kill", "segv", "memory", "raise")
    params = [f"--params=sick:how={how}" for how in hows] + ["--params=plain:writers=zero"]
    words = [sys.executable, "-m", "suite", "run", "--protocol", "smoke", "--schemes", "sick,plain", "--depths", "2",
             "--workers", "1", "--plugin", plugin, "--results", results, *params]

    def go(*more):
        done = subprocess.run([*words, *more], cwd=ROOT, capture_output=True, text=True, timeout=200)
        found = {row["params"].removeprefix("how="): row for row in rows(results).values()}
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr, found

    status, err, found = go()
    assert status == 1 and err.count("broken: sick(how=") == 4 and len(found) == 5
    assert {how: row["status"] for how, row in found.items()} == {
        "kill": "oom", "segv": "error", "memory": "oom", "raise": "error", "-": "done"}
    for how, reason in {"kill": "signal 9", "segv": "signal SIGSEGV", "memory": "MemoryError: on purpose",
                        "raise": "RuntimeError: on"}.items():
        assert reason in found[how]["reason"] and found[how]["outcome"] == ""
    trace = (work_folder(results, found["raise"]["run_id"]) / "error.txt").read_text()
    assert "Traceback" in trace and "purpose" in trace
    assert check_folder(results / "smoke") == []
    plain = found["-"]

    status, err, found = go()  # not repeated unasked, and not forgotten
    assert status == 1 and "5 runs: 5 done before, 0 to do" in err and "4 runs broke before; --retry-failed repeats them" in err

    mark.unlink()
    status, err, found = go("--retry-failed")
    assert status == 0 and "5 runs: 1 done before, 4 to do" in err and found["-"] == plain
    assert {row["status"] for row in found.values()} == {"done"} and {row["reason"] for row in found.values()} == {""}
    curves = read(results / "smoke", "curves", "sick")
    steps = list(zip(curves["step"], curves["loss"], curves["grad_norm"], strict=True))
    assert len(steps) == 4 * 14 and len(set(steps)) == 14  # `how` changes no number
    assert steps_trained(results) == [10, 10, 10, 10, 14] and left_over(results) == []  # from the checkpoint at step 4


FILE = "no scheme's file"  # that these workers are started for; they import none


def stand_in(connection, file, results, features):
    """In place of `suite.sweep.worker.main`: does what stands in a file named `script` beside the results."""
    script = (Path(results).parent / "script").read_text()
    exec(script, {"connection": connection, "say": connection.send, "os": os, "sys": sys, "time": time, "signal": signal})


@pytest.fixture
def fake_worker(tmp_path, monkeypatch):
    """Another program as the worker; returns the outcome of one run."""

    def outcome(script) -> dict:
        (tmp_path / "script").write_text(script)
        monkeypatch.setattr(worker_process.worker, "main", stand_in)
        worker = WorkerProcess(tmp_path / "results", "digits", lambda run: (FILE, "fp32"))
        with Progress(1) as progress:
            try:
                return worker.run(plan(("plain",), depths=(2,)), progress)
            finally:
                worker.stop(force=True)
                assert worker.process.exitcode is not None and not worker.log.exists()

    return outcome


READ = "connection.recv()\n"
STEP = "say({'event': 'step', 'step': 3, 'loss': 1.5})\n"
DONE = "say({'event': 'done'})\nconnection.recv()"


@pytest.mark.parametrize(("script", "status", "words"), [
    ("os._exit(3)", "error", "worker died (exit status 3)"),
    ("import no_such_torch", "error", "worker died (exit status 1): ModuleNotFoundError: No module named 'no_such_torch'"),
    (READ + "os._exit(0)", "error", "worker died (exit status 0)"),
    (READ + STEP + "os.kill(os.getpid(), 9)", "oom", "signal 9"),
    (READ + STEP + "os.write(connection.fileno(), b'\\0\\0\\0'); os.kill(os.getpid(), 11)", "error", "signal SIGSEGV"),  # within a word
    (READ + "os.kill(os.getpid(), 40)", "error", "signal 40"),  # a signal without a name
])
def test_how_a_worker_died(fake_worker, script, status, words):
    event = fake_worker(script)
    assert (event["event"], event["status"]) == ("failed", status) and words in event["reason"]


def test_a_worker_that_hangs_is_a_timeout(fake_worker, monkeypatch):
    monkeypatch.setattr(worker_process, "STALL", 3)
    event = fake_worker(READ + STEP + "time.sleep(600)")
    assert event["status"] == "timeout" and "no progress" in event["reason"]


def test_a_worker_that_talks_does_not_hang(fake_worker, monkeypatch):
    monkeypatch.setattr(worker_process, "STALL", 3)
    slow = "".join(STEP + "time.sleep(0.8)\n" for _ in range(6))
    assert fake_worker(READ + slow + DONE) == {"event": "done"}


def test_a_sweep_that_was_stopped_does_not_blame_its_worker(fake_worker, monkeypatch):
    """Ctrl-Z, lunch, fg: the time ran out while this process did not listen, but its worker had spoken."""

    class Late:
        """The pipe of a process that was stopped: its time runs out although a word has come."""

        def __init__(self, pipe):
            self.pipe = pipe

        def __getattr__(self, name):
            return getattr(self.pipe, name)

        def poll(self, seconds=0):
            return self.pipe.poll(60) and not seconds

    fork = worker_process.forks.fork

    def late(*words, **more):
        process, pipe = fork(*words, **more)
        return process, Late(pipe)

    monkeypatch.setattr(worker_process.forks, "fork", late)
    assert fake_worker(READ + STEP + "time.sleep(0.5)\n" + DONE) == {"event": "done"}


def test_a_worker_that_does_not_go_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_process, "FAREWELL", 0.3)
    monkeypatch.setattr(worker_process.worker, "main", stand_in)
    (tmp_path / "script").write_text("time.sleep(600)")
    worker = WorkerProcess(tmp_path / "results", "digits", lambda run: (FILE, "fp32"))
    assert worker.start((FILE, "fp32"))
    process = worker.process
    worker.stop()
    assert process.exitcode == -signal.SIGKILL and not worker.start((FILE, "fp32"))


def test_a_worker_is_of_one_file_and_of_no_run_after_a_broken_one(tmp_path, monkeypatch):
    """Each change of the file, and each failure, is another process; runs of the same file share one."""
    monkeypatch.setattr(worker_process.worker, "main", stand_in)
    (tmp_path / "script").write_text(
        "while True:\n    (text,) = connection.recv()\n"
        "    say({'event': 'failed' if '\"seed\": 2' in text else 'done', 'pid': os.getpid()})\n")
    runs = plan(("plain", "rezero"), depths=(2,), seeds=(0, 1, 2, 3))
    worker = WorkerProcess(tmp_path / "results", "digits", lambda run: (run.scheme, "fp32"))
    with Progress(1) as progress:
        plain, rezero = ([worker.run([run], progress)["pid"] for run in runs if run.scheme == scheme] for scheme in ("plain", "rezero"))
        again = worker.run(runs[:1], progress)["pid"]
        worker.stop()
    assert plain[0] == plain[1] == plain[2] != plain[3] and rezero[0] == rezero[1] == rezero[2] != rezero[3]
    assert len({*plain, *rezero, again}) == 5


def test_notes_of_a_worker_reach_the_person(fake_worker, capsys):
    fake_worker(READ + "say({'event': 'note', 'text': 'checkpoint passed over'})\n" + DONE)
    assert "seed 0: checkpoint passed over" in capsys.readouterr().err


def test_a_worker_stays_at_a_file_and_takes_the_deepest_of_another(tmp_path):
    runs = plan(("plain", "rezero", "mvsplit"))  # of 2 and 3 blocks
    one = Sweep(runs, tmp_path, workers=1, features="digits", retry=False)
    taken, kind = [], None
    while (found := one.backlog.take(one.stop, print, kind)) is not None:
        ((run,), claims) = found
        kind = one.kind_of(run)
        taken.append((run.scheme, run.depth))
        for claim in claims:
            claim.drop()
    assert taken == [(scheme, depth) for scheme in ("plain", "rezero", "mvsplit") for depth in (3, 2)]


def test_a_damaged_checkpoint_is_reported_and_costs_nothing(reference, tmp_path, capfd):
    """A whole worker: the newer checkpoint is damaged, the older one is used, a line says so."""
    (run,) = plan(("plain",), depths=(2,))
    from suite.data.load import cached

    Trainer(run, cached("digits"), work_folder(tmp_path, run.run_id)).train()
    victim = work_folder(tmp_path, run.run_id) / "step-00000012" / "state.safetensors"
    os.truncate(victim, 100)
    work([run], tmp_path)
    assert "step-00000012" in capfd.readouterr().err and steps_trained(tmp_path) == [6]
    assert rows(tmp_path)[run.run_id] == rows(reference)[run.run_id] and left_over(tmp_path) == []


@pytest.mark.parametrize(("error", "status"), [
    (MemoryError(), "oom"), (RuntimeError("CUDA out of memory. Tried to allocate"), "oom"), (RuntimeError("shape mismatch"), "error"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "oom"),
    (OSError(errno.ENOSPC, "No space left on device"), "disk"), (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk"),
    (RuntimeError("InductorError: OSError: [Errno 28] No space left on device"), "disk"), (OSError(errno.EIO, "x"), "error"),
])
def test_status_of_an_error(error, status):
    assert failure(error)["status"] == status
