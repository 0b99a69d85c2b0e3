"""Nothing lost, nothing silently different: the same bytes in any order and after any kill, and a death costs one run only.

Real processes are started and really killed. Where only the parent's logic matters, runs are trained in this process instead
(`inline`), or the worker is a shell script (`fake_worker`).
"""

import errno
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from suite import cli, environment, sweep, tablefile
from suite import execute as execute_module
from suite.execute import execute, save_record, work_folder
from suite.plan import Selection, make_plan
from suite.progress import Progress
from suite.protocol import PROTOCOLS, Run
from suite.schema import TABLES
from suite.sweep import Claim, Sweep, SweepError, Worker
from suite.tables import Store, check_folder, read_rows, table_files, write_rows
from suite.train import Trainer
from suite.whole import check_parts
from suite.worker import status_of

ROOT = Path(__file__).resolve().parent.parent
SCHEMES = ("plain", "rezero", "mvsplit")
WORDS = ["run", "--protocol", "smoke", "--schemes", ",".join(SCHEMES)]


def plan(schemes=SCHEMES, **more) -> list[Run]:
    return make_plan(Selection("smoke", schemes=schemes, **more))


def work(runs, results, *, workers=1, retry=False, **more) -> Sweep:
    """A sweep in this process, with real workers unless they are patched."""
    one = Sweep(runs, Path(results), workers=workers, features="digits", plugins=(), retry=retry, **more)
    one.run()
    return one


def tables(results) -> dict[str, bytes]:
    """Every file that must be the same: all but timings and lock files."""
    folder = Path(results) / "smoke"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in ("throughput.csv", ".lock")}


def left_over(results) -> list[str]:
    """What lies in .work besides the cache of compiled code."""
    return sorted(path.name for path in (Path(results) / ".work").iterdir() if path.name != "compile-cache")


def rows(results) -> dict[str, dict]:
    return {row["run_id"]: row for row in Store(Path(results) / "smoke").runs()}


@pytest.fixture(scope="module", autouse=True)
def no_commit():
    """Tables are compared over minutes, in which somebody may edit or commit: here no process knows of a commit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_DIR", "/nonexistent")
        environment.commit.cache_clear()
        yield
    environment.commit.cache_clear()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The tables of an undisturbed sweep by one worker, in the order of the plan."""
    results = tmp_path_factory.mktemp("reference")
    done = work(plan(), results)
    assert (done.finished, done.total, done.broken) == (6, 6, [])
    return results


@pytest.fixture
def inline(monkeypatch):
    """Workers that train in this process; returns the list of run ids they trained."""
    trained = []

    def run(self, run, progress):
        trained.append(run.run_id)
        save_record(execute(run, Path(self.job["results"]), "digits"), work_folder(Path(self.job["results"]), run.run_id) / "record.json")
        return {"event": "done"}

    monkeypatch.setattr(Worker, "run", run)
    return trained


# ---- the same bytes

def test_reference_is_sound(reference):
    folder = reference / "smoke"
    assert check_folder(folder) == [] and left_over(reference) == []
    found = rows(reference)
    assert list(found) and {row["status"] for row in found.values()} == {"done"} and len(found) == 6
    assert {path for path in tables(reference) if path.endswith(".png")} == {
        f"samples/{row['scheme']}-L{row['depth']}-{run_id}.png" for run_id, row in found.items()}
    steps = [row for name in SCHEMES for d in (2, 3) for row in read_rows(folder / f"curves/{name}-L{d}.csv", TABLES["curves"])]
    assert len(steps) == 6 * 14


def test_two_workers_and_another_order_give_the_same_bytes(reference, tmp_path):
    done = work(plan()[::-1], tmp_path, workers=2)
    assert done.finished == 6 and done.workers == 2 and tables(tmp_path) == tables(reference) and left_over(tmp_path) == []


def test_alone_gives_the_same_rows(reference, tmp_path, inline):
    """The last run of the plan by itself: its lines are those of the whole sweep."""
    run = plan()[-1]
    work([run], tmp_path)
    alone, whole = tables(tmp_path), tables(reference)
    for name in ("runs.csv", "evals.csv", "quality.csv"):
        lines = [line for line in whole[name].splitlines() if line.startswith((run.run_id.encode(), b"run_id", b"real"))]
        assert alone[name].splitlines() == lines
    assert alone[f"curves/{run.scheme}-L{run.depth}.csv"] == whole[f"curves/{run.scheme}-L{run.depth}.csv"]


