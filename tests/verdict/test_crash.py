"""Crash detection on synthetic curves whose truth is known: exact crash steps and no false alarms where the constant loss is known."""
import json

import numpy as np
import pytest
from curves import WINDOW, C, collapses, foreign, learns, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.detect.judge import judge_foreign
from suite.verdict.outcome import OUTCOMES, judge
from suite.verdict.smooth import short_median


def own(loss, **kwargs):
    """The verdict of a run whose horizon lies ahead, unless it is given."""
    return judge(np.arange(len(loss)), loss, **{"constant_loss": C, "window": WINDOW, "horizon": 10**6} | kwargs)


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


def test_never_learning_is_untrained_from_200_points_on():
    loss = C + 0.1 * np.random.default_rng(0).standard_normal(1000)
    assert own(loss[:199]).outcome == "too_short"
    for n in (200, 1000):
        assert (own(loss[:n]).outcome, own(loss[:n]).crash_step) == ("untrained", None)
    assert own(np.concatenate((loss, learns(400)))).outcome == "survived"  # it learnt late


def test_never_learning_is_judged_after_twice_the_warmup():
    """Warm-ups of 100 steps and fewer change nothing; a crash is a crash during it."""
    loss = C + 0.1 * np.random.default_rng(0).standard_normal(3000)
    for n in (199, 200, 201, 1000):
        assert own(loss[:n], warmup=100) == own(loss[:n], warmup=0) == own(loss[:n])
    assert own(loss[:1999], warmup=1000).outcome == "too_short"
    assert own(loss[:2000], warmup=1000).outcome == "untrained"
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
    (1.9, 1.9, "untrained"),
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
        assert verdict.outcome in (*OUTCOMES, "unknown") and verdict.steps == len(loss)
        if verdict.outcome != "unknown":  # a rise has a step, a loss that never learnt has none
            assert (verdict.crash_step is None) == (verdict.outcome in ("survived", "stuck", "untrained", "too_short"))
        assert verdict.crash_step is None or verdict.crash_step in steps
        json.dumps(vars(verdict), allow_nan=False)


@pytest.mark.parametrize("kind, sd", [("white", 0.15), ("t2", 0.05), ("ar", 0.05)])
def test_own_noise_raises_no_alarm(kind, sd):
    """1,000 seeds each: a trained run with noise survives, one at the constant level is untrained.

    Our batches are drawn independently at each step, so white noise is the real case; at sd .1, AR(1) noise around C does
    get clearly below it for ten points now and then.
    """
    curves = sd * noise(kind, 1000, 1000)
    steps = np.arange(1000)
    trained = 0.75 + (C - 0.75) * np.exp(-steps / 40)
    assert {own(trained + curve).outcome for curve in curves} == {"survived"}
    assert {own(C + curve).outcome for curve in curves} == {"untrained"}


@pytest.mark.parametrize("change", [{"steps": [1, 1]}, {"steps": [2, 1]}, {"steps": [1]}, {"constant_loss": np.nan},
                                    {"constant_loss": 0}, {"window": 4}, {"grad_norm": [1]}])
def test_senseless_arguments_are_refused(change):
    with pytest.raises(ValueError):
        judge(**{"steps": [1, 2], "loss": [1, 2], "constant_loss": C, "window": WINDOW, "horizon": 2} | change)
