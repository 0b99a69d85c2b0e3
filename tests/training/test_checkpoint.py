"""Checkpoints: whole or not at all, wherever the kill comes; damaged or foreign ones are passed over with a warning; no pickle."""

import ast
import errno
import hashlib
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
from forked import forked

from suite import files
from suite.environment import ROOT
from suite.training import checkpoint
from suite.training.checkpoint import CheckpointWarning, load, save

RUN = "0123456789ab"


def put(folder, step, run_id=RUN, **more):
    """A checkpoint whose content is its step."""
    save(folder, step, run_id, {"values": torch.full((5000,), float(step)), "curve": torch.ones(0, 3)}, {"rows": [step]}, **more)


def whole(folder, **more):
    """The step of the checkpoint that loads, after checking that its content belongs to it; None if there is none."""
    found = load(folder, RUN, **more)
    if found is None:
        return None
    step, tensors, log = found
    assert torch.equal(tensors["values"], torch.full((5000,), float(step))) and log == {"rows": [step]}
    return step


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def two(tmp_path):
    """A folder with checkpoints of steps 4 and 8."""
    put(tmp_path, 4)
    put(tmp_path, 8)
    return tmp_path


def test_round_trip_is_exact(tmp_path):
    tensors = {
        "floats": torch.tensor([float("nan"), -0.0, 1e-45, float("inf")]), "doubles": torch.tensor([[0.1, 2.0, 3.0]]).double(),
        "empty": torch.ones(0, 2), "scalar": torch.tensor(7.0), "view": torch.arange(12.0).reshape(3, 4).T,
    }
    log = {"audit": [{"rho": float("inf"), "g": 0.1, "what": "é", "none": None}]}
    save(tmp_path, 3, RUN, tensors, log)
    step, back, log_back = load(tmp_path, RUN)
    assert step == 3 and log_back == log and back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert back[key].dtype == value.dtype and back[key].shape == value.shape
        assert back[key].contiguous().numpy().tobytes() == value.contiguous().numpy().tobytes()


def test_nothing_to_load(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(tmp_path, RUN) is None and load(tmp_path / "none", RUN) is None


def test_the_newest_few_and_the_pinned_one_are_kept(tmp_path):
    for step in range(1, 11):
        put(tmp_path, step, keep_from=3)
    kept = [f"step-{step:08d}" for step in (3, *range(11 - checkpoint.KEEP, 11))]
    assert names(tmp_path) == kept and whole(tmp_path) == 10
    assert whole(tmp_path, at_most=5) == 3 and whole(tmp_path, at_most=2) is None


def test_saving_a_step_again_replaces_it(two):
    save(two, 8, RUN, {"values": torch.zeros(3)}, {})
    assert load(two, RUN)[1]["values"].tolist() == [0, 0, 0] and names(two) == ["step-00000004", "step-00000008"]


def rewrite(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    (path / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)


def pickled(path):
    """A pickle that runs code when loaded, under a manifest that vouches for it."""
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "evil"),)

    data = pickle.dumps(Evil())
    (path / "state.safetensors").write_bytes(data)
    rewrite(path, sha256=hashlib.sha256(data).hexdigest())