def test_a_second_call_trains_nothing(reference, capsys, monkeypatch):
    monkeypatch.setattr(Worker, "start", lambda self: pytest.fail("a worker was started"))
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
    assert cli.main([*WORDS, "--results", str(reference)]) == 0
    assert "6 runs: 6 done before, 0 to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()} == before


@pytest.fixture
def copy(reference, tmp_path):
    """The reference tables, to be spoilt."""
    shutil.copytree(reference, tmp_path / "copy")
    return tmp_path / "copy"


def drop_rows(results, gone) -> None:
    """Delete runs from every table, as a user with an editor would."""
    folder = Path(results) / "smoke"
    for table in TABLES.values():
        for path in table_files(folder, table):
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if line.split(b",")[0].decode() not in gone]
            path.write_bytes(b"".join(kept)) if len(kept) > 1 else path.unlink()


def test_deleted_rows_come_back_byte_for_byte(reference, copy, inline):
    gone = {run.run_id for run in plan(("rezero",))}
    drop_rows(copy, gone)
    assert tables(copy).keys() < tables(reference).keys() and set(rows(copy)) == set(rows(reference)) - gone
    work(plan(), copy)
    assert set(inline) == gone and tables(copy) == tables(reference)


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_lost_or_changed_curve_is_trained_again(reference, copy, inline, damage):
    path = copy / "smoke" / "curves" / "plain-L3.csv"
    if damage == "gone":
        path.unlink()
    else:
        path.write_text(re.sub(r",7,[0-9.]+,", ",7,1.5,", path.read_text(), count=1))
    work(plan(), copy)
    assert inline == [run.run_id for run in plan(("plain",), depths=(3,))] and tables(copy) == tables(reference)


@pytest.mark.parametrize(("file", "lost"), [
    ("evals.csv", "evals of steps 4, 8, 12, ..."), ("quality.csv", "quality of step 14"), ("samples/{}.png", "samples/{}.png"),
    ("audit/plain-L3.csv", "audit of steps 1, 5, 10"), ("probe.csv", "probe"),
])
def test_a_lost_part_is_named_and_trained_again(tmp_path, inline, capsys, monkeypatch, file, lost):
    """Row and curve are there, but what the protocol promises besides is not."""
    monkeypatch.setitem(PROTOCOLS, "smoke", replace(PROTOCOLS["smoke"], audit_every=5, probe=True))
    (run,) = plan(("plain",), depths=(3,))
    work([run], tmp_path)
    whole, folder = tables(tmp_path), tmp_path / "smoke"
    assert check_parts(folder) == [] and "audit/plain-L3.csv" in whole and "probe.csv" in whole
    file, lost = (text.format(f"plain-L3-{run.run_id}") for text in (file, lost))
    (folder / file).unlink()
    (found,) = check_parts(folder)
    assert f"run {run.run_id} lacks {lost}" in found
    capsys.readouterr()
    words = ["--protocol", "smoke", "--schemes", "plain", "--depths", "3", "--results", str(tmp_path)]
    assert cli.main(["plan", *words]) == 0 and "1 runs, 0 done" in capsys.readouterr().out
    assert cli.main(["run", *words]) == 0 and f"lacks {lost}; it is trained again" in capsys.readouterr().err
    assert inline == [run.run_id] * 2 and tables(tmp_path) == whole and left_over(tmp_path) == []


def test_some_lost_rows_are_a_lost_part(copy):
    """One eval, the real row, a row of a step: not only whole files count; what a run may lack is not missed."""
    folder = copy / "smoke"
    (folder / "throughput.csv").unlink()
    assert check_parts(folder) == []
    for name, drop, words in (("evals", "8", "evals of step 8"), ("quality", "", "the real row of quality")):
        path, table = folder / f"{name}.csv", TABLES[name]
        kept = read_rows(path, table)
        gone = next(row for row in kept if row["step"] == drop)
        write_rows(path, table, [row for row in kept if row is not gone])
        assert check_parts(folder) and all(words in line for line in check_parts(folder))
        write_rows(path, table, kept)
    assert check_parts(folder) == []


