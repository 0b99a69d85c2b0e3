"""The detectors that ours is compared with, against plain pandas and loops; and the committed comparison."""

import numpy as np
import pandas as pd
import pytest
from head_to_head import PROTOCOLS, RULE, TABLE, asked, measured, rule_digest, shown
from rivals import RIVALS, change_points, ours_detect, ours_monitor, rolling_median, sigmas, sigmas_of_loss, tenfold, zclip

from suite.detect.judge import judge_foreign
from suite.diagnosis.watch import LossWatch
from suite.environment import ROOT
from suite.records.csvfile import read_rows

RESULTS = ROOT / "results"
N = 400


@pytest.fixture(params=range(4))
def series(request):
    rng = np.random.default_rng(request.param)
    loss = 1 + np.exp(-np.arange(N) / 40) + 0.1 * rng.standard_t(3, N)
    loss[300:] += request.param
    return loss, np.exp(rng.normal(size=N))


def told(make, loss, norm=None):
    see = make()
    norm = np.full(len(loss), np.nan) if norm is None else norm
    return np.array([bool(see(i + 1, *pair)) for i, pair in enumerate(zip(loss.tolist(), norm.tolist(), strict=True))])


def test_six_sigma(series):
    want = alone = np.zeros(N, bool)
    for values in map(pd.Series, series):
        past = values.shift(1).rolling(128)
        want = want | (values > past.mean() + 6 * past.std(ddof=0)).to_numpy()
        alone = want.copy() if values.equals(pd.Series(series[0])) else alone
    assert np.array_equal(told(sigmas, *series), want) and np.array_equal(told(sigmas_of_loss, *series), alone)
    assert not told(sigmas, np.ones(N)).any()


def test_above_the_median_of_201(series):
    loss = pd.Series(series[0])
    assert np.array_equal(told(rolling_median, *series), (loss > loss.shift(1).rolling(201).median() + 0.1).to_numpy())
    assert told(rolling_median, series[0] + 5 * (np.arange(N) > 350)).any()


def test_tenfold(series):
    loss, norm = series
    grown = norm * np.where(np.arange(N) > 350, 50, 1)
    want = (np.arange(N) >= 100) & ((grown >= 10 * grown[:100].max()) | (loss >= 10 * abs(loss[:100]).max()))
    assert want.any() and np.array_equal(told(tenfold, loss, grown), want)


def test_zclip_is_its_papers_rule(series):
    norm = series[1]
    mean, var, want = norm[:25].mean(), norm[:25].var(), [False] * 25
    for value in norm[25:]:
        z = (value - mean) / (np.sqrt(var) + 1e-6)
        want.append(z > 2.5)
        if z > 2.5:
            value = mean + 2.5 * np.sqrt(var) / (z / 2.5)
        mean = 0.97 * mean + 0.03 * value
        var = 0.97 * var + 0.03 * (value - mean) ** 2
    assert any(want) and np.array_equal(told(zclip, *series), want)
    assert not told(zclip, series[0]).any()  # without a norm it has nothing to say


def test_change_points_find_a_jump_and_no_fall():
    rng = np.random.default_rng(0)
    jump = 1 + 0.1 * rng.normal(size=N) + (np.arange(N) >= 200)
    see = change_points()
    says = [see(i + 1, x, np.nan) for i, x in enumerate(jump)]
    first = next(i for i, said in enumerate(says) if said)
    assert 200 < first < 225 and abs(says[first] - 201) <= 1 and not any(says[:200])
    assert not told(change_points, 2 - jump).any()


def test_ours_say_on_a_prefix_what_they_say_of_a_log(series):
    loss, steps = series[0], np.arange(1, N + 1)
    see = ours_detect()
    for i, x in enumerate(loss):
        said = see(i + 1, x, np.nan)
        if (i + 1) % 40 == 0:
            found = judge_foreign(steps[: i + 1], loss[: i + 1])[0]
            assert said == (found.crash_step if found.outcome in ("collapsed", "degraded", "nonfinite") else None)
    watch = LossWatch()
    assert np.array_equal(told(ours_monitor, loss), [bool(watch.see(x)) for x in loss])


@pytest.fixture(scope="module")
def committed():
    return {(row["detector"], row["logs"]): row for row in read_rows(RESULTS / "detect" / TABLE.path, TABLE)}


def test_the_committed_comparison_is_whole_and_of_todays_rules(committed):
    assert {row["rule_digest"] for row in committed.values()} == {rule_digest()}, "measure again: results/detect/head_to_head.py"
    assert set(committed) == set(asked(RESULTS)) and len(RULE) == len(set(RULE)) and PROTOCOLS
    for (_, logs), row in committed.items():
        cases = shown(RESULTS)[logs]
        assert int(row["died"]) == sum(log.crash is not None for log in cases) == len(cases) - int(row["lived"])


def again(committed, pairs):
    for pair in pairs:
        made = {name: "" if value is None else str(value) for name, value in measured(RESULTS, *pair).items()}
        kept = {name: committed[pair][name] for name in made}
        for name in ("lead", "delay", "error"):  # of two in the middle the half between
            kept[name], made[name] = (row[name] and float(row[name]) for row in (kept, made))
        assert made == kept, pair


HEAVY = [name for name, (_, make) in RIVALS.items() if make in (change_points, ours_detect)]  # they look at all that has happened
FEW = ("posted logs", "simulated: the paper's trace")


def test_a_part_of_it_comes_out_again(committed):
    again(committed, [pair for pair in committed if pair[0] not in HEAVY and pair[1] in FEW])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_rest_comes_out_again(committed):
    """Of the two that look at all that has happened the same part; all of theirs takes most of an hour."""
    again(committed, [pair for pair in committed if (pair[0] in HEAVY) == (pair[1] in FEW)])
