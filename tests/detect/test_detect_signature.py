"""`detect` on logs that carry gradients beside the loss: whether a collapse bears the MMS signature, and why not."""

import json
import subprocess
import sys

import numpy as np
import pytest

from suite.detect.judge import LogError, detect
from suite.verdict.signature import SIGNATURE_FALL, SIGNATURE_SPIKE, both, fall, over, rise

CRASH = 600


def log(n=800, crash=CRASH, every=1, spike=50.0, spike_at=0, spike_long=8, fall=1e-5, dies=5, tcs=0.99):
    """Columns of a run that learns and collapses at `crash`; g_mean rises `spike`-fold, Q and K fall to `fall`."""
    steps = np.arange(0, n, every)
    rng = np.random.default_rng(0)
    loss = 0.7 + 1.3 * np.exp(-steps / 40) + 0.05 * rng.standard_normal(len(steps))
    loss[steps >= crash] = 2.0
    event = (steps >= crash + spike_at) & (steps < crash + spike_at + spike_long)
    dead = steps >= crash + dies
    noise = np.exp(0.2 * rng.standard_normal((4, len(steps))))
    return {
        "step": steps, "loss": loss, "grad_norm": np.where(event, 20.0, 1.0) * noise[0],
        "g_mean": np.where(event, 1e-3 * spike, 1e-3) * noise[1], "g_ctr": 2e-3 * noise[1],
        "tcs": np.where(steps >= crash, tcs, 0.1), "q_grad": np.where(dead, 1e-2 * fall, 1e-2) * noise[2],
        "k_grad": np.where(dead, 3e-2 * fall, 3e-2) * noise[3],
    }  # fmt: skip


def write(tmp_path, columns, seldom=()):
    """A CSV of the columns; those of `seldom` are measured only at every tenth step."""
    lines = [",".join(columns)]
    for i in range(len(columns["step"])):
        cells = [f"{columns['step'][i]}"]
        for name in list(columns)[1:]:
            cells.append("" if name in seldom and columns["step"][i] % 10 else f"{columns[name][i]:.6g}")
        lines.append(",".join(cells))
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def found(tmp_path, columns, drop=(), **kwargs):
    verdict = detect(write(tmp_path, {k: v for k, v in columns.items() if k not in drop}, **kwargs))
    assert json.loads(json.dumps(verdict, allow_nan=False)) == verdict
    reasons = [note for note in verdict["notes"] if note.startswith("MMS signature")]
    assert reasons and all("\n" not in note for note in verdict["notes"])
    return verdict, " | ".join(verdict["notes"])


def test_a_collapse_with_spike_and_extinction_carries_the_signature(tmp_path):
    verdict, notes = found(tmp_path, log())
    assert (verdict["outcome"], verdict["crash_step"], verdict["mms_signature"]) == ("collapsed", CRASH, True)
    assert "g_mean rises to" in notes and "q_grad falls to 1/" in notes and "k_grad falls to 1/" in notes
    assert "g_ctr rises to" in notes and "grad_norm rises to" in notes
    assert "tcs is 0.99 after the crash: the mean-dominated state" in notes


@pytest.mark.parametrize("changes, expected, words", [
    ({"spike": 1.0}, False, "g_mean rises to"),
    ({"spike": 2.0}, False, "times its median before only (5 needed)"),
    ({"fall": 0.5}, False, "of its median before only (1/100 needed)"),
    ({"spike": 1.0, "fall": 0.5}, False, "only (5 needed)"),
    ({"spike_at": -9}, True, "g_mean rises"),
    ({"spike_at": -30}, False, "only (5 needed)"),  # 22 steps before the crash: another event
    ({"spike_at": 100}, False, "only (5 needed)"),  # long after it
    ({"dies": 150}, True, "q_grad falls"),  # extinction is for good, so it may come late
    ({"tcs": 0.3}, True, "not the mean-dominated state"),  # the state is no part of the event
])  # fmt: skip
def test_a_dense_log_decides(tmp_path, changes, expected, words):
    verdict, notes = found(tmp_path, log(**changes))
    assert verdict["crash_step"] == CRASH
    assert verdict["mms_signature"] is expected
    assert words in notes


def test_one_of_q_and_k_is_not_enough(tmp_path):
    columns = log()
    columns["k_grad"] = np.full(len(columns["step"]), 1e-2)
    assert found(tmp_path, columns)[0]["mms_signature"] is False


