"""Best loss, window and margin on cells whose truth is known; they stay when a scheme rescales its rate; their intervals cover."""

import numpy as np
import pandas as pd
import pytest

from suite.evidence.jackknife import jackknife
from suite.evidence.measures import Sample, measures, octaves_below
from suite.evidence.ranking import placed, ranking
from suite.protocol import KNOWN, rate
from suite.verdict.best import FRESH, best_point, bottom

C = 2.0


def cell(scheme="plain", lowest=8.0, floor=0.74, edge=19.0, depth=100, seed=0, shift=0, noise=0.01, fresh=8, ks=None):
    """Runs of a cell whose expected loss is a parabola in the logarithm of the rate, lowest at a lattice point; dead from its edge on."""
    random, out, ks = np.random.default_rng([seed, depth, len(scheme)]), [], ks or (-5, -2, 1, 4, 7, 10, 13, 16, *range(17, 23))
    wanted = [(k, s) for k in ks for s in range(8 if k >= 16 else 3)] + [(round(lowest), FRESH + s) for s in range(fresh)]
    for k, s in wanted:
        dead = k > edge + random.logistic(scale=0.4)
        loss = floor + 0.0009 * (k - lowest) ** 2 + random.normal(scale=noise)
        out.append({"protocol_version": 3, "status": "done", "scheme": scheme, "arm": "controlled", "params": "-", "writers": "zero",
                    "gate_lr": 1.0, "control": "",
                    "depth": depth, "lr": rate(k + shift), "seed": s, "data": "digits", "compiled": True, "horizon": 400,
                    "outcome": "collapsed" if dead else "survived", "constant_loss": C, "final_loss": 1.99 if dead else loss,
                    "heldout_loss": 1.99 if dead else loss})  # fmt: skip
    return pd.DataFrame(out)


def test_the_three_numbers_stay_when_a_scheme_rescales_its_rate():
    """All rates of one scheme times the same constant, four points of the lattice; the other scheme stays."""
    other = cell("rezero", lowest=11.0, floor=0.75, edge=21.0)
    (here, _), (there, _) = (measures(pd.concat([cell(shift=shift), other])) for shift in (0, 4))
    assert there.best_loss == here.best_loss
    for name in ("window", "margin"):
        one, two = getattr(here, name), getattr(there, name)
        assert (two.value, two.low, two.high) == pytest.approx((one.value, one.low, one.high), abs=0.02), name
    assert there.valley.value / here.valley.value == pytest.approx(rate(8) / rate(4), rel=0.01)
    assert there.edge.lr50.middle / here.edge.lr50.middle == pytest.approx(rate(8) / rate(4), rel=0.02)


def test_what_is_known_comes_out():
    (found,) = measures(cell(noise=1e-4))
    assert found.best_lr == rate(8) and found.fresh == 8 and found.best_loss.value == pytest.approx(0.74, abs=1e-3)
    assert found.valley.value == pytest.approx(rate(8), rel=0.1)  # straight lines and a parabola through few points
    reach = np.sqrt(0.05 * 0.74 / 0.0009)  # points of the lattice to either side, where the loss is 5 % up
    assert found.window.value == pytest.approx(2 * reach * np.log2(1.15), rel=0.05) and not found.window.open
    assert (found.runs, found.seeds) == (7 * 3 + 7 * 8, 8)


def test_an_unusable_run_counts_as_c_and_a_stuck_one_too():
    runs = cell(noise=0.0)
    at = (runs["lr"] == rate(8)) & (runs["seed"] == FRESH)
    for outcome in ("stuck", "untrained", "degraded"):
        (found,) = measures(runs.assign(outcome=runs["outcome"].mask(at, outcome)))
        assert found.best_loss.value == pytest.approx((7 * 0.74 + C) / 8, abs=1e-9)


def test_the_best_loss_is_not_the_luckiest_of_the_search():
    """The rate is the search's, the loss is that of other seeds; without them the search's own stand in and are marked."""
    lucky = cell(noise=0.0)
    at = (lucky["lr"] == rate(7)) & (lucky["seed"] < FRESH)
    lucky["heldout_loss"] = lucky["heldout_loss"].mask(at, 0.70)
    (found,) = measures(lucky)
    assert found.best_loss.value == pytest.approx(0.74, abs=1e-9)
    (found,) = measures(lucky[lucky["seed"] < FRESH])
    assert found.fresh == 0 and found.best_loss.value == pytest.approx(0.70, abs=1e-9)


def test_a_window_that_the_rates_do_not_reach_is_open():
    (found,) = measures(cell(ks=(4, 7, 10, 13, 16, *range(17, 23)), noise=0.0))
    assert found.window.open == "cold" and str(found.window).startswith("at least")


