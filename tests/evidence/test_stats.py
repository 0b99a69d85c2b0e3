"""Critical rates against a published example, an integral done otherwise, and simulated cells whose truth is known."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import logistic

from suite.evidence import stats
from suite.protocol import KNOWN, rate
from suite.verdict import posterior as p

# Bliss (1935), beetles under carbon disulphide: log10 dose, insects, killed. Maximum likelihood as in Dobson, An Introduction to
# Generalized Linear Models, 2nd ed., table 7.2 and section 7.3.1: intercept -60.72, slope 34.27.
DOSE = (1.6907, 1.7242, 1.7552, 1.7842, 1.8113, 1.8369, 1.8610, 1.8839)
BEETLES = (59, 60, 62, 56, 63, 59, 62, 60)
KILLED = (6, 13, 18, 28, 52, 53, 61, 60)


def test_a_published_example_of_independent_deaths():
    """With 481 insects the prior says next to nothing; doses are divided by 10,000 to lie on the lattice."""
    lr = np.repeat(10 ** np.array(DOSE) / 1e4, BEETLES)
    dead = np.concatenate([np.arange(n) < k for n, k in zip(BEETLES, KILLED)])
    half, tenth = (stats.critical(lr, range(len(lr)), dead, share) for share in (0.5, 0.1))
    assert half.rate == pytest.approx(10 ** (60.72 / 34.27) / 1e4, rel=0.01) and half.low < half.rate < half.high
    assert tenth.rate == pytest.approx(10 ** ((60.72 + np.log(1 / 9)) / 34.27) / 1e4, rel=0.03)


@pytest.mark.parametrize("runs", [((13, True),), ((12, False), (13, False), (14, True)), ((11, True), (13, False))])
def test_the_likelihood_of_a_seed_is_the_integral_over_its_part(runs):
    """A seed's runs share a logistic part of the noise and are independent given it."""
    found = np.exp(p._of_seed(tuple((float(np.log(rate(k))), bad) for k, bad in runs)))
    for e, b, s in ((80, 2, 1), (88, 4, 2), (75, 6, 0), (70, 3, 1)):
        edge, slope, share = p.EDGES[e], p.SLOPES[b], p.SHARES[s]

        def given(u, edge=edge, slope=slope, share=share):
            chances = (expit((slope * (np.log(rate(k)) - edge) - np.sqrt(share) * u) / np.sqrt(1 - share)) for k, _ in runs)
            return np.prod([c if bad else 1 - c for c, (_, bad) in zip(chances, runs)]) * logistic.pdf(u)

        assert found[e, b, s] == pytest.approx(quad(given, -30, 30, limit=200)[0], rel=0.08, abs=2e-3)


def test_the_same_runs_say_less_where_they_are_of_few_seeds():
    """Six seeds, each of which has its own limit at all rates: there are six limits, however many runs were made to see them."""
    points = np.arange(20)
    k, seed = np.tile(points, 6), np.repeat(range(6), 20)
    lr, dead = np.array([rate(int(one)) for one in k]), k > 8 + seed
    by_seed, by_run = stats.critical(lr, seed, dead), stats.critical(lr, np.arange(120), dead)
    assert np.log(by_seed.high / by_seed.low) > 1.3 * np.log(by_run.high / by_run.low)


def test_a_separated_cell_has_an_interval_that_reaches_about_over_its_bracket():
    """Of eight seeds all live at one rate and all die at the next: the edge may be anywhere between, and no more is known."""
    lr, seed = np.repeat([rate(12), rate(13)], 8), [*range(8)] * 2
    found = stats.critical(lr, seed, lr > rate(12))
    assert found.kind == "fit" and found.rate == pytest.approx(np.sqrt(rate(12) * rate(13)), rel=0.01)
    assert found.low == 0 or found.low == pytest.approx(rate(12), rel=0.03)
    assert np.isinf(found.high) or found.high == pytest.approx(rate(13), rel=0.03)
    three = stats.critical([rate(k) for k in (10, 12, 14, 16) for _ in range(3)], [0, 1, 2] * 4, [False] * 6 + [True] * 6)
    eight = stats.critical([rate(k) for k in (10, 12, 14, 16) for _ in range(8)], [*range(8)] * 4, [False] * 16 + [True] * 16)
    assert three.high / three.low > eight.high / eight.low > rate(14) / rate(12) * 0.9  # three runs that agree may do so by chance