@pytest.mark.parametrize("end", [7, 8])
def test_a_run_that_ends_early_lacks_nothing(tmp_path, inline, monkeypatch, end):
    """A loss that is not finite at the step of an eval: its update is withheld, and neither eval nor score is owed."""
    loss = Trainer.loss
    monkeypatch.setattr(Trainer, "loss", lambda self, batch: loss(self, batch) * (1 if self.step + 1 < end else float("nan")))
    monkeypatch.setitem(PROTOCOLS, "smoke", replace(PROTOCOLS["smoke"], audit_every=4))
    (run,) = plan(("plain",), depths=(3,))
    work([run], tmp_path)
    assert rows(tmp_path)[run.run_id]["outcome"] == "nonfinite"
    assert check_parts(tmp_path / "smoke") == []


def test_a_run_that_ends_at_a_quality_step_is_scored_once(tmp_path, inline, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "smoke", replace(PROTOCOLS["smoke"], quality_at=(6, 14)))
    (run,) = plan(("plain",), depths=(3,))
    work([run], tmp_path)
    scored = read_rows(tmp_path / "smoke" / "quality.csv", TABLES["quality"])
    assert sorted(row["step"] for row in scored) == ["", "14", "6"] and check_parts(tmp_path / "smoke") == []


def test_a_finished_record_is_used_not_trained_again(reference, tmp_path, inline):
    """The worker had finished; the parent was killed before it put the rows into the tables."""
    run = plan()[0]
    save_record(execute(run, tmp_path, "digits"), work_folder(tmp_path, run.run_id) / "record.json")
    done = work([run], tmp_path)
    assert inline == [] and done.finished == 1 and set(rows(tmp_path)) == {run.run_id} and left_over(tmp_path) == []


def test_a_half_drawn_picture_does_not_stay(tmp_path, inline):
    run = plan()[0]
    half = tmp_path / "smoke" / "samples" / f"{run.scheme}-L{run.depth}-{run.run_id}.png.123.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"")
    work([run], tmp_path)
    assert [path.suffix for path in half.parent.iterdir()] == [".png"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": 3}', '{"run": {"run_id": "other"}}', '{"run": {'])
def test_a_record_that_is_none_is_passed_over(tmp_path, inline, text):
    run = plan()[0]
    folder = work_folder(tmp_path, run.run_id)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(text)
    work([run], tmp_path)
    assert inline == [run.run_id] and rows(tmp_path)[run.run_id]["status"] == "done"


def test_a_record_of_another_version_is_passed_over(reference, tmp_path, inline, capsys):
    """Left by a call before an update of the suite: it must not stop this sweep and every later one."""
    run = plan()[0]
    record = execute(run, tmp_path, "digits")
    record["run"]["old_column"] = 1
    save_record(record, work_folder(tmp_path, run.run_id) / "record.json")
    work([run], tmp_path)
    assert inline == [run.run_id] and rows(tmp_path)[run.run_id] == rows(reference)[run.run_id]
    assert "does not fit (unknown columns ['old_column']); it is trained again" in capsys.readouterr().err


@pytest.mark.parametrize("spoil", [lambda folder: folder.touch(), lambda folder: (folder / ".lock").mkdir(parents=True)])
def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, inline, spoil):
    spoil(tmp_path / "smoke")
    with pytest.raises(SweepError, match="smoke"):
        work(plan()[:1], tmp_path)
    assert inline == []


def test_a_lost_or_stale_data_package_is_mended(reference, copy):
    """It is written after runs.csv: a kill between the two leaves every run done and the package behind."""
    package = copy / "smoke" / "datapackage.json"
    for spoil in (package.unlink, lambda: package.write_text(package.read_text().replace("evals.csv", "vales.csv"))):
        spoil()
        work(plan(), copy)
        assert tables(copy) == tables(reference)


