"""Critical rates against closed forms, a published example, brute force, and simulated cells whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.evidence import stats

# Bliss (1935), beetles under carbon disulphide: log10 dose, insects, killed. Maximum likelihood as in Dobson, An Introduction to
# Generalized Linear Models, 2nd ed., table 7.2 and section 7.3.1: intercept -60.72, slope 34.27.
DOSE = (1.6907, 1.7242, 1.7552, 1.7842, 1.8113, 1.8369, 1.8610, 1.8839)
BEETLES = (59, 60, 62, 56, 63, 59, 62, 60)
KILLED = (6, 13, 18, 28, 52, 53, 61, 60)


def grouped(x, n, k):
    return np.repeat(x, 2), np.tile([1, 0], len(x)), np.stack([k, np.subtract(n, k)], 1).ravel()


def test_maximum_likelihood_of_a_published_example():
    x, y, w = grouped(DOSE, BEETLES, KILLED)
    a, b = stats.firth(x, y, w, penalty=0)
    assert a == pytest.approx(-60.72, abs=0.01) and b == pytest.approx(34.27, abs=0.01)
    c, d = stats.firth(x, y, w)  # 481 insects: the penalty moves the dose by which half are dead by next to nothing
    assert -c / d == pytest.approx(-a / b, abs=2e-4) and 0 < d < b


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(lambda c: c[0] + c[1] and c[2] + c[3]))
def test_of_two_rates_firths_fit_is_the_log_odds_with_half_a_run_added_to_each_cell(cells):
    """The known closed form of the saturated model, finite where a cell is empty."""
    dead0, live0, dead1, live1 = cells
    x, y = [0, 0, 1, 1], [1, 0, 1, 0]
    a, b = stats.firth(x, y, [dead0, live0, dead1, live1])
    assert a == pytest.approx(np.log((dead0 + 0.5) / (live0 + 0.5)), abs=2e-4)
    assert a + b == pytest.approx(np.log((dead1 + 0.5) / (live1 + 0.5)), abs=2e-4)


def test_against_brute_force():
    rng = np.random.default_rng(3)
    x = rng.normal(size=30)
    y = (x + 0.8 * rng.normal(size=30) > 0.3).astype(float)
    a, b = stats.firth(x, y)
    design = np.stack([np.ones(30), x], 1)

    def penalised(a, b):
        p = 1 / (1 + np.exp(-(a + b * x)))
        information = design.T @ (design * (p * (1 - p))[:, None])
        return np.sum(y * np.log(p) + (1 - y) * np.log(1 - p)) + np.log(np.linalg.det(information)) / 2

    best = penalised(a, b)
    assert all(penalised(a + da, b + db) < best for da in (-1e-2, 0, 1e-2) for db in (-1e-2, 0, 1e-2) if da or db)
    assert max(penalised(u, v) for u in np.linspace(-4, 2, 61) for v in np.linspace(0, 8, 81)) <= best + 1e-9


def simulated(rng, middle, steep, rates, seeds, spread=0.0):
    """Runs that die with a logistic chance; spread: how much the seeds of a cell differ, in log rate."""
    lr, seed, dead = [], [], []
    for s in range(seeds):
        shift = spread * rng.normal()
        for rate in rates:
            lr.append(rate), seed.append(s)
            dead.append(rng.random() < 1 / (1 + np.exp(-steep * (np.log(rate / middle) - shift))))
    return lr, seed, dead


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng, rates, hits, n = np.random.default_rng(1), 1e-3 * 1.15 ** np.arange(8, 20, 2), 0, 0
    for _ in range(60):
        found = stats.critical(*simulated(rng, 5e-3, 6.0, rates, 8, spread=0.1), draws=200)
        if found.kind == "fit":
            n, hits = n + 1, hits + (found.low <= 5e-3 <= found.high)
            assert found.low <= found.rate <= found.high or found.rate == pytest.approx(found.low, rel=0.1)
    assert n > 45 and hits / n > 0.8  # a bootstrap over 8 seeds is a little narrow


def test_a_separated_cell_gives_its_bracket_and_no_interval():
    lr, seed = [3e-3] * 5 + [4e-3] * 5 + [5e-3] * 6, [*range(5), *range(5), *range(6)]
    found = stats.critical(lr, seed, [False] * 10 + [True] * 6)
    assert (found.kind, found.low, found.high, found.n_low, found.n_high, found.rate) == ("bracket", 4e-3, 5e-3, 5, 6, None)
    assert found.falls == () and (found.n, found.seeds) == (16, 6) and str(found) == "in (4.00e-03, 5.00e-03)"
    assert stats.critical(lr, seed, [False] * 16).kind == "above" and stats.critical(lr, seed, [True] * 16).high == 3e-3
    mixed = stats.critical(lr, seed, [False] * 5 + [True] * 2 + [False] * 3 + [True] * 6)
    assert mixed.kind == "fit" and 3e-3 < mixed.low <= mixed.rate <= mixed.high < 5e-3
    with pytest.raises(ValueError, match="no runs"):
        stats.critical([], [], [])


def test_what_the_tested_rates_do_not_reach_is_left_open():
    """Eight seeds at three rates; one in eight dies at the hottest: half would die beyond it, and nothing is extrapolated."""
    lr, seed = np.repeat([1e-3, 2e-3, 4e-3], 8), np.tile(range(8), 3)
    few = stats.critical(lr, seed, (lr == 4e-3) & (seed == 0))
    assert (few.kind, few.low, few.high, few.n_low, few.died_there) == ("above", 4e-3, np.inf, 8, 1)
    most = stats.critical(lr, seed, ~((lr == 1e-3) & (seed == 0)))
    assert (most.kind, most.low, most.high, most.n_high, most.died_there) == ("below", 0.0, 1e-3, 8, 7)
    half = stats.critical(lr, seed, (lr == 4e-3) & (seed < 5) | (lr == 2e-3) & (seed == 0))
    assert half.kind == "fit" and half.high == np.inf and 1e-3 < half.low < half.rate <= 4e-3
    inside = ([1e-3] * 8 + [2e-3] * 8 + [4e-3] * 8, [*range(8)] * 3, [False] * 8 + [True] * 3 + [False] * 5 + [True] * 8)
    low, high = stats.ratio((lr, seed, (lr == 4e-3) & (seed < 5) | (lr == 2e-3) & (seed == 0)), inside)[1:]
    assert low > 0 and high == np.inf


def test_a_cell_that_is_not_monotone_is_named():
    lr, seed = np.repeat([1e-3, 2e-3, 3e-3, 4e-3], 4), np.tile(range(4), 4)
    dead = np.array([0, 0, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
    assert stats.critical(lr, seed, dead, draws=50).falls == (3e-3,)


def test_seeds_are_resampled_and_not_runs():
    """Three seeds die from one rate on and three from a rate four times as high: how many of each kind there are decides."""
    rates = 1e-3 * 1.15 ** np.arange(20)
    lr, seed = np.tile(rates, 6), np.repeat(range(6), 20)
    dead = lr > np.where(seed < 3, 2e-3, 8e-3)
    by_seed = stats.critical(lr, seed, dead, draws=400)
    by_run = stats.critical(lr, np.arange(120), dead, draws=400)
    assert np.log(by_seed.high / by_seed.low) > 2 * np.log(by_run.high / by_run.low)


def test_the_ratio_of_two_cells():
    rng, rates = np.random.default_rng(5), 1e-3 * 1.15 ** np.arange(6, 24, 2)
    one, other = simulated(rng, 6e-3, 8.0, rates, 12), simulated(rng, 4e-3, 8.0, rates, 12)
    middle, low, high = stats.ratio(one, other, draws=300)
    assert low < 1.5 < high and low > 1 and middle == pytest.approx(1.5, rel=0.25)
    apart = ([2e-3] * 5 + [3e-3] * 5, [*range(5)] * 2, [False] * 5 + [True] * 5)
    assert stats.ratio(apart, apart) == (None, pytest.approx(2 / 3), pytest.approx(1.5))
    alive = ([2e-3] * 5, range(5), [False] * 5)
    assert stats.ratio(alive, apart)[1:] == (pytest.approx(2 / 3), np.inf)


def test_what_has_not_learnt_in_the_cold_is_left_out_upward():
    lr, seed = [1e-3, 1e-3, 2e-3, 2e-3, 4e-3, 4e-3], [0, 1] * 3
    rates, seeds, bad = stats.upward(lr, seed, [True, False, False, False, True, True])
    assert list(rates) == [2e-3, 2e-3, 4e-3, 4e-3] and list(bad) == [False, False, True, True] and list(seeds) == [0, 1, 0, 1]
    assert len(stats.upward(lr, seed, [True] * 6)[0]) == 6
