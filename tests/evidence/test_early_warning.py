"""Early warning: areas by counting all pairs, lines that no death has a part in, and signals whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from suite.evidence.early_warning import ENOUGH, GAP, HORIZONS, SIGNALS, START, Life, Score, area, line, score, warned
from suite.evidence.hazard import poisson_interval

RANDOM = np.random.default_rng(0)


def life(values, crash=None, cell=()):
    return Life(crash, True, {"x": np.asarray(values, float)}, np.arange(1, len(values) + 1), cell)


def test_the_area_is_the_share_of_pairs():
    own = RANDOM.integers(0, 6, 7).astype(float)
    others = RANDOM.integers(0, 6, (7, 5)).astype(float)
    others[0, 1:] = others[3, 2] = np.nan  # living runs that were not watched so long
    each = [np.mean([1.0 if p > o else 0.5 if p == o else 0.0 for o in row if o == o]) for p, row in zip(own, others)]
    found, low, high = area([(own, others)])
    assert found == pytest.approx(np.mean(each)) and low <= found <= high
    both, _, _ = area([(own, others), (np.array([9.0]), np.array([[1.0, 2.0]]))])
    assert both == pytest.approx((7 * found + 1) / 8), "every death counts once"


def test_a_death_is_compared_within_its_cell():
    """Of two cells one has the larger signal, and more deaths; within each it says nothing."""

    def some(n, at, crash=None):
        return [life(RANDOM.normal(at, size=300), crash, (str(at),)) for _ in range(n)]

    living, dead = [*some(40, 0), *some(10, 50)], [*some(10, 0, 300), *some(40, 50, 300)]
    found = score(dead, living, "x", 50)
    assert found.n == 50 and 0.35 < found.area < 0.65
    alone = [replace(one, cell=()) for one in dead], [replace(one, cell=()) for one in living]
    assert score(*alone, "x", 50).area > 0.7, "which all cells together would have called a warning"
    assert score(some(3, 7, 300), living, "x", 50) is None, "no run of this cell lived"


def test_a_drift_that_all_runs_share_is_no_warning():
    """Both fall as they learn: early deaths look large beside a whole life, and like the living over the same steps."""
    living = [life(RANDOM.normal(size=400) - 0.1 * np.arange(400)) for _ in range(40)]
    dead = [life(RANDOM.normal(size=crash) - 0.1 * np.arange(crash), crash) for crash in RANDOM.integers(150, 300, 40)]
    assert 0.4 < score(dead, living, "x", 50).area < 0.6


def test_what_moves_in_the_gap_alone_has_no_area_and_what_moves_before_it_has():
    def rising(at):
        return [life(np.where(np.arange(1, 301) >= 300 - at, 10.0, 0.0) + RANDOM.normal(size=300), crash=300) for _ in range(20)]

    living = [life(RANDOM.normal(size=400)) for _ in range(20)]
    assert 0.3 < score(rising(GAP), living, "x", 50).area < 0.7 and score(rising(GAP + 5), living, "x", 50).area > 0.99


def test_a_run_that_was_not_watched_so_long_is_no_comparison():
    dead = [life(np.ones(300), crash=300)]
    assert score(dead, [life(np.ones(200))], "x", 50) is None
    assert score(dead, [life(np.ones(200)), life(np.zeros(300))], "x", 50).area == 1.0


def test_few_deaths_have_no_area():
    assert str(Score(0.9, 0.8, 1.0, ENOUGH - 1)) == "-" and ENOUGH == 4
    assert str(Score(0.9, 0.8, 1.0, ENOUGH)) == "0.90 [0.80, 1.00]"


def test_a_signal_that_rises_before_each_death_is_found_with_its_lead():
    living = [life(RANDOM.normal(size=400)) for _ in range(40)]
    dead = [life(np.where(np.arange(1, 301) >= 300 - lead, 10.0, 0.0) + RANDOM.normal(size=300), crash=300) for lead in [20] * 7 + [30] * 5]
    found = warned(dead, "x", line(living, "x", 0.0))
    assert (found.warned, found.early, found.dead, found.lead) == (12, 5, 12, 20)
    assert str(found) == "12 of 12, 20 steps before (5 by 25 or more)"
    assert str(warned(dead, "x", 99.0)) == f"0 of 12 [0, {poisson_interval(0)[1] / 12:.2f}]"


def test_noise_warns_of_nothing_and_its_area_is_a_half():
    living = [life(RANDOM.normal(size=400)) for _ in range(60)]
    dead = [life(RANDOM.normal(size=300), crash=300) for _ in range(60)]
    found = score(dead, living, "x", 50)
    assert found.low < 0.5 < found.high and found.high - found.low < 0.3


def test_lines_are_passed_by_as_many_living_runs_as_they_say():
    living = [life(RANDOM.normal(size=400)) for _ in range(60)]
    for share, runs in ((0.0, 0), (0.05, 3), (0.5, 30)):
        above = line(living, "x", share)
        assert sum(bool((one.signals["x"][START - 1 :] > above).any()) for one in living) == runs


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