DAMAGE = {
    "truncated": (lambda p: os.truncate(p / "state.safetensors", 3000), "digest"),
    "empty": (lambda p: os.truncate(p / "state.safetensors", 0), "digest"),
    "bit flipped": (lambda p: flip(p / "state.safetensors"), "digest"),
    "log changed": (lambda p: (p / "log.json").write_text('{"rows": [9]}'), "digest"),
    "no log": (lambda p: (p / "log.json").unlink(), "log.json"),
    "no state": (lambda p: (p / "state.safetensors").unlink(), "state.safetensors"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json"),
    "half a manifest": (lambda p: os.truncate(p / "manifest.json", 20), "passed over"),
    "manifest is a list": (lambda p: (p / "manifest.json").write_text("[1]"), "passed over"),
    "manifest is not text": (lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe"), "passed over"),
    "manifest without digest": (lambda p: rewrite(p, sha256=None), "lacks 'sha256'"),
    "other run": (lambda p: rewrite(p, run_id="ffffffffffff"), "belongs to run ffffffffffff"),
    "other torch": (lambda p: rewrite(p, torch="1.0.0"), "made by torch 1.0.0"),
    "other step": (lambda p: rewrite(p, step=6), "says step 6"),
    "step is text": (lambda p: rewrite(p, step="8"), "passed over"),
    "a pickle": (pickled, "passed over"),
    "a file": (lambda p: (shutil.rmtree(p), p.write_text("x")), "passed over"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_passed_over_for_the_older(two, kind):
    damage, words = DAMAGE[kind]
    damage(two / "step-00000008")
    with pytest.warns(CheckpointWarning, match=words) as caught:
        assert whole(two) == 4
    assert len(caught) == 1 and "step-00000008" in str(caught[0].message) and "\n" not in str(caught[0].message)
    assert not (two / "evil").exists()
    damage(two / "step-00000004")
    with pytest.warns(CheckpointWarning):
        assert whole(two) is None


def test_a_damaged_one_can_be_written_again(two):
    flip(two / "step-00000008" / "state.safetensors")
    put(two, 8)
    assert whole(two) == 8


def test_what_was_passed_over_does_not_crowd_out_the_new(tmp_path):
    """A folder full of checkpoints of another torch version: the run begins again, and its own ones must stay."""
    for step in range(10, 10 + checkpoint.KEEP):
        put(tmp_path, step)
        rewrite(tmp_path / f"step-{step:08d}", torch="1.0.0")
    with pytest.warns(CheckpointWarning):
        assert whole(tmp_path) is None
    put(tmp_path, 2)
    assert whole(tmp_path) == 2
    put(tmp_path, 4)
    assert names(tmp_path) == ["step-00000002", "step-00000004"]


class Killed(BaseException):
    """The process is gone: nothing after this line runs."""


def killed_at(n, monkeypatch):
    """Let the n-th call that touches the disk, and every later one, be the last thing that does not happen."""
    count = [0]

    def guard(function):
        def call(*words, **named):
            count[0] += 1
            if count[0] >= n:
                raise Killed
            return function(*words, **named)

        return call

    for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (os, "open"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, guard(getattr(module, name)))
    real = open

    def half(path, mode="r", **named):
        """Opening for writing is two chances to die: before the file is there, and with half of it written."""
        count[0] += 2
        if count[0] >= n + 1:
            raise Killed
        if count[0] == n:
            with real(path, mode) as file:
                file.write(b"half")
            raise Killed
        return real(path, mode, **named)

    monkeypatch.setattr(files, "open", half, raising=False)
    return count


@pytest.mark.parametrize("again", [False, True], ids=["next", "again"])
def test_killed_at_any_call_leaves_the_old_or_the_new(tmp_path, monkeypatch, again):
    """Dying before each call in turn; `again`: while a step that is already there is written once more."""
    n, seen = 0, set()
    while True:
        n += 1
        folder = tmp_path / str(n)
        put(folder, 4)
        if again:
            put(folder, 8)
        with monkeypatch.context() as patch:
            killed_at(n, patch)
            try:
                put(folder, 8)
                done = True
            except Killed:
                done = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a kill never leaves something that has to be passed over
            found = whole(folder)
        assert found in ({8} if done else {4, 8})
        seen.add(found)
        put(folder, 12)
        assert whole(folder) == 12 and not [name for name in names(folder) if name.startswith(".")]
        if done:
            break
    assert n > 10 and seen == {4, 8}


def test_killed_while_dropping_old_ones(tmp_path, monkeypatch):
    for step in range(1, checkpoint.KEEP + 1):
        put(tmp_path, step)
    real = shutil.rmtree

    def stop(path, **named):
        if Path(path).name == "step-00000001":
            (Path(path) / "manifest.json").unlink()  # half removed
            raise Killed
        real(path, **named)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(Killed):
            put(tmp_path, 99)
    assert whole(tmp_path) == 99


def write_on_and_on(folder, told):
    """Checkpoints, each step said when it is written."""
    for step in itertools.count(1):
        save(folder, step, RUN, {"values": torch.full((5000,), float(step)), "pad": torch.zeros(200_000)}, {"rows": [step]})
        os.write(told, b"%d\n" % step)


def test_killed_for_real_at_random_moments(tmp_path):
    dice = random.Random(0)
    for _ in range(3):
        folder, (heard, told) = tmp_path / "run", os.pipe()
        writer = forked(lambda folder=folder, told=told: write_on_and_on(folder, told))
        os.close(told)
        with open(heard) as said:
            step = int(said.readline())
            time.sleep(dice.uniform(0, 0.1))
            os.kill(writer, signal.SIGKILL)
            step = max([step, *(int(line) for line in said)])
        os.waitpid(writer, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert whole(folder) in (step, step + 1)
        shutil.rmtree(folder)


def test_a_full_disk_leaves_no_half_checkpoint(two, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            put(two, 12)
    assert names(two) == ["step-00000004", "step-00000008"] and whole(two) == 8


def test_nothing_is_unpickled_anywhere():
    """No pickle, no torch.load, no np.load(allow_pickle): safetensors, JSON and CSV are all that is read."""
    found = []
    files = [path for part in ("suite", "baselines", "paper_figures") for path in (ROOT / part).rglob("*.py")]
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            words = {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            if isinstance(node, ast.ImportFrom):
                words.add(node.module or "")
            if words & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}:
                found.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "pd.read_pickle", "joblib.load"):
                found.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                found.append(f"{path}:{node.value.lineno}")
    assert not found