@pytest.mark.parametrize("drop, words", [
    (("g_mean",), "no column g_mean"),
    (("q_grad",), "no column q_grad"),
    (("k_grad", "tcs", "g_ctr", "grad_norm"), "no column k_grad"),
    (("g_mean", "q_grad", "k_grad"), "no column g_mean, q_grad, k_grad"),
    (("g_mean", "q_grad", "k_grad", "tcs", "g_ctr", "grad_norm"), "no column g_mean, q_grad, k_grad"),
])  # fmt: skip
def test_without_a_column_it_cannot_tell(tmp_path, drop, words):
    verdict, notes = found(tmp_path, log(), drop)
    assert verdict["mms_signature"] is None and verdict["crash_step"] == CRASH
    assert words in notes


def test_one_missing_part_is_enough_for_a_no(tmp_path):
    assert found(tmp_path, log(spike=1.0), drop=("q_grad", "k_grad"))[0]["mms_signature"] is False
    assert found(tmp_path, log(fall=0.5), drop=("g_mean", "k_grad"))[0]["mms_signature"] is False


def test_context_columns_change_nothing(tmp_path):
    for changes in ({}, {"spike": 1.0}):
        verdicts = [found(tmp_path, log(**changes), drop)[0] for drop in ((), ("tcs", "g_ctr", "grad_norm"))]
        assert verdicts[0]["mms_signature"] is verdicts[1]["mms_signature"] is (not changes)


def test_no_crash_no_signature(tmp_path):
    verdict, notes = found(tmp_path, log(crash=10**6))
    assert (verdict["outcome"], verdict["mms_signature"]) == ("survived", None)
    assert "no crash to look at" in notes


def test_collapsed_from_the_start_has_nothing_to_compare_with(tmp_path):
    columns = log()
    columns["loss"][:] = 2.0
    verdict = detect(write(tmp_path, columns), constant_loss=2.0)
    assert (verdict["outcome"], verdict["mms_signature"]) == ("untrained", None)
    assert any("no crash to look at" in note for note in verdict["notes"])


def test_a_non_finite_gradient_is_a_crash_without_extinction(tmp_path):
    columns = {k: v[:300].copy() for k, v in log().items()}
    columns["loss"][290:] = np.nan
    verdict, notes = found(tmp_path, columns)
    assert (verdict["outcome"], verdict["crash_step"]) == ("nonfinite", 290)
    assert verdict["mms_signature"] is False  # g_mean is dense up to the crash and did not rise
    assert "q_grad ends 9 steps from the crash" in notes


# --- coarse and cut logs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every, expected", [(1, True), (5, True), (10, True), (50, None)])
def test_a_coarse_log_may_miss_the_spike(tmp_path, every, expected):
    """A spike of eight steps from the crash on; at every 50 steps it falls between two points."""
    verdict, notes = found(tmp_path, log(n=4000, crash=3010, every=every))
    assert verdict["crash_step"] == (3010 if every < 50 else 3050)
    assert verdict["mms_signature"] is expected
    assert expected or "50 steps apart around the crash: a spike of 10 steps may be missed" in notes


@pytest.mark.parametrize("every, expected", [(1, False), (10, False), (11, None), (20, None), (50, None)])
def test_not_seeing_a_spike_says_no_only_where_it_could_be_seen(tmp_path, every, expected):
    crash = 3000 // every * every
    assert found(tmp_path, log(n=4400, crash=crash, every=every, spike=1.0))[0]["mms_signature"] is expected


def test_columns_measured_more_seldom_than_the_loss(tmp_path):
    seldom = ("g_mean", "q_grad", "k_grad", "tcs", "g_ctr")
    verdict, notes = found(tmp_path, log(), seldom=seldom)
    assert verdict["mms_signature"] is True and verdict["crash_step"] == CRASH
    assert "tcs is 0.99" in notes


def test_a_log_that_ends_with_the_crash_has_not_seen_the_extinction(tmp_path):
    for after, expected in ((20, None), (31, False)):
        verdict, notes = found(tmp_path, {k: v[: CRASH + after] for k, v in log(fall=0.5).items()})
        assert verdict["mms_signature"] is expected and verdict["crash_step"] == CRASH
    verdict, notes = found(tmp_path, {k: v[: CRASH + 20] for k, v in log(fall=0.5).items()})
    assert "q_grad ends 19 steps from the crash" in notes
    assert found(tmp_path, {k: v[: CRASH + 20] for k, v in log().items()})[0]["mms_signature"] is True  # dead


def test_columns_that_stop_before_the_crash(tmp_path):
    columns = log()
    for name in ("g_mean", "q_grad", "k_grad", "tcs"):
        columns[name] = np.where(columns["step"] > 400, np.nan, columns[name])
    verdict, notes = found(tmp_path, columns)
    assert verdict["mms_signature"] is None
    assert "g_mean ends before the crash" in notes and "tcs" not in notes
    columns["g_mean"][:] = np.nan
    assert "g_mean was measured at 0 points before the crash" in found(tmp_path, columns)[1]


