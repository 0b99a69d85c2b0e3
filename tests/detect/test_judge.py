"""Logs from elsewhere: what is found in synthetic curves whose truth is known, in files, and in logs that people posted."""
import json
from pathlib import Path

import numpy as np
import pytest
from curves import C, collapses, foreign, learns, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.detect.judge import LogError, detect, detect_runs, judge_foreign

CASES = Path(__file__).parent / "cases"


def paper_trace():
    """The paper's published trace as described: every 10 steps, flat, a jump at 26430 with an overshoot, flat for good."""
    steps = np.arange(25010, 30511, 10)
    loss = np.random.default_rng(0).uniform(0.774, 0.803, len(steps))
    after = steps >= 26430
    loss[after] = 1.94 + 0.002 * np.random.default_rng(1).standard_normal(after.sum())
    loss[np.isin(steps, [26430, 26440, 26460])] = 1.844, 2.163, 1.945
    return steps, loss


@pytest.mark.parametrize("constant_loss", [None, 1.94])
def test_the_papers_trace(constant_loss):
    steps, loss = paper_trace()
    verdict, _ = judge_foreign(steps, loss, constant_loss=constant_loss)
    assert (verdict.outcome, verdict.crash_step, verdict.confirmed) == ("collapsed", 26430, True)
    early = steps < 26430
    assert judge_foreign(steps[early], loss[early], constant_loss=constant_loss)[0].outcome == "survived"


@pytest.mark.parametrize("offset", range(5))
def test_the_papers_trace_thinned_to_every_50_steps(offset):
    steps, loss = (a[offset::5] for a in paper_trace())
    assert judge_foreign(steps, loss)[0].crash_step == steps[steps >= 26430][0]


@pytest.mark.parametrize("every", [1, 10, 50])
@pytest.mark.parametrize("constant_loss", [None, C])
def test_collapse_in_a_thinned_log(every, constant_loss):
    loss = collapses(20_000, 12_000)[::every]
    verdict = foreign(loss, every=every, constant_loss=constant_loss)
    assert (verdict.outcome, verdict.crash_step, verdict.confirmed) == ("collapsed", 12_000, True)


@pytest.mark.parametrize("behind", [60, 100, 300, 1000])
def test_a_death_at_the_very_end_of_a_long_log(behind):
    verdict = foreign(collapses(200_000, 200_000 - behind))
    assert (verdict.outcome, verdict.crash_step, verdict.confirmed) == ("collapsed", 200_000 - behind, True)


def test_gaps_in_the_steps():
    loss, keep = collapses(4000, 3000), np.random.default_rng(0).random(4000) < 0.3
    steps = np.flatnonzero(keep)
    assert judge_foreign(steps, loss[keep])[0].crash_step == steps[steps >= 3000][0]


@pytest.mark.parametrize("every", [1, 10, 50])
@pytest.mark.parametrize("kind, sizes", [("white", (0.15, 0.4)), ("t2", (0.05, 0.15)), ("ar", (0.05, 0.1))])
def test_noise_from_the_middle_of_training_raises_no_alarm(kind, every, sizes):
    """100 seeds of each, flat at .8 from step 25,010: long, and short. results/detect has 1,000 of more families."""
    for n in (120, 600):
        found = [foreign(0.8 + sizes[i % 2] * curve, start=25_010, every=every).outcome for i, curve in enumerate(noise(kind, 100, n))]
        doubtful = found.count("unknown")
        assert not set(found) & {"collapsed", "degraded"}
        assert doubtful <= (10 if kind == "ar" and n == 120 else 1)  # 120 points of it are some six independent ones


def test_healthy_training_raises_no_alarm():
    for seed in range(200):
        assert foreign(learns(1000, seed)).outcome == "survived"
    assert foreign(10 / np.arange(1, 3000) ** 0.2, every=10).outcome == "survived"


@pytest.mark.parametrize("loss", [np.full(500, 0.8), np.zeros(500), np.full(500, -3.0)])
def test_a_constant_log_is_unknown(loss):
    assert foreign(loss).outcome == "unknown" and foreign(loss, start=25_010).outcome == "unknown"


