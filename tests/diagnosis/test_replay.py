"""The window around a crash, trained again from a checkpoint."""

import json
from dataclasses import replace

import numpy as np
import torch
from trainers import advance, crash_at, loud, state_of, unchanged

from suite.diagnosis.audit_pass import audit_step
from suite.diagnosis.auditor import REPLAY_AFTER, Auditor
from suite.sweep import execute
from suite.training.step import TrainStep
from suite.training.trainer import REPLAY_BEFORE, Trainer
from suite.verdict.signature import of_audit

LONG = {"horizon": 84, "checkpoint_every": 20, "depth": 2}  # 90 steps, checkpoints at 0, 20, ..., 80


def test_a_replayed_window_is_the_run_byte_for_byte(start):
    trainer, rows = start(audit_every=10, **LONG), {}
    auditor = Auditor(trainer)

    def look(step):
        auditor.before_update(step)
        rows[step] = audit_step(trainer, auditor.anchors, step, window=True) if step >= 15 else []

    trainer.train(before_update=look)
    values, seconds = trainer.state.flat.values.clone(), dict(trainer.clock.seconds)
    curve, evals = list(trainer.state.curve), list(trainer.state.evals)
    assert auditor.replay(crash_at(75)) == ""
    first = 75 - REPLAY_BEFORE
    assert (first, trainer.state.step) == (15, 90)
    assert torch.equal(trainer.state.flat.values, values)
    window = [r for r in trainer.state.log["audit"] if r["window"]]
    wanted = [row for step in range(first, 91) for row in rows[step] if row["segment"] == "all" or step >= 75 - 10]
    assert json.dumps(window) == json.dumps(wanted)
    assert {r["step"] for r in trainer.state.log["audit"] if not r["window"]} == {1, 10}  # the rest is in the window
    assert trainer.state.curve == curve and trainer.state.evals == evals
    assert trainer.clock.counts["replay"] == 76 and trainer.clock.seconds["replay"] > 0
    assert {k: v for k, v in trainer.clock.seconds.items() if k != "replay"} == seconds


def test_a_window_ends_30_steps_behind_the_crash_and_keeps_the_segments_where_it_happens(start):
    trainer = start(audit_every=50, horizon=36, checkpoint_every=20, depth=2)
    trainer.train(before_update=Auditor(trainer).before_update)
    assert Auditor(trainer).replay(crash_at(8)) == ""
    window = [r for r in trainer.state.log["audit"] if r["window"]]
    assert {r["step"] for r in window} == set(range(1, 8 + REPLAY_AFTER + 1))
    assert all({r["segment"] for r in window if r["step"] == step} == {"all", "image", "caption"} for step in (1, 38))
    rows = trainer.state.log["audit"]
    assert len({(r["step"], r["layer"], r["site"], r["segment"]) for r in rows}) == len(rows)


def test_a_window_at_full_depth_is_global_only(start):
    trainer = start(audit_every=50, audit_full=("plain",), audit_layers=2, horizon=6, checkpoint_every=20)
    trainer.train(before_update=Auditor(trainer).before_update)
    assert Auditor(trainer).replay(crash_at(5)) == ""
    window = [r for r in trainer.state.log["audit"] if r["window"]]
    assert {r["segment"] for r in window} == {"all"} and {r["layer"] for r in window} == {0, 1, 2}


def test_a_replay_that_differs_is_refused(start):
    trainer = start(audit_every=20, **LONG)
    trainer.train(before_update=Auditor(trainer).before_update)
    original, restore = list(trainer.state.curve), trainer.restore
    step, loss, norm = original[30]
    for last_bit in ((step, np.nextafter(loss, 9), norm), (step, loss, np.nextafter(norm, 9)), None):
        trainer.state.curve[30] = last_bit or original[30]
        if last_bit is None:  # then it is the weights that differ

            def changed(at_most=None):
                found = restore(at_most)
                trainer.state.flat.values[0] += 1e-3
                return found

            trainer.restore = changed
        curve, log = list(trainer.state.curve), json.dumps(trainer.state.log)
        assert "differs" in Auditor(trainer).replay(crash_at(75))
        assert trainer.state.curve == curve and json.dumps(trainer.state.log) == log  # nothing of the window is kept
    trainer.restore = restore
    assert Auditor(trainer).replay(crash_at(75)) == ""


def test_a_replay_without_a_checkpoint_is_refused(start):
    trainer = start(audit_every=10)
    advance(trainer, 10)
    before = state_of(trainer)
    assert "no checkpoint" in Auditor(trainer).replay(crash_at(9))
    assert unchanged(before, state_of(trainer)) and len(trainer.state.curve) == 10


def test_a_real_crash_by_a_learning_rate_without_measure_is_replayed(start):
    trainer = start(audit_every=1, lr=1e30, horizon=100)
    trainer.train(before_update=Auditor(trainer).before_update)
    verdict = trainer.judge()
    assert verdict.outcome == "nonfinite" and verdict.crash_step == len(trainer.state.curve) < 10
    assert Auditor(trainer).replay(verdict) == ""
    assert {r["step"] for r in trainer.state.log["audit"] if r["window"]} == set(range(1, verdict.crash_step + 1))


def test_a_crashed_runs_record(start, data, tmp_path, monkeypatch):
    """From training to the rows: a verdict of collapse at step 75 once the run is long enough."""
    trainer = start(audit_every=10, **LONG)
    monkeypatch.setattr(TrainStep, "loss", loud(TrainStep.loss, {25: 50, 70: 80}))
    monkeypatch.setattr(execute, "cached", lambda name: data)
    alive, judge = crash_at(None), lambda self: crash_at(75) if len(self.state.curve) > 85 else alive
    monkeypatch.setattr(Trainer, "judge", lambda self: replace(judge(self), confirmed=False))
    run = replace(trainer.run, protocol=replace(trainer.run.protocol, fid_samples=0))
    record = execute.execute(run, tmp_path / "results", "digits")
    assert (record["run"]["crash_step"], record["run"]["reason"], record["run"]["last_step"]) == (75, "", 90)
    assert record["run"]["state"] in ("mean_dominated", "mean_free", "other")
    assert {r["step"] for r in record["audit"] if r["window"]} == set(range(15, 91))
    assert record["run"]["mms_signature"] is of_audit(record["audit"], 75, deep_from=1) is not None
    assert {(r["step"], r["recovered"]) for r in record["spikes"]} == {(25, True), (70, False)}
    json.dumps(record)
    phases = {r["phase"]: r["count"] for r in record["throughput"]}
    assert phases["audit"] == 10 and phases["replay"] == 76