def test_what_the_tested_rates_do_not_reach_is_left_open():
    """Eight seeds at three rates; one in eight dies at the hottest: half would die beyond it, and nothing is extrapolated."""
    lr, seed = np.repeat([1e-3, 2e-3, 4e-3], 8), np.tile(range(8), 3)
    few = stats.critical(lr, seed, (lr == 4e-3) & (seed == 0))
    assert (few.kind, few.rate, few.high, few.n_low, few.died_there) == ("above", None, np.inf, 8, 1) and 3e-3 < few.low <= 4e-3
    most = stats.critical(lr, seed, ~((lr == 1e-3) & (seed == 0)))
    assert (most.kind, most.low, most.n_high, most.died_there) == ("below", 0.0, 8, 7) and 1e-3 <= most.high < 1.3e-3
    half = stats.critical(lr, seed, (lr == 4e-3) & (seed < 4))
    assert half.kind == "fit" and half.high == np.inf and half.rate == pytest.approx(4e-3, rel=0.04)  # a tie at the hottest rate lies there
    assert str(few).startswith("> ") and str(most).startswith("< ")
    inside = ([1e-3] * 8 + [2e-3] * 8 + [4e-3] * 8, [*range(8)] * 3, [False] * 8 + [True] * 3 + [False] * 5 + [True] * 8)
    found = stats.ratio((lr, seed, (lr == 4e-3) & (seed < 4)), inside)
    assert found.low > 0 and found.high == np.inf and found.ratio == pytest.approx(half.rate / stats.critical(*inside).rate)
    with pytest.raises(ValueError, match="no runs"):
        stats.critical([], [], [])


def test_a_cell_that_is_not_monotone_is_named_and_chance_is_not():
    lr, seed = np.repeat([1e-3, 2e-3, 3e-3, 4e-3], 8), np.tile(range(8), 4)
    hole = (lr == 2e-3) | (lr == 4e-3) | (lr == 3e-3) & (seed < 1)
    assert stats.critical(lr, seed, hole).falls == (3e-3,)
    assert stats.critical(lr, seed, (lr == 4e-3) | (lr == 2e-3) & (seed < 2) | (lr == 3e-3) & (seed < 1)).falls == ()


def simulated(rng, middle, steep, points, seeds):
    """Runs that die with a logistic chance."""
    lr, seed = np.tile([rate(k) for k in points], seeds), np.repeat(np.arange(seeds), len(points))
    return lr, seed, rng.random(len(lr)) < expit(steep * np.log(lr / middle))


def test_the_ratio_of_two_cells():
    rng = np.random.default_rng(5)
    one, other = simulated(rng, 6e-3, 12.0, range(8, 18), 8), simulated(rng, 4e-3, 12.0, range(5, 15), 8)
    found = stats.ratio(one, other)
    assert 1 < found.low < 1.5 < found.high and found.p < 0.01 and found.ratio == pytest.approx(1.5, rel=0.15)
    a, b = stats.critical(*one), stats.critical(*other)
    assert np.log(found.high / found.low) == pytest.approx(np.hypot(np.log(a.high / a.low), np.log(b.high / b.low)), rel=0.1)
    same = stats.ratio(one, one)
    assert same.ratio == 1 and same.p == pytest.approx(1, abs=0.02) and same.low == pytest.approx(1 / same.high)
    back = stats.ratio(other, one)
    assert back.p == pytest.approx(found.p) and back.low == pytest.approx(1 / found.high)
    alive = ([2e-3] * 5, range(5), [False] * 5)
    assert stats.ratio(alive, other).ratio is None and stats.ratio(alive, other).high == np.inf


def test_what_has_not_learnt_in_the_cold_is_left_out_upward():
    lr, seed = [1e-3, 1e-3, 2e-3, 2e-3, 4e-3, 4e-3], [0, 1] * 3
    rates, seeds, bad = stats.upward(lr, seed, [True, True, False, True, True, True])
    assert list(rates) == [2e-3, 2e-3, 4e-3, 4e-3] and list(bad) == [False, True, True, True] and list(seeds) == [0, 1, 0, 1]
    assert len(stats.upward(lr, seed, [True] * 6)[0]) == 6 and len(stats.upward([], [], [])[0]) == 0


def test_quantiles_and_chances():
    assert list(p.quantiles(np.arange(5.0), np.ones(5) / 5, [0.1, 0.5, 0.9])) == pytest.approx([0, 2, 4])
    flat = p.posterior([], [], [])
    assert flat.sum() == pytest.approx(1) and np.ptp(flat.sum(1)) < 1e-12
    assert (np.diff(p.chances(np.log(list(KNOWN))), axis=0) >= 0).all()  # hotter is worse
    assert p.levels(0.1)[0].max() < p.EDGES[0] == p.levels()[0].max()
