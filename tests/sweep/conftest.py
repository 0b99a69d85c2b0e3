"""Fixtures of the sweep tests: the undisturbed sweep that all others are compared with, and workers in this process."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from sweeps import plan, work

from suite import environment
from suite.records.store import picture_path
from suite.sweep.execute import execute, execute_all
from suite.sweep.work_folder import save_record
from suite.sweep.worker_process import WorkerProcess


@contextmanager
def no_commit():
    """Tables are compared over minutes, in which somebody may edit or commit: here no process knows of a commit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_DIR", "/nonexistent")
        environment.commit.cache_clear()
        yield
    environment.commit.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def every_test_without_a_commit():
    with no_commit():
        yield


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The tables of an undisturbed sweep by one worker, in the order of the plan."""
    results = tmp_path_factory.mktemp("reference")
    with no_commit():  # made before the fixture above, which has the narrower scope
        done = work(plan(), results)
    assert (done.finished, done.backlog.total, done.broken) == (6, 6, [])
    return results


@pytest.fixture
def inline(monkeypatch):
    """Workers that train in this process; returns the list of run ids they trained."""
    trained = []

    def run(self, group, progress):
        trained.extend(run.run_id for run in group)
        results = Path(self.job[0])
        execute_all(group, results, "digits")
        return {"event": "done"}

    monkeypatch.setattr(WorkerProcess, "run", run)
    return trained


@pytest.fixture(scope="session")
def known():
    """Run id -> the record of a run and its picture, of all that were trained for `replayed`."""
    return {}


@pytest.fixture
def replayed(monkeypatch, known, tmp_path_factory):
    """As `inline`, but a run of the smoke protocol as it is was trained once, and gives what it then came to."""
    given = []

    def run(self, group, progress):
        (run,), results = group, Path(self.job[0])
        given.append(run.run_id)
        place = picture_path(Path(run.protocol.name), run.scheme, run.depth, run.run_id)
        if run.run_id not in known:
            aside = tmp_path_factory.mktemp("trained")
            known[run.run_id] = json.dumps(execute(run, aside, "digits")), (aside / place).read_bytes()
        text, picture = known[run.run_id]
        (results / place).parent.mkdir(parents=True, exist_ok=True)
        (results / place).write_bytes(picture)
        save_record(json.loads(text), results)
        return {"event": "done"}

    monkeypatch.setattr(WorkerProcess, "run", run)
    return given


@pytest.fixture
def copy(reference, tmp_path):
    """The reference tables, to be spoilt."""
    shutil.copytree(reference, tmp_path / "copy")
    return tmp_path / "copy"