def test_nan_in_these_columns_is_not_measured_and_no_crash(tmp_path):
    columns = log()
    for name in ("g_mean", "g_ctr", "tcs", "q_grad", "k_grad"):
        columns[name][100:110] = np.nan
        columns[name][CRASH + 50] = np.nan
    assert found(tmp_path, columns)[0]["mms_signature"] is True
    columns["g_mean"][CRASH + 3] = np.inf
    verdict, notes = found(tmp_path, columns)
    assert verdict["mms_signature"] is True and "g_mean rises to inf times" in notes


def test_a_mean_gradient_that_was_zero_before(tmp_path):
    """MV-Split at alpha = 0: exactly 0 throughout is no spike; rising from 0 is one."""
    columns = log()
    columns["g_mean"] = np.zeros(len(columns["step"]))
    assert found(tmp_path, columns)[0]["mms_signature"] is False
    columns["g_mean"][CRASH] = 1e-9
    assert found(tmp_path, columns)[0]["mms_signature"] is True


def test_the_papers_published_trace(tmp_path):
    """The rows of the paper's trace that reference/paper.md prints, every ten steps; K as Q."""
    steps = np.arange(25010, 30511, 10)
    n, rng = len(steps), np.random.default_rng(0)

    def trace(before, values, after):
        out = np.where(steps < 26420, before, after) * np.exp(0.1 * rng.standard_normal(n))
        out[(steps >= 26420) & (steps < 26420 + 10 * len(values))] = values
        return out

    columns = {
        "step": steps, "loss": trace(0.79, [0.791, 1.844, 2.163, 1.945, 1.945], 1.94),
        "grad_norm": trace(0.09, [0.267, 11.06, 9.02, 2.0, 0.763], 0.115),
        "g_mean": trace(6.8e-4, [5.8e-4, 0.1012, 0, 0, 0], 0.0),
        "g_ctr": trace(2.96e-3, [2.88e-3, 1.55e-3, 0, 0, 0], 0.0),
        "tcs": np.clip(trace(0.09, [0.14, 0.99, 1, 1, 1], 1.0), -1, 1),
        "q_grad": trace(6.2e-3, [0.012, 0.130, 1.9e-4, 1e-5, 1e-6], 1e-6),
    }  # fmt: skip
    columns["loss"][steps > 26470] = 1.94
    columns["k_grad"] = columns["q_grad"]
    verdict, notes = found(tmp_path, columns)
    assert (verdict["outcome"], verdict["crash_step"], verdict["mms_signature"]) == ("collapsed", 26430, True)
    assert "g_mean rises to 1" in notes and "mean-dominated" in notes


# --- parts ------------------------------------------------------------------------------------------------------------


def test_rise_and_fall_by_hand():
    steps, values = [1, 2, 3, 90, 95, 100, 110], [1.0, 9.0, 2.0, 4.0, np.nan, 8.0, 0.5]
    assert rise(steps, values, 100) == 4.0 and fall(steps, values, 100) == 4.0
    assert rise(steps, values, 101) == pytest.approx(8 / 3)  # now 90 lies before the event: medians of 1, 2, 4, 9
    assert rise([1, 2], [1.0, 1.0], 100) is None and fall([100], [1.0], 100) is None
    assert rise([1, 100], [0.0, 1.0], 100) == np.inf and rise([1, 100], [0.0, 0.0], 100) == 1.0


def test_three_valued_and():
    assert both(True, True, True) is True
    assert both(True, None, True) is None
    assert both(None, False, None) is False
    assert both(True, False) is False
    assert over(5.0, 5.0) is False and over(5.1, 5.0) is True and over(None, 5.0) is None


def test_our_own_runs_are_judged_by_the_same_numbers():
    assert (SIGNATURE_SPIKE, SIGNATURE_FALL) == (5.0, 100.0)  # `of_audit`, for our own runs, stands in the same file
    from suite.diagnosis.auditor import REPLAY_AFTER

    assert REPLAY_AFTER == 30


# --- files and the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["g_mean", "g_ctr", "tcs", "q_grad", "k_grad"])
def test_mistakes_in_these_columns_are_one_line_with_its_place(tmp_path, name):
    path = tmp_path / "log.csv"
    path.write_text(f"step,loss,{name}\n1,2,0.5\n2,2,high\n")
    with pytest.raises(LogError, match=f"line 3, column {name}: 'high' is not a number"):
        detect(path)
    path.write_text(f"step,loss,{name},{name}\n1,2,0.5,0.5\n")
    with pytest.raises(LogError, match=f"column '{name}' is twice in the header .*keep one {name}"):
        detect(path)


def test_the_command_prints_the_signature_without_loading_torch(tmp_path):
    code = (
        "import sys; from suite.cli import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    path = write(tmp_path, log())
    done = subprocess.run([sys.executable, "-c", code, "detect", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mms_signature"] is True
