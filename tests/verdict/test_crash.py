"""Crash detection on synthetic curves whose truth is known: exact crash steps, no false alarms, clear errors."""
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.verdict.crash import OUTCOMES, LogError, detect, judge, judge_foreign, short_median

C, WINDOW = 2.0, 50  # the digits' constant loss and the protocols' confirmation window


def learns(n, seed=0, low=0.7, sd=0.1):
    """A healthy curve: from C down to `low` in some 100 steps, with batch noise."""
    return low + (C - low) * np.exp(-np.arange(n) / 40) + sd * np.random.default_rng(seed).standard_normal(n)


def collapses(n, at, seed=0, to=C):
    """`learns`, then at the index `at` a jump to `to` for good."""
    loss = learns(n, seed)
    loss[at:] = to + 0.1 * np.random.default_rng(seed + 1).standard_normal(n - at)
    return loss


def own(loss, **kwargs):
    """The verdict of a run whose horizon lies ahead, unless it is given."""
    return judge(np.arange(len(loss)), loss, **{"constant_loss": C, "window": WINDOW, "horizon": 10**6} | kwargs)


def foreign(loss, start=0, every=1, **kwargs):
    return judge_foreign(start + every * np.arange(len(loss)), loss, **kwargs)[0]


def paper_trace():
    """The paper's published trace as described: every 10 steps, flat, a jump at 26430 with an overshoot, flat for good."""
    steps = np.arange(25010, 30511, 10)
    loss = np.random.default_rng(0).uniform(0.774, 0.803, len(steps))
    after = steps >= 26430
    loss[after] = 1.94 + 0.002 * np.random.default_rng(1).standard_normal(after.sum())
    loss[np.isin(steps, [26430, 26440, 26460])] = 1.844, 2.163, 1.945
    return steps, loss


def noise(kind, rows, n, seed=0):
    """`rows` curves of unit noise: white, heavy-tailed (Student t, 2 degrees), or AR(1) with coefficient .9."""
    rng = np.random.default_rng(seed)
    if kind == "t2":
        return rng.standard_t(2, (rows, n))
    z = rng.standard_normal((rows, n))
    if kind == "ar":
        for i in range(1, n):
            z[:, i] = 0.9 * z[:, i - 1] + np.sqrt(1 - 0.81) * z[:, i]
    return z


# --- the short median ---------------------------------------------------------------------------------------------------

@given(st.lists(st.floats(-100, 100), max_size=30))
def test_short_median_is_the_centred_median_of_five(values):
    expected = [np.median(values[max(0, i - 2):i + 3]) for i in range(len(values))]
    assert short_median(values).tolist() == expected


def test_short_median_keeps_a_step_in_its_place():
    step = np.repeat([1.0, 2.0], [20, 20])
    assert short_median(step).tolist() == step.tolist()


# --- our own runs -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("at", [150, 165, 1234])
@pytest.mark.parametrize("seed", range(5))
def test_jump_to_the_constant_level_is_a_collapse_at_its_exact_step(at, seed):
    verdict = own(collapses(at + 60, at, seed))
    assert (verdict.outcome, verdict.crash_step, verdict.confirmed) == ("collapsed", at, True)
    assert verdict.best_loss < 0.75 and abs(verdict.final_loss - C) < 0.1
    assert verdict.threshold == pytest.approx(verdict.best_loss + (C - verdict.best_loss) / 2)


def test_crash_step_is_a_step_not_an_index():
    assert judge(np.arange(1, 401), collapses(400, 300), constant_loss=C, window=WINDOW, horizon=400).crash_step == 301


@pytest.mark.parametrize("to, outcome", [(1.6, "degraded"), (1.9, "collapsed"), (2.1, "collapsed"), (2.4, "degraded"), (50.0, "degraded")])
def test_a_jump_that_ends_off_the_constant_level_on_either_side_is_degraded(to, outcome):
    for verdict in (own(collapses(400, 300, to=to)), foreign(collapses(400, 300, to=to), constant_loss=C)):
        assert (verdict.outcome, verdict.crash_step) == (outcome, 300)