def test_a_scheme_that_never_comes_near_has_no_window():
    worse, better = measures(pd.concat([cell("plain", floor=0.9), cell("mvsplit", floor=0.7)]))
    assert worse.window.value == 0 and better.window.value > 1


def test_octaves_by_straight_lines():
    x, y = np.array([0.0, 1.0, 3.0]), np.array([2.0, 1.0, 3.0])
    assert octaves_below(x, y, 1.5) == (pytest.approx(1.0), "")
    assert octaves_below(x, y, 2.0) == (pytest.approx(2.0), "cold")
    assert octaves_below(x, y, 0.9) == (0.0, "")
    assert octaves_below(x, np.ones(3), 1.0) == (3.0, "cold and hot")


def test_the_bottom_of_a_valley():
    assert bottom([0, 1, 2, 3, 4], [0.8, 0.75, 0.74, 0.75, 0.8], [3] * 5) == pytest.approx(2.0)
    assert bottom([0, 1], [0.8, 0.7], [3, 3]) == 1
    assert bottom([0, 1, 2], [0.7, 0.75, 0.76], [3] * 3) == 0  # no lowest point between: the coldest
    assert best_point({0: [0.8], 3: [0.74], 6: [0.75], 9: [2.0]}) in (3, 4, 5)
    with pytest.raises(ValueError, match="no run"):
        best_point({})


def test_ties_are_shown_as_ties():
    """Two schemes of one floor share the first two places, by seeds in pairs; a third has the third to itself."""
    found = measures(pd.concat([cell("plain", seed=1), cell("mvsplit", seed=2), cell("rezero", floor=0.80)]))
    assert {one.cell.scheme: at for one, at in placed(found)} == {"plain": (1, 2), "mvsplit": (1, 2), "rezero": (3, 3)}
    assert [line.split(" | ")[1] for line in ranking(found).splitlines()[2:]] == ["1 to 2", "1 to 2", "3"]


def test_three_seeds_of_one_weight_have_two_degrees_of_freedom():
    """The jackknife of a mean is Student's interval."""
    values = np.array([1.0, 2.0, 4.0])
    low, high = jackknife(values.mean(), np.array([np.delete(values, i).mean() for i in range(3)]))
    assert (high - low) / 2 == pytest.approx(4.303 * values.std(ddof=1) / np.sqrt(3), rel=1e-3)


def test_intervals_of_window_and_best_rate_cover():
    """A search whose cold and middle rates have three seeds and whose edge has eight, seeds with an effect of their own: 300 times."""
    random, step = np.random.default_rng(0), np.log2(1.15)
    cold, hot = (-5, -2, 1, 4, 7, 10, 12, 14, 16), range(17, 23)
    lives = lambda k: 1 / (1 + np.exp((k - 19.5) / 1.2))  # noqa: E731
    loss = lambda k: 0.74 + 0.0009 * (k - 8.3) ** 2  # noqa: E731
    fine = np.linspace(-8, 26, 20_001)
    truth = loss(fine) * lives(fine) + C * (1 - lives(fine))
    window, valley, level = (truth <= 0.78).mean() * 34 * step, fine[truth.argmin()] * step, 0.78
    inside = []
    for _ in range(300):
        of_seed = random.normal(scale=0.01, size=8)
        k, seed = np.array([(k, s) for ks, n in ((cold, 3), (hot, 8)) for k in ks for s in range(n)]).T
        bad = random.random(len(k)) > lives(k)
        value = np.where(bad, C, loss(k) + of_seed[seed] + random.normal(scale=0.01, size=len(k)))
        sample = Sample(k * step, seed, value, bad)

        def numbers(one):
            return np.array([octaves_below(*one.expected[:2], level)[0], one.valley])

        whole = numbers(sample)
        without = np.array([numbers(sample.where(seed != s)) for s in range(8)])
        ends = [jackknife(whole[i], without[:, i]) for i in range(2)]
        inside.append([low <= true <= high for (low, high), true in zip(ends, (window, valley))])
    shares = np.mean(inside, axis=0)
    assert (shares >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / 300)).all(), shares  # two standard errors of 300 draws
    assert KNOWN[rate(8)] == 8


def test_a_search_that_has_just_begun_neither_fails_nor_sets_the_level_of_others():
    whole = cell("plain", noise=0.0)
    begun = pd.concat([whole, cell("gain", floor=0.5, noise=0.0, fresh=0, ks=(4, 7, 10))])
    alone, with_it = measures(whole), measures(begun)
    assert len(with_it) == 2 and with_it[0].window == alone[0].window
    one_run = begun[(begun["scheme"] == "plain") | (begun["seed"] == 0)]
    assert [one.cell.scheme for one in measures(one_run)] == ["plain"]