def test_leftovers_of_killed_sweeps_are_cleared(copy):
    """Even when nothing is left to do: logs of dead parents, folders of runs that are done; not those of others."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    folder = copy / ".work"
    run = plan()[0]
    work_folder(copy, run.run_id).mkdir(parents=True)
    (work_folder(copy, run.run_id) / "record.json").write_text("{}")
    for name in (f"worker-{dead.pid}-1.log", f"worker-{os.getpid()}-1.log"):
        (folder / name).write_text("x")
    (folder / "0123456789ab").mkdir()  # of a run of another plan
    work(plan(), copy)
    assert left_over(copy) == ["0123456789ab", f"worker-{os.getpid()}-1.log"]


# ---- killed at any point

class Parent:
    """`python -m suite run …` as a process of its own."""

    def __init__(self, results, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "suite", *WORDS, "--retry-failed", "--results", results, *words], cwd=ROOT, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # it may be ignored here
        )
        self.results, self.begun = Path(results), time.monotonic()

    def workers(self) -> list[psutil.Process]:
        try:
            return [p for p in psutil.Process(self.process.pid).children() if "suite.worker" in p.cmdline()]
        except psutil.NoSuchProcess:
            return []

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait_for(self, what, seconds=90) -> bool:
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
        self.process.communicate()
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
        _, err = self.process.communicate(timeout=30)
        took, status = time.monotonic() - started, self.process.returncode
        assert "Traceback" not in err
        if status in (0, 1) and "stopped" not in err:
            return False
        assert status == 130 and took < 2, (status, took, err)
        assert "the same command goes on" in err if workers else "stopped" in err
        psutil.wait_procs(workers, timeout=1)
        assert not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        return True

    def finish(self) -> str:
        _, err = self.process.communicate(timeout=200)
        assert self.process.returncode in (0, 1) and "Traceback" not in err, err
        return err


def check_half_way(results, reference) -> None:
    """Whatever was killed when: every table reads, and what is done is done right."""
    if not (Path(results) / "smoke" / "runs.csv").exists():
        return
    truth = rows(reference)
    for run_id, row in rows(results).items():
        assert row == truth[run_id] if row["status"] == "done" else row["status"] in ("oom", "error"), row
    for table in TABLES.values():
        for path in table_files(Path(results) / "smoke", table):
            read_rows(path, table)


def steps_trained(results) -> list[int]:
    """Optimiser steps of each run in the process that finished it; fewer than 14 if it went on from a checkpoint."""
    found: dict[str, int] = {}
    for row in read_rows(Path(results) / "smoke" / "throughput.csv", TABLES["throughput"]):
        if row["phase"] in ("train", "compile"):
            found[row["run_id"]] = found.get(row["run_id"], 0) + int(row["count"])
    return sorted(found.values())


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
            parent = Parent(results, "--workers", dice.choice("12"))
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
                    if parent.process.returncode in (0, 1):
                        break  # it ended by itself in between: nothing was killed
                kills += 1
                counts[how, aim] = counts.get((how, aim), 0) + 1
                check_half_way(results, reference)
                if kills >= 30:
                    break
            if parent.ended() and parent.process.returncode == 0:
                break
            if not parent.ended():
                parent.finish()
        for _ in range(3):
            last = Parent(results)
            last.finish()
            if last.process.returncode == 0:
                break
        assert tables(results) == tables(reference) and left_over(results) == []
    print(f"\n{kills} kills in {rounds} sweeps: " + ", ".join(f"{n} x {how} ({aim})" for (how, aim), n in sorted(counts.items())))


def test_two_sweeps_at_once_share_the_work(reference, tmp_path):
    """Each run is trained once, both end well, and the tables are as ever."""
    both = [Parent(tmp_path, "--workers", "1") for _ in range(2)]
    said = [parent.finish() for parent in both]
    assert [parent.process.returncode for parent in both] == [0, 0]
    trained = [line for err in said for line in err.splitlines() if re.search(r"\[\d/\d,.*too_short", line)]
    assert len(trained) == 6, said
    assert tables(tmp_path) == tables(reference) and left_over(tmp_path) == []


def test_a_run_that_another_sweep_holds_is_waited_for(tmp_path, inline, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "BUSY_WAIT", 0.05)
    runs = plan(("plain",))
    held = Claim(tmp_path, runs[0].run_id)
    assert held.take()
    one = Sweep(runs, tmp_path, workers=2, features="digits", plugins=(), retry=False)
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
    one = Sweep([run], tmp_path, workers=1, features="digits", plugins=(), retry=False)
    if status == "done":
        work([run], tmp_path)
    else:
        Store(tmp_path / "smoke").add({"run": execute_module.identity(run) | {"status": "oom", "reason": "too big"}})
    before = tables(tmp_path)
    inline.clear()
    one.run()
    assert inline == [] and one.finished == 1 and tables(tmp_path) == before
    assert [reason for _, reason in one.broken] == ([] if status == "done" else ["oom: too big"])
    assert "another sweep has done it" in capsys.readouterr().err


HOLDER = """
import sys, time
from pathlib import Path
from suite.sweep import Claim
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

    real, late = sweep.fcntl.flock, []

    def cleared_in_between(file, how):
        """The owner clears the folder between our open and our lock."""
        if not late:
            late.append(1)
            shutil.rmtree(third.path.parent)
        real(file, how)

    monkeypatch.setattr(sweep.fcntl, "flock", cleared_in_between)
    assert third.take() and third.path.exists() and os.fstat(third.file.fileno()).st_nlink == 1
    assert not Claim(tmp_path, "0123456789ab").take()


