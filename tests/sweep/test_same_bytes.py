"""The same bytes alone, beside others, in any order, after lost rows and half-written records."""

import gzip
import os
import re
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sweeps import SCHEMES, WORDS, left_over, plan, rows, steps_trained, tables, work

from suite import cli, environment
from suite.isolation import catalogue
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.records.checks import check_folder
from suite.records.completeness import check_parts
from suite.records.schema import TABLES
from suite.records.store import content, read, read_rows, table_files, write_rows
from suite.sweep.execute import execute
from suite.sweep.progress import Progress
from suite.sweep.sweep import SweepError
from suite.sweep.work_folder import record_path, save_record, work_folder
from suite.sweep.worker_process import WorkerProcess
from suite.training.step import TrainStep


def curve_of(run) -> str:
    return f"curves/{run.scheme}-L{run.depth}/{run.run_id}.csv.gz"


def test_reference_is_sound(reference):
    folder = reference / "smoke"
    assert check_folder(folder) == [] and left_over(reference) == []
    found = rows(reference)
    assert list(found) and {row["status"] for row in found.values()} == {"done"} and len(found) == 6
    assert {path for path in tables(reference) if path.endswith(".png")} == {
        f"samples/{row['scheme']}-L{row['depth']}-{run_id}.png" for run_id, row in found.items()}
    assert [len(read(folder, "curves", name, depth)) for name in SCHEMES for depth in (2, 3)] == 6 * [14]


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
    assert alone[curve_of(run)] == whole[curve_of(run)]


def test_a_second_call_trains_nothing(reference, capsys, monkeypatch):
    monkeypatch.setattr(WorkerProcess, "start", lambda self: pytest.fail("a worker was started"))
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
    assert cli.main([*WORDS, "--results", str(reference)]) == 0
    assert "6 runs: 6 done before, 0 to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()} == before


def drop_rows(results, gone) -> None:
    """Delete runs from every table, as a user with an editor would."""
    folder = Path(results) / "smoke"
    for table in TABLES.values():
        for path in table_files(folder, table):
            lines = content(path).splitlines(keepends=True)
            kept = [line for line in lines if line.split(b",")[0].decode() not in gone]
            if len(kept) == 1:
                path.unlink()
            elif not table.by_run:
                path.write_bytes(b"".join(kept))


def test_deleted_rows_come_back_byte_for_byte(reference, copy, replayed):
    gone = {run.run_id for run in plan(("rezero",))}
    drop_rows(copy, gone)
    assert tables(copy).keys() < tables(reference).keys() and set(rows(copy)) == set(rows(reference)) - gone
    work(plan(), copy)
    assert set(replayed) == gone and tables(copy) == tables(reference)


@pytest.mark.parametrize("damage", ["gone", "changed", "cut"])
def test_a_lost_or_changed_curve_is_trained_again(reference, copy, replayed, damage):
    (run,) = plan(("plain",), depths=(3,))
    path = copy / "smoke" / curve_of(run)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.write_bytes(gzip.compress(re.sub(rb",7,[0-9.]+,", b",7,1.5,", content(path), count=1)))
    work(plan(), copy)
    assert replayed == [run.run_id] and tables(copy) == tables(reference)


@pytest.mark.parametrize(("file", "lost"), [
    ("evals.csv", "evals of steps 4, 8, 12, ..."), ("quality.csv", "quality of step 14"),
    ("samples/plain-L3-{}.png", "samples/plain-L3-{}.png"), ("audit/plain-L3/{}.csv.gz", "audit of steps 1, 5, 10"), ("probe.csv", "probe"),
])
def test_a_lost_part_is_named_and_trained_again(tmp_path, inline, capsys, monkeypatch, file, lost):
    """Row and curve are there, but what the protocol promises besides is not."""
    monkeypatch.setitem(PROTOCOLS, "smoke", replace(PROTOCOLS["smoke"], audit_every=5, probe=True))
    (run,) = plan(("plain",), depths=(3,))
    work([run], tmp_path)
    whole, folder = tables(tmp_path), tmp_path / "smoke"
    assert check_parts(folder) == [] and f"audit/plain-L3/{run.run_id}.csv.gz" in whole and "probe.csv" in whole
    file, lost = (text.format(run.run_id) for text in (file, lost))
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
    loss = TrainStep.loss
    monkeypatch.setattr(TrainStep, "loss", lambda self, batch: loss(self, batch) * (1 if self.state.step + 1 < end else float("nan")))
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