def test_slow_rise_that_stays_is_degraded_where_it_passes_half_way():
    loss = np.concatenate((learns(1000, sd=0.0), np.linspace(0.7, 1.9, 1000), np.full(200, 1.9)))
    verdict = own(loss)
    assert verdict.outcome == "degraded" and verdict.crash_step == pytest.approx(1000 + 1000 * 0.65 / 1.2, abs=3)


@pytest.mark.parametrize("length, spikes", [(2, 0), (10, 1), (45, 1)])
def test_spike_that_recovers_is_counted_and_survived(length, spikes):
    loss = learns(1000)
    loss[500:500 + length] = 2.5
    verdict = own(loss)
    assert (verdict.outcome, verdict.crash_step, verdict.spikes) == ("survived", None, spikes)


def test_excursion_of_a_full_window_is_a_crash_though_it_recovers_later():
    loss = learns(1000)
    loss[500:500 + WINDOW + 5] = 2.0
    assert own(loss).crash_step == 500


def test_spike_before_a_collapse_does_not_move_the_crash():
    loss = collapses(1000, 800)
    loss[500:510] = 3.0
    verdict = own(loss)
    assert (verdict.crash_step, verdict.spikes) == (800, 1)


def test_never_learning_is_collapsed_at_init_from_200_points_on():
    loss = C + 0.1 * np.random.default_rng(0).standard_normal(1000)
    assert own(loss[:199]).outcome == "too_short"
    for n in (200, 1000):
        assert (own(loss[:n]).outcome, own(loss[:n]).crash_step) == ("collapsed_at_init", 0)
    assert own(np.concatenate((loss, learns(400)))).outcome == "survived"  # it learnt late


def test_never_learning_is_judged_after_twice_the_warmup():
    """Warm-ups of 100 steps and fewer change nothing; a crash is a crash during it."""
    loss = C + 0.1 * np.random.default_rng(0).standard_normal(3000)
    for n in (199, 200, 201, 1000):
        assert own(loss[:n], warmup=100) == own(loss[:n], warmup=0) == own(loss[:n])
    assert own(loss[:1999], warmup=1000).outcome == "too_short"
    assert own(loss[:2000], warmup=1000).outcome == "collapsed_at_init"
    dies = collapses(600, 400)
    assert own(dies, warmup=1000) == own(dies) and own(dies).outcome == "collapsed"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1, 7, 300])
def test_first_non_finite_loss_or_gradient(value, at):
    healthy, broken = learns(400), np.ones(400)
    broken[at] = value
    loss = np.where(np.isfinite(broken), healthy, broken)
    for verdict in (own(loss), own(healthy, grad_norm=broken)):
        assert (verdict.outcome, verdict.crash_step, verdict.confirmed) == ("nonfinite", at, True)


def test_whatever_came_first_names_the_crash():
    loss = collapses(600, 300)
    loss[500] = np.nan
    assert own(loss).outcome == "collapsed"
    loss[320] = np.nan  # before the collapse was confirmed
    assert (own(loss).outcome, own(loss).crash_step) == ("nonfinite", 320)


def test_confirmed_collapse_before_200_steps_counts():
    loss = collapses(130, 65)
    loss[30:65] = 0.9
    assert (own(loss).outcome, own(loss).crash_step) == ("collapsed", 65)


def test_jump_just_before_the_end_is_unconfirmed():
    loss = collapses(420, 400)
    assert (own(loss).outcome, own(loss).crash_step, own(loss).confirmed) == ("collapsed", 400, False)
    assert own(loss[:404]).outcome == "survived"  # four points are a spike until more is known


@pytest.mark.parametrize("at, outcome", [(500, "collapsed"), (501, "survived")])
def test_events_that_start_after_the_horizon_do_not_count(at, outcome):
    assert own(collapses(500 + WINDOW, at), horizon=500).outcome == outcome
    loss = learns(600)
    loss[at] = np.nan
    assert own(loss, horizon=500).outcome == ("nonfinite" if at == 500 else "survived")


