"""Logs without an event that are not called alive, and what is only remarked on."""

import numpy as np
import pytest
from curves import C, foreign, learns, noise

from suite.detect.doubts import idle_gradient, last_rows
from suite.detect.judge import judge_foreign

RNG = np.random.default_rng(0)


def said(loss, every=10, start=0, **kwargs):
    """(outcome, crash step, its notes beyond the usual) of a log."""
    verdict, notes = judge_foreign(start + every * np.arange(len(loss)), loss, **kwargs)
    return verdict.outcome, verdict.crash_step, " | ".join(notes[2 if not kwargs else 1 :])


@pytest.mark.parametrize(("loss", "words"), [
    (np.full(100, 2.3026), "exactly 2.3026 in all 100 rows"),
    (np.zeros(100), "exactly 0 in all 100 rows"),
    (np.concatenate((learns(100), np.full(100, 0.7213))), "exactly 0.7213 in the last 100 rows"),
    (2.303 + 0.003 * noise("white", 1, 300)[0], "gains nothing over the log"),
    (10.9 + 0.05 * noise("white", 1, 100)[0], "gains nothing over the log"),
    (np.linspace(10.38, 11.09, 240) + 0.05 * noise("white", 1, 240)[0], "only rises from its first rows on, from 10.3"),
    (np.linspace(10.38, 11.09, 24) + 0.02 * noise("white", 1, 24)[0], "only rises from its first rows on"),
    (11.09 - 0.71 * np.exp(-np.arange(240) / 5), "only rises from its first rows on"),
])  # fmt: skip
def test_what_never_learnt_is_unknown(loss, words):
    outcome, step, notes = said(np.round(loss, 4))
    assert (outcome, step) == ("unknown", None) and words in notes


@pytest.mark.parametrize("loss", [
    0.35 + np.round(np.exp(-np.arange(200) / 20), 2),  # goes flat, printed with two digits
    np.round(np.exp(-np.arange(200) / 20), 4),  # memorised: down to the last digit
    3 - 0.3 * np.linspace(0, 1, 300) + 0.05 * noise("white", 1, 300)[0],
    learns(300, low=1.9),
])  # fmt: skip
def test_what_learnt_is_alive(loss):
    assert said(loss)[0] == "survived"


def test_no_gain_that_noise_may_hide_or_that_began_elsewhere_is_remarked_on():
    outcome, _, notes = said(2.3 + 0.3 * noise("white", 1, 500)[0])
    assert outcome == "survived" and "stands out of its noise" in notes
    outcome, _, notes = said(0.8 + 0.002 * noise("white", 1, 500)[0], start=50_000)
    assert outcome == "survived" and "does not begin where training does" in notes


def test_a_gradient_norm_of_exactly_0():
    assert "exactly 0 throughout" in idle_gradient(np.zeros(20))
    assert "from its value 31 on" in idle_gradient(np.concatenate((np.ones(30), np.zeros(20))))
    for norm in (None, np.zeros(19), np.full(30, np.nan), np.tile([0.0, 1.0], 30), np.concatenate((np.zeros(50), np.ones(1)))):
        assert idle_gradient(norm) == ""


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("constant_loss", [None, C])
def test_a_jump_in_the_last_rows_is_unknown(rows, constant_loss):
    loss = learns(400, sd=0.03)
    loss[-rows:] = C
    outcome, step, notes = said(loss, constant_loss=constant_loss) if constant_loss else said(loss)
    assert (outcome, step) == ("unknown", 10 * (400 - rows)) and "are needed" in notes


def test_last_rows_that_are_no_jump():
    loss = learns(400, sd=0.03)
    assert last_rows(loss) == 0
    spiky = loss.copy()
    spiky[100] = spiky[250] = 2.0
    spiky[-1] = 1.9
    assert last_rows(spiky) == 0 and foreign(spiky, every=10).outcome == "survived"


@pytest.mark.parametrize("fall", [0.6, 0.3])
def test_a_fall_at_once_is_remarked_on(fall):
    loss = learns(800, sd=0.02)
    loss[400:] -= fall
    outcome, _, notes = said(loss)
    assert outcome == "survived" and "falls at once from 0.69" in notes and "at step 4000" in notes


@pytest.mark.parametrize("loss", [learns(800), 2.3 * np.exp(-np.arange(300) / 20) + 0.1, 3 * (1.0 + np.arange(600)) ** -0.4])
def test_learning_is_no_fall_at_once(loss):
    assert "falls at once" not in said(loss)[2]


def test_a_spike_that_ends_is_no_fall_at_once():
    loss = learns(800, sd=0.02)
    loss[400:440] = 3.0
    assert "falls at once" not in said(loss)[2]


@pytest.mark.parametrize("first", [1, 50, 150])
def test_a_slow_rise_from_exactly_0_is_not_degraded(first):
    loss = 0.00004 * np.maximum(np.arange(600) - first, 0) * (1 + 0.2 * noise("white", 1, 600)[0])
    assert said(np.round(loss, 4))[:2] == ("unknown", None)


def test_a_jump_from_0_and_a_slow_rise_of_what_was_gained_are_events():
    assert said(np.where(np.arange(600) < 300, 0.0, 3.0 + 0.05 * noise("white", 1, 600)[0]))[:2] == ("collapsed", 3000)
    slow = np.concatenate((learns(400, sd=0.02), np.linspace(0.7, 1.9, 400), 1.9 + 0.02 * noise("white", 1, 400)[0]))
    assert said(slow)[0] == "degraded"


@pytest.mark.parametrize(("before", "held"), [(9, 65), (12, 65), (20, 30), (30, 20)])
def test_a_jump_of_hundreds_of_scatters_is_one_in_few_rows(before, held):
    for start in (3 * np.exp(-np.arange(before) / 4), 0):
        loss = np.concatenate((3 + start + 0.01 * RNG.standard_normal(before), 7.5 + 0.1 * RNG.standard_normal(held)))
        verdict = foreign(loss, every=1000)
        assert (verdict.outcome, verdict.crash_step) == ("collapsed", 1000 * before)


def test_noise_that_wanders_makes_no_huge_jump():
    for curve in noise("ar", 100, 120, seed=3):
        assert foreign(0.8 + 0.1 * curve, start=25_010, every=10).outcome not in ("collapsed", "degraded")


@pytest.mark.parametrize("before", [8, 12, 40])
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_explodes_over_orders_of_magnitude_has_died_at_its_first_jump(before, seed):
    rng = np.random.default_rng(seed)
    loss = np.concatenate((0.05 + 0.005 * rng.normal(size=before), 10 ** rng.uniform(2, 10, 9)))
    outcome, step, _ = said(loss, every=1, start=1)
    assert outcome in (("degraded", "collapsed") if before > 8 else ("degraded", "collapsed", "unknown"))
    assert outcome == "unknown" or abs(step - (before + 1)) <= 1


def test_an_explosion_that_comes_back_is_none():
    loss = 0.05 + 0.005 * np.random.default_rng(0).normal(size=60)
    loss[30:36] = 10 ** np.random.default_rng(1).uniform(2, 8, 6)
    assert said(loss, every=1, start=1)[0] not in ("degraded", "collapsed")


def test_a_short_log_that_repeats_one_number_is_unknown_and_not_only_short():
    assert said(np.full(23, 10.8259), every=1, start=76)[0] == "unknown"
    assert said(np.full(19, 10.8259), every=1, start=76)[0] == "too_short"
