"""Early warning: areas by counting all pairs, lines that no death has a part in, and signals whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from suite.evidence.early_warning import HORIZONS, SIGNALS, START, Life, area, line, score, warned

RANDOM = np.random.default_rng(0)


def life(values, crash=None, cell=()):
    return Life(crash, True, {"x": np.asarray(values, float)}, np.arange(1, len(values) + 1), cell)


def test_the_area_is_the_share_of_pairs():
    positive = RANDOM.integers(0, 6, 7).astype(float)
    windows = [RANDOM.integers(0, 6, n).astype(float) for n in (4, 1, 9)]
    pairs = [1.0 if p > w else 0.5 if p == w else 0.0 for p in positive for window in windows for w in window]
    found, low, high = area([(positive, windows)])
    assert found == pytest.approx(np.mean(pairs)) and low <= found <= high
    both, _, _ = area([(positive, windows), (np.array([9.0]), windows)])
    assert both == pytest.approx((7 * found + 1) / 8), "every death counts once"


def test_a_death_is_compared_within_its_cell():
    """Of two cells one has the larger signal, and more deaths; within each it says nothing."""

    def some(n, at, crash=None):
        return [life(RANDOM.normal(at, size=300), crash, (str(at),)) for _ in range(n)]

    living, dead = [*some(40, 0), *some(10, 50)], [*some(10, 0, 300), *some(40, 50, 300)]
    found = score(dead, living, "x", 25)
    assert found.n == 50 and 0.35 < found.area < 0.65
    alone = [replace(one, cell=()) for one in dead], [replace(one, cell=()) for one in living]
    assert score(*alone, "x", 25).area > 0.7, "which all cells together would have called a warning"
    assert score(some(3, 7, 300), living, "x", 25) is None, "no run of this cell lived"


def test_a_signal_that_rises_before_each_death_is_found_with_its_lead():
    living = [life(RANDOM.normal(size=400)) for _ in range(40)]
    dead = [life(np.where(np.arange(1, 301) > 300 - 25, 10.0, 0.0) + RANDOM.normal(size=300), crash=300) for _ in range(12)]
    assert score(dead, living, "x", 25).area > 0.99
    found = warned(dead, "x", 100, line(living, "x", 0.0))
    assert (found.warned, found.dead, found.lead) == (12, 12, 24)
    assert warned(dead, "x", 10, line(living, "x", 0.0)).lead == 10, "what came sooner is no warning within ten steps"


def test_noise_warns_of_nothing_and_its_area_is_a_half():
    living = [life(RANDOM.normal(size=400)) for _ in range(60)]
    dead = [life(RANDOM.normal(size=300), crash=300) for _ in range(60)]
    found = score(dead, living, "x", 25)
    assert found.low < 0.5 < found.high and found.high - found.low < 0.3
    assert warned(dead, "x", 25, line(living, "x", 0.0)).warned <= 2
    passing = np.mean(np.concatenate([one.signals["x"][START:] for one in living]) > line(living, "x", 1e-3))
    assert passing == pytest.approx(1e-3, abs=2e-4)


def test_the_signals_see_a_growth_and_know_their_past_alone():
    loss, norm = np.full(200, 1.0), np.full(200, 2.0)
    norm[150:], loss[170:] = 6.0, 3.0
    for name, signal in SIGNALS.items():
        values = signal(loss, norm)
        changed = 149 if "gradient" in name else 169
        assert np.nanmax(values[:changed]) <= 2.0 and np.isclose(values[changed + 5], {True: np.log(3), False: 3.0}["growth" in name] * (
            2 if name == "gradient norm" else 1)), name  # fmt: skip
        cut = signal(loss[:160], norm[:160])
        assert np.array_equal(cut, values[:160], equal_nan=True), "a value must not change when later steps come"


@pytest.mark.parametrize("horizon", HORIZONS)
def test_deaths_before_the_first_reading_have_no_score(horizon):
    assert score([life(np.ones(50), crash=40)], [life(np.ones(400))], "x", horizon) is None
