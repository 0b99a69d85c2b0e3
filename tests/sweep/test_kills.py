"""Real processes are started and really killed, at any moment; two sweeps share a folder. Nothing is lost or done twice."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import forked
import psutil
import pytest
from sweeps import WORDS, check_half_way, left_over, plan, rows, steps_trained, tables, work

from suite.environment import ROOT
from suite.records.store import Store
from suite.sweep import claim as claim_module
from suite.sweep.broken import identity
from suite.sweep.claim import Claim
from suite.sweep.sweep import Sweep


class Parent:
    """`python -m suite run …` in a process forked from this one: it shares the fork server, whose start is most of a program's."""

    def __init__(self, results, *words):
        self.results, self.begun, self.code, self.said = Path(results), time.monotonic(), None, tempfile.TemporaryFile("w+")
        self.process = psutil.Process(self.start([*WORDS, "--retry-failed", "--results", str(results), *words]))

    def start(self, words) -> int:
        with open(os.devnull, "w") as nowhere:
            return forked.suite(*words, streams={1: nowhere.fileno(), 2: self.said.fileno()})

    def workers(self) -> list[psutil.Process]:
        log = str(self.results / ".work" / f"worker-{self.process.pid}-")
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(file.path.startswith(log) for file in process.open_files()):  # no other process has a worker's log
                    found.append(process)
        return found

    def ended(self) -> bool:
        return self.wait(0) is not None

    def wait(self, seconds) -> int | None:
        """The exit status, None while there is none."""
        if self.code is None:
            with suppress(psutil.TimeoutExpired):
                self.code = self.process.wait(seconds)
        return self.code

    def err(self) -> str:
        self.said.seek(0)
        return self.said.read()

    def wait_for(self, what, seconds=240) -> bool:
        """Until a pattern is in the results folder, or a function says so; False if the process ended or time is up."""
        happened = what if callable(what) else lambda: next(self.results.glob(what), None)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.ended():
            try:
                if happened():
                    return True
            except FileNotFoundError:
                pass  # a folder that went into the tables while it was listed
            time.sleep(0.001)
        return False

    def kill(self) -> None:
        """kill -9 of the parent alone: its workers must notice by themselves, at once."""
        workers = self.workers()
        self.process.kill()
        self.wait(30)
        psutil.wait_procs(workers, timeout=2)
        alive = [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        for p in alive:
            p.kill()
        assert not alive, "workers outlive their parent"

    def kill_worker(self) -> bool:
        for worker in self.workers()[:1]:
            worker.kill()
            return True
        return False

    def interrupt(self) -> bool:
        """Ctrl-C: status 130 within two seconds, a word on how to go on, no worker left. False if it had just ended by itself."""
        while not self.ended() and time.monotonic() < self.begun + 1:
            time.sleep(0.01)  # Python itself must be up before there is anybody to say a word
        workers = self.workers()
        started = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        status, took, err = self.wait(30), time.monotonic() - started, self.err()
        assert "Traceback" not in err
        if status in (0, 1) and "stopped" not in err:
            return False
        assert status == 130 and took < 2, (status, took, err)
        assert "the same command goes on" in err if workers else "stopped" in err
        psutil.wait_procs(workers, timeout=1)
        assert not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        return True

    def finish(self) -> str:
        status, err = self.wait(200), self.err()
        assert status in (0, 1) and "Traceback" not in err, err
        return err


class Program(Parent):
    """A program of its own."""

    def start(self, words) -> int:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "suite", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=self.said,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        return self.child.pid


def test_killed_and_continued(reference, tmp_path):
    """A handful of kills, each at another kind of moment; the marked slow test below has more of them."""
    parent = Parent(tmp_path, "--workers", "1")
    assert parent.wait_for(".work/*/step-00000008")
    parent.kill()  # in the middle of a run
    check_half_way(tmp_path, reference)

    parent = Parent(tmp_path, "--workers", "2")
    assert parent.wait_for(lambda: [*tmp_path.glob(".work/*/record.json"), *tmp_path.glob("smoke/*.csv")])
    parent.kill()  # while a finished run goes into the tables
    check_half_way(tmp_path, reference)

    parent = Parent(tmp_path, "--workers", "1")
    before = {*tmp_path.glob(".work/*/step-*")}
    assert parent.wait_for(lambda: {*tmp_path.glob(".work/*/step-*")} - before) and parent.kill_worker()
    assert parent.wait_for(lambda: [row for row in rows(tmp_path).values() if row["status"] != "done"])
    before = {*tmp_path.glob(".work/*/step-*")}
    assert parent.wait_for(lambda: {*tmp_path.glob(".work/*/step-*")} - before)
    assert parent.interrupt()  # while the next worker is in another run
    check_half_way(tmp_path, reference)
    (broken,) = [row for row in rows(tmp_path).values() if row["status"] != "done"]
    assert broken["status"] == "oom" and "signal 9" in broken["reason"]

    err = Parent(tmp_path, "--workers", "1").finish()
    assert "to do" in err and tables(tmp_path) == tables(reference) and left_over(tmp_path) == []
    assert steps_trained(tmp_path)[0] < 14 and len(steps_trained(tmp_path)) == 6


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0])
def test_thirty_kills(reference, tmp_path, seed):
    """kill -9 of parents and workers, and Ctrl-C, at random and at aimed moments, until there were 30; then all is as ever."""
    dice, kills, rounds, counts = random.Random(seed), 0, 0, {}
    aims = {"at random": None, "checkpoint write": ".work/*/.step-*", "after a checkpoint": ".work/*/step-0000001*",
            "record": ".work/*/record.json", "table write": "smoke/**/.*.tmp", "picture": "smoke/samples/*.part"}
    while kills < 30:
        rounds += 1
        results = tmp_path / str(rounds)
        while kills < 30:
            parent = Program(results, "--workers", dice.choice("12"))
            deaths = 0
            while not parent.ended():
                aim = dice.choice(list(aims))
                if aims[aim] is None:
                    time.sleep(dice.uniform(0, 6))
                elif not parent.wait_for(aims[aim], seconds=8):
                    continue
                if parent.ended():
                    break
                how = dice.choice(["parent", "parent", "worker", "interrupt"] if deaths < 2 else ["parent", "interrupt"])
                if how == "worker":
                    if not parent.kill_worker():
                        continue
                    deaths += 1
                else:
                    parent.kill() if how == "parent" else parent.interrupt()
                    if parent.code in (0, 1):
                        break  # it ended by itself in between: nothing was killed
                kills += 1
                counts[how, aim] = counts.get((how, aim), 0) + 1
                check_half_way(results, reference)
                if kills >= 30:
                    break
            if parent.ended() and parent.code == 0:
                break
            if not parent.ended():
                parent.finish()
        for _ in range(3):
            last = Program(results)
            last.finish()
            if last.code == 0:
                break
        assert tables(results) == tables(reference) and left_over(results) == []
    print(f"\n{kills} kills in {rounds} sweeps: " + ", ".join(f"{n} x {how} ({aim})" for (how, aim), n in sorted(counts.items())))