@pytest.mark.parametrize("late", ["collapse", "nan", "nothing"])
def test_an_event_behind_the_horizon_is_told_and_changes_nothing_else(late):
    loss = collapses(500 + WINDOW, 510) if late == "collapse" else learns(500 + WINDOW)
    if late == "nan":
        loss[510] = np.nan
    verdict, alone = own(loss, horizon=500), own(loss[:501], horizon=500)
    assert verdict.late_step == (None if late == "nothing" else 510) and alone.late_step is None
    assert (verdict.outcome, verdict.final_loss) == ("survived", alone.final_loss)
    assert verdict.best_loss == pytest.approx(alone.best_loss, abs=0.05)
    assert verdict.final_loss == np.median(loss[501 - WINDOW:501])


@pytest.mark.parametrize("level, heldout, outcome", [
    (1.5, None, "stuck"), (1.5, 1.5, "stuck"), (1.5, 1.1, "survived"), (1.1, 1.5, "survived"), (1.1, None, "survived"),
    (1.9, 1.9, "collapsed_at_init"),
])
def test_a_run_that_ends_the_horizon_without_having_trained_is_stuck(level, heldout, outcome):
    """0.6 c is 1.2; the run has come clearly below c (1.6) and lives on. A run under way is not judged so."""
    loss = level + 0.02 * np.random.default_rng(0).standard_normal(450)
    assert own(loss, horizon=400, heldout_loss=heldout).outcome == outcome
    assert own(loss[:400], horizon=400, heldout_loss=heldout).outcome == outcome.replace("stuck", "survived")
    assert foreign(loss, constant_loss=C).outcome == outcome.replace("stuck", "survived")  # its horizon is not known


def test_in_a_complete_log_an_excursion_that_came_back_is_a_spike_however_long():
    loss = learns(1000)
    loss[500:700] = 2.0
    assert own(loss).crash_step == 500  # a run of ours was stopped there
    verdict = foreign(loss, constant_loss=C)
    assert (verdict.outcome, verdict.spikes) == ("survived", 1)


def test_confirmation_takes_exactly_the_window():
    loss = collapses(600, 300)
    assert not own(loss[:300 + WINDOW - 1]).confirmed
    assert own(loss[:300 + WINDOW]).confirmed


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), at=st.integers(150, 500), to=st.floats(1.3, 4.0), tail=st.integers(0, 300),
       end=st.floats(0.5, 4.0))
def test_a_confirmed_verdict_never_changes_as_the_run_goes_on(seed, at, to, tail, end):
    start = collapses(at + WINDOW, at, seed, to)
    early, late = own(start), own(np.concatenate((start, np.full(tail, end))))
    if early.confirmed and early.outcome in ("collapsed", "degraded"):
        assert (late.outcome, late.crash_step, late.threshold) == (early.outcome, early.crash_step, early.threshold)


def test_a_dip_across_the_end_of_the_window_does_not_undo_the_confirmation():
    loss = np.concatenate((learns(300, sd=0.0), np.full(WINDOW, C), np.full(100, 0.7)))
    loss[300 + WINDOW - 2] = 0.7
    assert own(loss[:300 + WINDOW]).confirmed and own(loss).crash_step == 300


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 5), st.just(float("nan"))), max_size=80), st.integers(1, 8), st.integers(1, 30))
def test_any_curve_gets_a_verdict_that_makes_sense(values, every, repeat):
    loss = np.repeat(np.array(values, float), repeat)
    steps = 7 + every * np.arange(len(loss))
    for verdict in (judge(steps, loss, constant_loss=C, window=WINDOW, horizon=60), judge_foreign(steps, loss)[0],
                    judge_foreign(steps, loss, constant_loss=C)[0]):
        assert verdict.outcome in OUTCOMES and verdict.steps == len(loss)
        assert (verdict.crash_step is None) == (verdict.outcome in ("survived", "stuck", "too_short"))
        assert verdict.crash_step is None or verdict.crash_step in steps
        json.dumps(vars(verdict), allow_nan=False)


