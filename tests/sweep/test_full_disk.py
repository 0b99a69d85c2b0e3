"""A full disk stops the sweep with one line; what was finished is kept, and with room it ends as ever."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from sweeps import WORDS, check_half_way, left_over, plan, rows, tables, work

from suite import cli
from suite.environment import ROOT
from suite.records import csvfile, package
from suite.records.checks import check_folder
from suite.sweep.sweep import SweepError
from suite.sweep.worker_process import WorkerProcess

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("nth", [1, 2, 5, 6, 7, 12])
def test_a_full_disk_while_tables_are_written(reference, tmp_path, replayed, monkeypatch, capsys, nth):
    """At whatever file: one line, status 1, what was finished is kept and valid, and the next call ends as ever."""
    words = ["run", "--protocol", "smoke", "--schemes", "plain", "--workers", "1", "--results", str(tmp_path)]
    count, real = [0], csvfile.replace

    def replace(path, data):
        count[0] += 1
        if count[0] >= nth:
            raise FULL
        real(path, data)

    with monkeypatch.context() as patch:
        for module in (csvfile, package):
            patch.setattr(module, "replace", replace)
        assert cli.main(words) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(err) == 1 and f"the disk under {tmp_path} is full" in err[0] and "everything finished is kept" in err[0]
    check_half_way(tmp_path, reference)
    trained = len(replayed)
    assert cli.main(words) == 0 and len(replayed) == 2 and trained >= 1  # nothing is trained twice
    assert {k: v for k, v in rows(tmp_path).items()} == {k: v for k, v in rows(reference).items() if v["scheme"] == "plain"}
    assert check_folder(tmp_path / "smoke") == [] and left_over(tmp_path) == []


def test_a_full_disk_in_a_worker_stops_the_sweep_not_the_run(tmp_path, monkeypatch):
    """It is not the run's fault: no row; and the other worker, in the middle of a run, is not waited for."""
    runs, started, release = plan(("plain",)), threading.Event(), threading.Event()

    def run(self, group, progress):
        if group == runs[:1]:
            started.wait(30)
            return {"event": "failed", "status": "disk", "reason": "OSError: [Errno 28] No space left on device"}
        started.set()
        release.wait(60)
        return {"event": "failed", "status": "oom", "reason": "killed by the test"}

    monkeypatch.setattr(WorkerProcess, "run", run)
    monkeypatch.setattr(WorkerProcess, "stop", lambda self, force=False: release.set() if force else None)
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