def test_two_sweeps_at_once_share_the_work(reference, tmp_path):
    """Each run is trained once, both end well, and the tables are as ever."""
    both = [Parent(tmp_path, "--workers", "1") for _ in range(2)]
    said = [parent.finish() for parent in both]
    assert [parent.code for parent in both] == [0, 0]
    trained = [line for err in said for line in err.splitlines() if re.search(r"\[\d/\d,.*too_short", line)]
    assert len(trained) == 6, said
    assert tables(tmp_path) == tables(reference) and left_over(tmp_path) == []


def test_a_run_that_another_sweep_holds_is_waited_for(tmp_path, inline, monkeypatch, capsys):
    monkeypatch.setattr("suite.sweep.backlog.BUSY_WAIT", 0.05)
    runs = plan(("plain",))
    held = Claim(tmp_path, runs[0].run_id)
    assert held.take()
    one = Sweep(runs, tmp_path, workers=2, features="digits", retry=False)
    thread = threading.Thread(target=one.run)
    thread.start()
    end = time.monotonic() + 60
    while one.finished < 1 and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3)
    assert thread.is_alive() and inline == [runs[1].run_id]  # took the other, waits for this one
    held.drop()
    thread.join(60)
    err = capsys.readouterr().err
    assert sorted(inline) == sorted(run.run_id for run in runs) and one.finished == 2
    assert err.count("another sweep holds it") == 1 and left_over(tmp_path) == []


@pytest.mark.parametrize("status", ["done", "oom"])
def test_what_another_sweep_has_done_meanwhile_is_not_done_again(tmp_path, inline, capsys, status):
    """Also where its hold was never seen: it may have begun and finished since this plan was made."""
    (run,) = plan(("plain",), depths=(2,))
    one = Sweep([run], tmp_path, workers=1, features="digits", retry=False)
    if status == "done":
        work([run], tmp_path)
    else:
        Store(tmp_path / "smoke").add({"run": identity(run, [run]) | {"status": "oom", "reason": "too big"}})
    before = tables(tmp_path)
    inline.clear()
    one.run()
    assert inline == [] and one.finished == 1 and tables(tmp_path) == before
    assert [reason for _, reason in one.broken] == ([] if status == "done" else ["oom: too big"])
    assert "another sweep has done it" in capsys.readouterr().err


HOLDER = """
import sys, time
from pathlib import Path
from suite.sweep.claim import Claim
from suite.sweep.broken import identity
claim = Claim(Path(sys.argv[1]), sys.argv[2])
assert claim.take()
print("held", flush=True)
time.sleep(600)
"""


def test_a_lock_whose_owner_died_is_taken_over(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path, "0123456789ab"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert not Claim(tmp_path, "0123456789ab").take()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert Claim(tmp_path, "0123456789ab").take()


def test_a_claim_is_exclusive_and_not_fooled_by_a_cleared_folder(tmp_path, monkeypatch):
    first, second, third = (Claim(tmp_path, "0123456789ab") for _ in range(3))
    assert first.take() and not second.take()
    first.drop(clear=True)
    assert second.take() and second.path.exists() and not third.take()
    second.drop()

    real, late = claim_module.fcntl.flock, []

    def cleared_in_between(file, how):
        """The owner clears the folder between our open and our lock."""
        if not late:
            late.append(1)
            shutil.rmtree(third.path.parent)
        real(file, how)

    monkeypatch.setattr(claim_module.fcntl, "flock", cleared_in_between)
    assert third.take() and third.path.exists() and os.fstat(third.file.fileno()).st_nlink == 1
    assert not Claim(tmp_path, "0123456789ab").take()