# ---- workers that die

SICK = '''
"""A scheme that dies in the worker, after the first checkpoint, as long as a file named `sick` lies beside this one."""
import os, signal
import __main__
from pathlib import Path
from suite.registry import register
from suite.residual import Residual

WORKER = getattr(getattr(__main__, "__spec__", None), "name", "") == "suite.worker"

@register("sick")
class Sick(Residual):
    def __init__(self, site, how: str = "kill"):
        super().__init__(site)
        self.how = how

    def merge(self, x_BTD, f_BTD, ctx):
        if WORKER and ctx.step > 5 and Path(__file__).with_name("sick").exists():
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "segv":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.how == "memory":
                raise MemoryError("on purpose")
            raise RuntimeError("on\\npurpose")
        return x_BTD + f_BTD
'''


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
        "kill": "oom", "segv": "error", "memory": "oom", "raise": "error", "": "done"}
    for how, words_ in {"kill": "signal 9", "segv": "signal SIGSEGV", "memory": "MemoryError: on purpose", "raise": "RuntimeError: on"}.items():
        assert words_ in found[how]["reason"] and found[how]["outcome"] == ""
    trace = (work_folder(results, found["raise"]["run_id"]) / "error.txt").read_text()
    assert "Traceback" in trace and "purpose" in trace
    assert check_folder(results / "smoke") == []
    plain = found[""]

    status, err, found = go()  # not repeated unasked, and not forgotten
    assert status == 1 and "5 runs: 5 done before, 0 to do" in err and "4 runs broke before; --retry-failed repeats them" in err

    mark.unlink()
    status, err, found = go("--retry-failed")
    assert status == 0 and "5 runs: 1 done before, 4 to do" in err and found[""] == plain
    assert {row["status"] for row in found.values()} == {"done"} and {row["reason"] for row in found.values()} == {""}
    steps = [line.split(",", 1)[1] for line in (results / "smoke/curves/sick-L2.csv").read_text().splitlines()[1:]]
    assert len(steps) == 4 * 14 and len(set(steps)) == 14  # `how` changes no number
    assert steps_trained(results) == [10, 10, 10, 10, 14] and left_over(results) == []  # from the checkpoint at step 4


@pytest.fixture
def fake_worker(tmp_path, monkeypatch):
    """A shell script instead of Python as the worker; returns the outcome of one run."""

    def outcome(script) -> dict:
        path = tmp_path / "python"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)
        monkeypatch.setattr(sweep.sys, "executable", str(path))
        worker = Worker(tmp_path / "results", "digits", ())
        with Progress(1) as progress:
            try:
                return worker.run(plan(("plain",), depths=(2,))[0], progress)
            finally:
                worker.stop(force=True)
                assert worker.process.returncode is not None and not worker.log.exists()

    return outcome


STEP = 'echo \'{"event": "step", "step": 3, "loss": 1.5}\'\n'