def test_a_run_that_dies_after_a_score_lacks_nothing(tmp_path, inline, monkeypatch):
    """Its last score is crossed out, the early one stands, and with it the real row that an FID is read against."""
    loss = TrainStep.loss
    monkeypatch.setattr(TrainStep, "loss", lambda self, batch: loss(self, batch) * (1 if self.state.step + 1 < 7 else float("nan")))
    monkeypatch.setitem(PROTOCOLS, "smoke", replace(PROTOCOLS["smoke"], quality_at=(4,)))
    (run,) = plan(("plain",), depths=(3,))
    work([run], tmp_path)
    assert rows(tmp_path)[run.run_id]["outcome"] == "nonfinite"
    scored = read_rows(tmp_path / "smoke" / "quality.csv", TABLES["quality"])
    assert sorted((row["run_id"] == "real", row["fid_status"]) for row in scored) == [(False, "crashed"), (False, "ok"), (True, "ok")]
    assert check_parts(tmp_path / "smoke") == []


def test_a_finished_record_is_used_not_trained_again(reference, tmp_path, inline):
    """The worker had finished; the parent was killed before it put the rows into the tables."""
    run = plan()[0]
    save_record(execute(run, tmp_path, "digits"), tmp_path)
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
def test_a_record_that_is_none_is_passed_over(tmp_path, replayed, text):
    run = plan()[0]
    folder = work_folder(tmp_path, run.run_id)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(text)
    work([run], tmp_path)
    assert replayed == [run.run_id] and rows(tmp_path)[run.run_id]["status"] == "done"


def test_a_record_of_another_version_is_passed_over(reference, tmp_path, replayed, capsys):
    """Left by a call before an update of the suite: it must not stop this sweep and every later one."""
    run = plan()[0]
    record = execute(run, tmp_path, "digits")
    record["run"]["old_column"] = 1
    save_record(record, tmp_path)
    work([run], tmp_path)
    assert replayed == [run.run_id] and rows(tmp_path)[run.run_id] == rows(reference)[run.run_id]
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
    record_path(copy, run.run_id).write_text("{}")
    for name in (f"worker-{dead.pid}-1.log", f"worker-{os.getpid()}-1.log"):
        (folder / name).write_text("x")
    (folder / "0123456789ab").mkdir()  # of a run of another plan
    work(plan(), copy)
    assert left_over(copy) == ["0123456789ab", f"worker-{os.getpid()}-1.log"]


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
    for run in (runs[0], runs[3]):
        alone = tmp_path / run.run_id
        work([run], alone)
        assert rows(alone)[run.run_id] == rows(together)[run.run_id]
        assert tables(alone)[curve_of(run)] == tables(together)[curve_of(run)]
    run = runs[3]
    cut = tmp_path / "cut"
    worker = WorkerProcess(cut, "digits", lambda run: (catalogue.read().get(run.scheme).file, "fp32"))
    with Progress(1) as progress:
        thread = threading.Thread(target=worker.run, args=([run], progress))
        thread.start()
        while not (work_folder(cut, run.run_id) / "step-00000004").exists():
            assert thread.is_alive()
            time.sleep(0.001)
        worker.stop(force=True)
        thread.join()
    work([run], cut)
    assert steps_trained(cut)[0] < 14 and rows(cut)[run.run_id] == rows(together)[run.run_id]
    assert tables(cut)[curve_of(run)] == tables(together)[curve_of(run)]