@pytest.mark.parametrize("kind, sd", [("white", 0.15), ("t2", 0.05), ("ar", 0.05)])
def test_own_noise_raises_no_alarm(kind, sd):
    """1,000 seeds each: a trained run with noise survives, one at the constant level is collapsed_at_init.

    Our batches are drawn independently at each step, so white noise is the real case; at sd .1, AR(1) noise around C does
    get clearly below it for ten points now and then.
    """
    curves = sd * noise(kind, 1000, 1000)
    steps = np.arange(1000)
    trained = 0.75 + (C - 0.75) * np.exp(-steps / 40)
    assert {own(trained + curve).outcome for curve in curves} == {"survived"}
    assert {own(C + curve).outcome for curve in curves} == {"collapsed_at_init"}


@pytest.mark.parametrize("change", [{"steps": [1, 1]}, {"steps": [2, 1]}, {"steps": [1]}, {"constant_loss": np.nan},
                                    {"constant_loss": 0}, {"window": 4}, {"grad_norm": [1]}])
def test_senseless_arguments_are_refused(change):
    with pytest.raises(ValueError):
        judge(**{"steps": [1, 2], "loss": [1, 2], "constant_loss": C, "window": WINDOW, "horizon": 2} | change)


# --- logs from elsewhere ------------------------------------------------------------------------------------------------

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


def test_gaps_in_the_steps():
    loss, keep = collapses(4000, 3000), np.random.default_rng(0).random(4000) < 0.3
    steps = np.flatnonzero(keep)
    assert judge_foreign(steps, loss[keep])[0].crash_step == steps[steps >= 3000][0]


@pytest.mark.parametrize("every", [1, 10, 50])
@pytest.mark.parametrize("kind, sizes", [("white", (0.15, 0.4)), ("t2", (0.05, 0.15)), ("ar", (0.05, 0.1))])
def test_noise_from_the_middle_of_training_raises_no_alarm(kind, every, sizes):
    """1,000 seeds, flat at .8 from step 25,010: long, and short.

    AR(1) noise of sd .15 raises one alarm in 1,000 at 120 points: there the log holds six independent stretches. Logs get
    such noise by smoothing, which makes it small.
    """
    for n in (120, 600):
        for i, curve in enumerate(noise(kind, 1000, n)):
            verdict = foreign(0.8 + sizes[i % 2] * curve, start=25_010, every=every)
            assert verdict.crash_step is None, (n, i, verdict)


def test_healthy_training_raises_no_alarm():
    for seed in range(200):
        assert foreign(learns(1000, seed)).outcome == "survived"
    assert foreign(10 / np.arange(1, 3000) ** 0.2, every=10).outcome == "survived"


@pytest.mark.parametrize("loss", [np.full(500, 0.8), np.zeros(500), np.full(500, -3.0)])
def test_constant_log_survives(loss):
    assert foreign(loss).outcome == "survived"


@pytest.mark.parametrize("n", [0, 1, 2, 19])
def test_a_few_points_are_too_short(n):
    assert foreign(np.ones(n), every=50).outcome == "too_short"
    assert foreign(np.ones(n), every=50, constant_loss=C).outcome == "too_short"


@pytest.mark.parametrize("to, outcome", [(0.45, "survived"), (1.0, "collapsed")])
def test_a_jump_must_be_large_against_the_scatter_too(to, outcome):
    """Noise of sd .1 around .1: s has an sd of .054, so .45 lies 6.5 of them above the level, and 1.0 17."""
    loss = 0.1 + 0.1 * np.random.default_rng(0).standard_normal(1000)
    loss[600:] += to - 0.1
    assert foreign(loss).outcome == outcome


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


def test_collapsed_at_init_needs_the_constant_loss():
    loss = C + 0.05 * np.random.default_rng(0).standard_normal(500)
    assert foreign(loss).outcome == "survived"
    assert foreign(loss, constant_loss=C).outcome == "collapsed_at_init"


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
    ("epoch,loss\n1,2\n", 1, "'step' is not in the header"),
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