@pytest.mark.parametrize(("script", "status", "words"), [
    ("exit 3", "error", "worker died (exit status 3)"),
    ("echo 'No module named torch' >&2; exit 1", "error", "worker died (exit status 1): No module named torch"),
    ("read x; exit 0", "error", "worker died (exit status 0)"),
    ("read x\n" + STEP + "kill -9 $$", "oom", "signal 9"),
    ("read x\n" + STEP + "printf '{\"event\": \"st'; kill -SEGV $$", "error", "signal SIGSEGV"),  # in the middle of a line
    ("read x; kill -40 $$", "error", "signal 40"),  # a signal without a name
])
def test_how_a_worker_died(fake_worker, script, status, words):
    event = fake_worker(script)
    assert (event["event"], event["status"]) == ("failed", status) and words in event["reason"]


def test_a_worker_that_hangs_is_a_timeout(fake_worker, monkeypatch):
    monkeypatch.setattr(sweep, "STALL", 0.4)
    started = time.monotonic()
    event = fake_worker("read x\n" + STEP + "exec sleep 60")
    assert event["status"] == "timeout" and "no progress" in event["reason"] and time.monotonic() - started < 10


def test_a_worker_that_talks_does_not_hang(fake_worker, monkeypatch):
    monkeypatch.setattr(sweep, "STALL", 1.0)
    slow = "".join(STEP + "sleep 0.3\n" for _ in range(6))
    assert fake_worker("read x\n" + slow + 'echo \'{"event": "done"}\'\nread x') == {"event": "done"}


def test_a_sweep_that_was_stopped_does_not_blame_its_worker(fake_worker, monkeypatch):
    """Ctrl-Z, lunch, fg: the time ran out while this process did not listen, but its worker had spoken."""

    class Late:
        def __init__(self, seconds, function):
            self.ends = function

        def start(self):
            (worker_pipe,) = [cell.cell_contents.stdout for cell in self.ends.__closure__ if hasattr(cell.cell_contents, "stdout")]
            assert select.select([worker_pipe], [], [], 30)[0]
            self.ends()

        def cancel(self):
            pass

    monkeypatch.setattr(sweep.threading, "Timer", Late)
    assert fake_worker("read x\n" + STEP + 'sleep 0.5\necho \'{"event": "done"}\'\nread x') == {"event": "done"}


def test_a_worker_that_does_not_go_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "FAREWELL", 0.3)
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sweep.sys, "executable", str(script))
    worker = Worker(tmp_path, "digits", ())
    process = worker.start()
    worker.stop()
    assert process.returncode == -signal.SIGKILL and worker.start() is None


def test_the_choice_of_kernels_reaches_the_worker(tmp_path):
    """A word that no kernel knows is refused where it is used, in the process that trains; on a CPU the cell is empty."""
    (run,) = plan(("mvsplit",), depths=(2,))
    (broken,) = work([run], tmp_path, kernels="nonsense").broken
    assert broken == (run, "error: ValueError: kernels='nonsense' is not one of auto, off")
    assert work([run], tmp_path, kernels="off", retry=True).broken == [] and rows(tmp_path)[run.run_id]["kernels"] == ""


def test_notes_of_a_worker_reach_the_person(fake_worker, capsys):
    fake_worker('read x\necho \'{"event": "note", "text": "checkpoint passed over"}\'\necho \'{"event": "done"}\'\nread x')
    assert "seed 0: checkpoint passed over" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_reported_and_costs_nothing(reference, tmp_path, capfd):
    """A whole worker: the newer checkpoint is damaged, the older one is used, a line says so."""
    (run,) = plan(("plain",), depths=(2,))
    from suite.execute import load_data
    from suite.train import Trainer

    Trainer(run, load_data("digits"), work_folder(tmp_path, run.run_id)).train()
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
    assert status_of(error) == status