@pytest.mark.parametrize("n", [0, 1, 2, 19])
def test_a_few_points_are_too_short(n):
    assert foreign(np.ones(n), every=50).outcome == "too_short"
    assert foreign(np.ones(n), every=50, constant_loss=C).outcome == "too_short"


@pytest.mark.parametrize("to, outcome", [(0.25, "survived"), (1.0, "collapsed")])
def test_a_jump_must_be_large_against_the_scatter_too(to, outcome):
    """Noise of sd .1 around .1: s has an sd of .054, so .25 lies 2.8 of them above the level, and 1.0 17."""
    loss = 0.1 + 0.1 * np.random.default_rng(0).standard_normal(1000)
    loss[600:] += to - 0.1
    assert foreign(loss, start=25_010).outcome == outcome


def test_foreign_spike_that_recovers():
    loss = learns(2000)
    loss[1000:1100] = 2.0
    assert (foreign(loss).outcome, foreign(loss).spikes) == ("survived", 1)


def test_foreign_jump_near_the_end_is_unconfirmed():
    loss = collapses(1020, 1000)
    assert (foreign(loss).outcome, foreign(loss).crash_step, foreign(loss).confirmed) == ("collapsed", 1000, False)


def test_foreign_slow_rise_and_recovery_under_way_are_degraded():
    rise = np.concatenate((np.full(2000, 0.8), np.linspace(0.8, 2.0, 1000), np.full(1000, 2.0)))
    recovery = np.concatenate((np.full(1000, 0.8), np.linspace(2.0, 1.3, 1000)))
    for loss, low, high in ((rise, 2300, 2700), (recovery, 1000, 1000)):
        verdict = foreign(loss + 0.03 * np.random.default_rng(0).standard_normal(len(loss)))
        assert verdict.outcome == "degraded" and low <= verdict.crash_step <= high


def test_untrained_needs_the_constant_loss():
    loss = C + 0.05 * np.random.default_rng(0).standard_normal(500)
    assert foreign(loss).outcome == "unknown"
    assert foreign(loss, constant_loss=C).outcome == "untrained"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), at=st.integers(100, 500), more=st.integers(0, 500), scale=st.floats(1e-3, 1e3))
def test_scaling_the_loss_or_adding_plateau_leaves_the_crash_step(seed, at, more, scale):
    loss = collapses(at + 60, at, seed)
    longer = np.concatenate((loss, C + 0.1 * np.random.default_rng(seed).standard_normal(more)))
    for curve in (loss, longer, scale * loss):
        assert (foreign(curve).outcome, foreign(curve).crash_step) == ("collapsed", at)


# --- files --------------------------------------------------------------------------------------------------------------