# ---- a full disk

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("nth", [1, 2, 5, 6, 7, 12])
def test_a_full_disk_while_tables_are_written(reference, tmp_path, inline, monkeypatch, capsys, nth):
    """At whatever file: one line, status 1, what was finished is kept and valid, and the next call ends as ever."""
    words = ["run", "--protocol", "smoke", "--schemes", "plain", "--workers", "1", "--results", str(tmp_path)]
    count, real = [0], tablefile._replace

    def replace(path, data):
        count[0] += 1
        if count[0] >= nth:
            raise FULL
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(tablefile, "_replace", replace)
        assert cli.main(words) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(err) == 1 and f"the disk under {tmp_path} is full" in err[0] and "everything finished is kept" in err[0]
    check_half_way(tmp_path, reference)
    trained = len(inline)
    assert cli.main(words) == 0 and len(inline) == 2 and trained >= 1  # nothing is trained twice
    assert {k: v for k, v in rows(tmp_path).items()} == {k: v for k, v in rows(reference).items() if v["scheme"] == "plain"}
    assert check_folder(tmp_path / "smoke") == [] and left_over(tmp_path) == []


def test_a_full_disk_in_a_worker_stops_the_sweep_not_the_run(tmp_path, monkeypatch):
    """It is not the run's fault: no row; and the other worker, in the middle of a run, is not waited for."""
    runs, started, release = plan(("plain",)), threading.Event(), threading.Event()

    def run(self, run, progress):
        if run == runs[0]:
            started.wait(30)
            return {"event": "failed", "status": "disk", "reason": "OSError: [Errno 28] No space left on device"}
        started.set()
        release.wait(60)
        return {"event": "failed", "status": "oom", "reason": "killed by the test"}

    monkeypatch.setattr(Worker, "run", run)
    monkeypatch.setattr(Worker, "stop", lambda self, force=False: release.set() if force else None)
    began = time.monotonic()
    with pytest.raises(SweepError, match="is full; make room and call again"):
        work(runs, tmp_path, workers=2)
    assert time.monotonic() - began < 20 and rows(tmp_path) == {}


@pytest.mark.slow
def test_a_really_full_disk(reference, tmp_path):
    """On a file system of 400 kB: checkpoints fit, the tables of all runs do not; with room everything ends as ever."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        done = subprocess.run([sys.executable, "-m", "suite", *WORDS, "--workers", "1", "--results", place / "r"], cwd=ROOT,
                              capture_output=True, text=True, timeout=200)
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        assert done.returncode == 1 and len(errors) == 1 and "is full; make room and call again" in errors[0], done.stderr
        check_half_way(place / "r", reference)
        shutil.copytree(place / "r", tmp_path / "r")
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    work(plan(), tmp_path / "r")
    assert tables(tmp_path / "r") == tables(reference) and left_over(tmp_path / "r") == []


# ---- compiled blocks

@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_runs_are_the_same_alone_after_others_and_resumed(tmp_path):
    """Compiled blocks are cached by the worker and on disk; neither may change a bit."""
    if not environment.compiler():
        pytest.skip("no C++ compiler")
    runs = [Run(**{**vars(run), "protocol": replace(run.protocol, compiled=True), "compiled": True})
            for run in plan(("plain", "mvsplit"))]
    together = tmp_path / "together"
    work(runs, together)
    for run in (runs[0], runs[3]):  # the first compiles afresh, the other takes what the first sweep compiled
        alone = tmp_path / run.run_id
        if run == runs[3]:
            shutil.copytree(together / ".work" / "compile-cache", alone / ".work" / "compile-cache")
        work([run], alone)
        assert rows(alone)[run.run_id] == rows(together)[run.run_id]
        name = f"curves/{run.scheme}-L{run.depth}.csv"
        assert tables(alone)[name] == tables(together)[name]
    run = runs[3]
    cut = tmp_path / "cut"
    cache = shutil.copytree(together / ".work" / "compile-cache", cut / ".work" / "compile-cache")
    process = subprocess.Popen([sys.executable, "-m", "suite.worker"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(cache)})
    job = {"results": str(cut), "features": "digits", "plugins": [], "kernels": "auto", "run": run.to_json()}
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    while not (work_folder(cut, run.run_id) / "step-00000004").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    work([run], cut)
    assert steps_trained(cut)[0] < 14 and rows(cut)[run.run_id] == rows(together)[run.run_id]
    assert tables(cut)[f"curves/{run.scheme}-L{run.depth}.csv"] == tables(together)[f"curves/{run.scheme}-L{run.depth}.csv"]