def write(tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_detect_gives_plain_json(tmp_path):
    rows = "".join(f"{s},{x:.4g},0.1,0.9\n" for s, x in zip(*paper_trace()))
    found = detect(write(tmp_path, "step,loss,g_mean,tcs\n" + rows))
    assert (found["outcome"], found["crash_step"], found["confirmed"]) == ("collapsed", 26430, True)
    assert set(found) == {"outcome", "crash_step", "confirmed", "best_loss", "final_loss", "threshold", "spikes", "steps",
                          "mms_signature", "notes"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_detect_reads_column_order_nan_empty_gradient_and_windows_line_ends(tmp_path):
    rows = "".join(f"{'' if s < 50 else 1},{'NaN' if s == 90 else 1},{s}\r\n" for s in range(95))
    found = detect(write(tmp_path, "\ufeffgrad_norm, loss ,step\r\n" + rows + "\r\n"))
    assert (found["outcome"], found["crash_step"], found["steps"]) == ("nonfinite", 90, 95)
    assert any("finite again" in note for note in found["notes"])
    rows = "".join(f"{s},1,{'inf' if s == 3 else 1}\n" for s in range(10))
    assert detect(write(tmp_path, "step,loss,grad_norm\n" + rows))["crash_step"] == 3


def test_a_last_line_without_its_end_is_noted(tmp_path):
    assert any("cut off" in note for note in detect(write(tmp_path, "step,loss\n1,2\n2,1"))["notes"])
    assert not any("cut off" in note for note in detect(write(tmp_path, "step,loss\n1,2\n2,1\n"))["notes"])


@pytest.mark.parametrize("text, line, words", [
    ("", None, "empty"),
    ("\n\n", None, "empty"),
    ("step,loss\n", None, "no rows"),
    ("tick,loss\n1,2\n", 1, "'step' is not in the header"),
    ("step,loss,loss\n1,2,2\n", 1, "'loss' is twice"),
    ("1,2\n2,2\n", 1, "name the columns step,loss"),
    ("step,loss\n-1,2\n", 2, "whole number from 0"),
    ("step,loss\n1.5,2\n", 2, "whole number from 0"),
    ("step,loss\nnan,2\n", 2, "whole number from 0"),
    ("step,loss\n1e30,2\n", 2, "whole number from 0"),
    ("step,loss\n1,two\n2,2\n", 2, "column loss: 'two' is not a number"),
    ("step,loss\n1,1_0\n", 2, "not a number"),
    ("step,loss\n1,\n2,\n", None, "no row has a loss"),
    ("step,loss,tcs\n1,2,.1\n2,2", 3, "2 cells where the header has 3; it looks cut off: delete it"),
    ("step,loss\n1,2\n2,2,3\n3,2\n", 3, "3 cells where the header has 2; mend it"),
    (b"step,loss\n1,\xff\xfe\n", None, "not a text file"),
])
def test_a_log_that_cannot_be_judged_says_where_and_what_to_do(tmp_path, text, line, words):
    path = write(tmp_path, text)
    with pytest.raises(LogError) as caught:
        detect(path)
    message = str(caught.value)
    assert words in message and "\n" not in message
    assert message.startswith(f"{path}, line {line}" if line else f"{path}:")


def test_a_missing_file_or_a_folder_is_a_log_error(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(LogError, match="cannot be read"):
            detect(path)


def test_constant_loss_must_make_sense(tmp_path):
    with pytest.raises(ValueError, match="constant_loss"):
        detect(write(tmp_path, "step,loss\n1,2\n2,1\n"), constant_loss=float("nan"))


# --- logs that people posted, and our own thinned ---------------------------------------------------------------------------
# Rebuilt from the numbers stated in public threads; the rest of each is filled in. As a sensible reader of the whole log would judge.

DYING = ("collapsed", "degraded")
POSTED = [  # file, constant loss, outcomes, crash step and how far it may be off, spikes
    ("01-nanogpt215-nan", None, ("nonfinite",), 3010, 0, None),
    ("03-litgpt628-jump-12-before", None, DYING, 1152, 1, None),
    ("04-mlx620-jump-2-before", None, ("degraded", "unknown"), 75, 25, None),
    ("07b-hf-zero-loss-no-grad", None, ("nonfinite",), 1020, 0, None),
    ("07c-hf-zero-loss-grad-empty", None, ("nonfinite",), None, 0, None),
    ("08a-megatron-empty-loss", None, ("nonfinite",), None, 0, None),
    ("09-cogvideo451-slow-rise", None, ("degraded",), None, 0, None),
    ("10-bigscience57-3-8-3", None, ("survived",), None, 0, 1),
    ("10-bigscience57-3-8-3", 10.8, ("survived",), None, 0, 1),
    ("11-caffe826-ln2", None, ("collapsed",), 2200, 0, None),
    ("11-caffe826-ln2", 0.6931, ("collapsed",), 2200, 0, None),
    ("12-deit-back", None, ("survived",), None, 0, None),
    ("12-deit-back", 6.908, ("survived",), None, 0, None),
    ("15b-lfov5-every10", None, ("degraded",), 12930, 10, None),
    ("16-xtuner187-gradnan-loss-falls", None, ("nonfinite",), 240, 0, None),
    ("20-bf16-healthy", None, ("survived",), None, 0, None),
    ("21-sit47-spikes", None, ("survived",), None, 0, 3),
    ("23-caffe-back-to-ln10", None, ("collapsed",), 120, 0, None),
    ("23-caffe-back-to-ln10", 2.3026, ("collapsed",), 120, 0, None),
    ("24-own-plain-L200", None, ("collapsed",), 2217, 15, None),
    ("24-own-plain-L200", 2, ("collapsed",), 2217, 15, None),
    ("25-own-laptop-plain-L100", None, ("collapsed",), 66, 1, None),
    ("26-own-plain-L100-511", None, ("collapsed",), 511, 6, None),
    ("28a-pid22-memorised", None, ("survived",), None, 0, None),
    ("28b-zeros-last-digit", None, ("survived",), None, 0, None),
    ("29-u2028-in-a-note", None, ("survived",), None, 0, None),
    ("40-constant-from-row-9", None, ("unknown",), None, 0, None),
    ("40-constant-from-row-9", 0.6931, ("untrained",), None, 0, None),
    ("41-current-steps.jsonl", None, ("nonfinite",), 1810, 0, None),
    ("42-step-is-an-epoch", None, ("nonfinite",), 25, 0, None),
    ("43-iter-restarts-each-epoch.json", None, ("nonfinite",), 150, 0, None),
    ("44-jump-in-the-last-rows", None, ("unknown", "degraded"), 10198, 372, None),
    ("45-falls-at-once", None, ("survived",), None, 0, None),
    ("46-rises-from-a-floor-of-0.json", None, ("unknown",), None, 0, None),
    ("48-loss-column-always-nan", None, ("survived",), None, 0, None),
    ("50-gradient-norm-0.json", None, ("unknown",), None, 0, None),
    ("50-gradient-norm-0.json", 11.93, ("untrained",), None, 0, None),
    ("51-stdout-dicts.log", None, ("nonfinite",), 621, 0, None),
    ("52-stdout-epoch-iter.log", None, ("nonfinite",), 150, 0, None),
    ("53-stdout-fairseq.log", None, ("unknown", "degraded"), 10198, 372, None),
    ("54-stdout-keras.log", None, ("unknown", "degraded"), 65, 1, None),
    ("55-stdout-steps-loss.log", None, ("nonfinite",), 18, 0, None),
    ("56-stdout-dicts-epoch.log", None, ("nonfinite",), 25, 0, None),
]
SAID = {  # words that a note must have
    "16": "finite again later", "40": "exactly 0.6931 in the last 292 rows", "42": "row 25 is at epoch 0.49",
    "43": "at epoch 1, step 150 of it",
    "44": "the last row", "45": "falls at once from", "46": "nothing had been gained", "48": "loss: column 'reduced_train_loss'",
    "50": "the gradient norm is exactly 0 throughout", "51": "read as printed output: 760 lines", "54": "steps are epochs",
    "56": "row 25 is at epoch 0.49",
}


def posted(name):
    return CASES / (name if Path(name).suffix in (".json", ".jsonl", ".log") else f"{name}.csv")


@pytest.mark.parametrize(("name", "constant_loss", "outcomes", "step", "off", "spikes"), POSTED, ids=[f"{c[0]}-{c[1]}" for c in POSTED])
def test_posted_logs(name, constant_loss, outcomes, step, off, spikes):
    found = detect(posted(name), constant_loss)
    assert found["outcome"] in outcomes
    assert step is None or abs(found["crash_step"] - step) <= off
    assert spikes is None or found["spikes"] == spikes
    if constant_loss is None:
        assert any(SAID.get(name[:2], "") in note for note in found["notes"])
    assert not any("leave" in note and "out" in note for note in found["notes"]), "advice that would hide a crash"


def test_posted_logs_of_several_runs_and_of_none():
    for constant_loss in (None, 7.7):
        a, b = detect_runs(CASES / "47-short-but-huge.csv", constant_loss)
        assert (a["outcome"], a["crash_step"], b["outcome"]) == ("collapsed", 21000, "survived")
    with pytest.raises(LogError, match="no other of a loss .*loss scale, grad norm"):
        detect(CASES / "49-loss-scale-is-no-loss.csv")


def test_every_posted_log_is_judged():
    named = {posted(case[0]).name for case in POSTED} | {"47-short-but-huge.csv", "49-loss-scale-is-no-loss.csv"}
    assert {path.name for path in CASES.iterdir() if path.is_file()} == named
