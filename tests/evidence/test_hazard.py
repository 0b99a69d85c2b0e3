"""Healthy steps, deaths and their intervals, against counting by hand and by brute force."""

import math
import random
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import CensoredData, ecdf

from suite.environment import ROOT
from suite.evidence.cells import runs_of
from suite.evidence.hazard import (
    HEALTHY,
    Piece,
    Risk,
    died_healthy,
    hazard_ratio,
    healthy_steps,
    kaplan_meier,
    longer,
    poisson_interval,
    rates_below,
    risks,
    watched,
    with_health,
)
from suite.presets import PROTOCOLS


def run(outcome="survived", crash=None, horizon=300, last=350, lr=1e-3, seed=0, scheme="plain", depth=100):
    return pd.Series({
        "run_id": f"{scheme}{lr}{seed}", "outcome": outcome, "crash_step": crash, "horizon": horizon, "last_step": last,
        "constant_loss": 2.0, "lr": lr, "seed": seed, "status": "done", "protocol_version": 4, "scheme": scheme, "arm": "controlled",
        "params": "-", "writers": "zero", "gate_lr": 1.0, "control": "",
        "data": "digits", "compiled": True, "depth": depth, "final_loss": 1.0,
        "heldout_loss": 1.0})  # fmt: skip


def evals(*losses, every=50):
    return pd.DataFrame({"step": [every * (i + 1) for i in range(len(losses))], "heldout_loss": losses})


def test_healthy_steps_are_counted_from_a_good_measurement_to_the_next_the_crash_or_the_horizon():
    assert healthy_steps(run(), evals(1.5, 0.8, 0.8, 1.2, 0.7, 0.7, 0.7)) == 50 + 50 + 50  # 100-200 and 250-300
    assert healthy_steps(run("collapsed", 180, last=230), evals(1.5, 0.8, 0.8, 2.0)) == 50 + 29
    assert healthy_steps(run("stuck"), evals(1.5, 1.5, 1.5)) == 0 == healthy_steps(run("collapsed", 30, last=80), evals(1.9))


def test_the_line_below_which_a_run_is_healthy_can_be_moved():
    row, lines = run("collapsed", 180, last=230), evals(1.5, 0.95, 0.95)
    assert (healthy_steps(row, lines), died_healthy(row, lines)) == (0, False)
    assert (healthy_steps(row, lines, 0.5), died_healthy(row, lines, 0.5)) == (79, True)


def test_healthy_steps_against_a_walk_over_every_step():
    draw = random.Random(0)
    for _ in range(300):
        losses = [draw.choice((0.7, 0.899, 0.9, 1.4)) for _ in range(7)]
        crash = draw.choice((None, draw.randint(2, 299)))
        row = run("collapsed" if crash else "survived", crash)
        last, healthy, early, known = (int(crash) - 1 if crash else 300), 0, 0, 9.0
        for step in range(1, last + 1):  # a step is healthy if the newest measurement before it was
            healthy += known < HEALTHY * 2
            early += known < HEALTHY * 2 and step <= 120
            known = losses[step // 50 - 1] if step % 50 == 0 else known
        assert (healthy_steps(row, evals(*losses)), healthy_steps(row, evals(*losses), until=120)) == (healthy, early)


def test_a_death_is_one_of_a_healthy_run_by_the_last_measurement_before_the_event():
    assert died_healthy(run("collapsed", 180), evals(1.5, 0.8, 0.8))
    assert not died_healthy(run("collapsed", 180), evals(1.5, 0.8, 1.2)) and not died_healthy(run("survived"), evals(0.8, 0.8))
    assert died_healthy(run("nonfinite", 155), evals(1.5, 0.8, 1.9))  # step 150 lies within the event
    assert not died_healthy(run("collapsed", 40), evals(0.8))


@pytest.mark.parametrize("n", [0, 1, 3, 20])
def test_the_interval_is_that_of_the_poisson_tails(n):
    low, high = poisson_interval(n)

    def below(mean, k):  # P(count <= k)
        return sum(math.exp(-mean) * mean**i / math.factorial(i) for i in range(k + 1))

    assert below(high, n) == pytest.approx(0.025, rel=1e-6)
    assert (1 - below(low, n - 1) if n else 0.025) == pytest.approx(0.025, rel=1e-6)
    assert poisson_interval(0) == (0.0, pytest.approx(3.689, abs=1e-3))  # -ln 0.025
    assert Piece(n, 4000).hazard == pytest.approx((n / 4, low / 4, high / 4))
    assert Piece(0, 0).hazard[1:] == (0.0, math.inf)


def test_a_ratio_of_hazards_has_the_tails_of_the_binomial_that_a_sum_of_counts_leaves():
    one, other = Piece(5, 6463), Piece(2, 17631)
    ratio, low, high = hazard_ratio(one, other)
    assert ratio == pytest.approx(one.hazard[0] / other.hazard[0]) and low < ratio < high

    def tail(times, counts):  # of 7 deaths, the chance that so many are the first's if its hazard is `times` the other's
        p = times * 6463 / (times * 6463 + 17631)
        return sum(math.comb(7, k) * p**k * (1 - p) ** (7 - k) for k in counts)

    assert tail(low, range(5, 8)) == pytest.approx(0.025) == pytest.approx(tail(high, range(6)))
    none = Piece(0, 100)
    assert hazard_ratio(one, none)[::2] == (math.inf, math.inf) and hazard_ratio(none, one)[:2] == (0, 0)
    assert hazard_ratio(none, none) is None is hazard_ratio(one, Piece(0, 0))


def test_a_risk_falls_into_two_pieces_and_adds_up():
    one, other = Risk("plain", 50, 1e-3, 8, 3, 5000, 2000, (900, 1000, 1001)), Risk("plain", 100, 1e-3, 8, 1, 700, 300, (50,))
    assert one.pieces == (Piece(2, 2000), Piece(1, 3000)) and str(one).startswith("up to step 1000 1.000 [")
    both = one + other
    assert both.pieces == (Piece(3, 2300), Piece(1, 3400)) and (both.runs, both.dead, both.when) == (16, 4, (50, 900, 1000, 1001))


@pytest.mark.parametrize("seed", range(20))
def test_kaplan_meier_without_late_entry_is_scipys(seed):
    draw = np.random.default_rng(seed)
    end, died = draw.integers(1, 12, 30).astype(float), draw.random(30) < 0.6
    found = kaplan_meier(np.zeros(30), end, died)
    right = ecdf(CensoredData(uncensored=end[died], right=end[~died])).sf
    steps = found.index.to_numpy()
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a curve that comes to 0, which has no interval there
        ends = right.confidence_interval(method="log-log")
    known = ~np.isnan(found["low"])
    assert found["survival"].to_numpy() == pytest.approx(right.evaluate(steps), abs=1e-12)
    for column, curve in (("low", ends.low), ("high", ends.high)):
        assert found[column][known].to_numpy() == pytest.approx(curve.evaluate(steps)[known], abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_kaplan_meier_with_late_entry_against_a_walk_over_every_step(seed):
    draw = np.random.default_rng(seed)
    entry = draw.integers(0, 10, 12)
    end, died = entry + draw.integers(1, 12, 12), draw.random(12) < 0.6
    found, left = kaplan_meier(entry, end, died), 1.0
    for step in range(1, 24):
        here = [i for i in range(12) if entry[i] < step <= end[i]]
        gone = [i for i in here if died[i] and end[i] == step]
        if gone:
            left *= 1 - len(gone) / len(here)
            assert (found.loc[step, "at_risk"], found.loc[step, "deaths"]) == (len(here), len(gone))
            assert found.loc[step, "survival"] == pytest.approx(left)
    assert found["deaths"].sum() == died.sum()


def test_late_entry_takes_away_what_immortal_time_would_add():
    """Constant hazard of 1 in 100, entry up to step 300: who died before entry was never seen. The curve is exp(-t/100)."""
    draw = np.random.default_rng(0)
    life, entry = draw.exponential(100, 40_000), draw.uniform(0, 300, 40_000)
    seen = life > entry
    found = kaplan_meier(entry[seen], np.ceil(life[seen]), np.ones(seen.sum(), bool))
    naive = kaplan_meier(np.zeros(seen.sum()), np.ceil(life[seen]), np.ones(seen.sum(), bool))
    from_50 = found.loc[150, "survival"] / found.loc[50, "survival"]  # the first steps have few at risk
    assert from_50 == pytest.approx(np.exp(-1), abs=0.02) and naive.loc[150, "survival"] > 0.4


def test_a_run_is_watched_from_its_first_good_measurement_to_any_death():
    runs = pd.DataFrame([run(seed=0), run("collapsed", 180, seed=1), run("stuck", seed=2)]).assign(healthy_from=[50.0, 100.0, np.nan])
    assert watched(runs).to_numpy().tolist() == [[50, 300, False], [100, 180, True]]


def test_a_critical_rate_of_the_longer_horizon_takes_of_the_short_one_what_is_sure():
    short = [run("collapsed" if lr > 5e-3 else "survived", 40 if lr > 5e-3 else None, lr=lr, seed=seed)
             for lr in (3e-3, 4e-3, 6e-3, 7e-3) for seed in range(6)]  # fmt: skip
    short += [run(lr=5e-3, seed=seed) for seed in range(5)] + [run("collapsed", 300, lr=5e-3, seed=5)]
    long = [run("collapsed" if seed < 2 else "survived", 200 if seed < 2 else None, lr=4e-3, seed=seed) for seed in range(6)]
    ((*both, bound),) = longer(pd.DataFrame(short), pd.DataFrame(long)).values()
    assert (both[0].kind, both[0].n, both[1].n) == ("fit", 30, 6 + 12)  # 5e-3 has survivors: unknown at the longer horizon
    assert both[1].rate < both[0].rate and bound == (6e-3, 6, 6)  # at 5e-3 one of six is dead by then: no bound


@pytest.mark.parametrize("frontier, anatomy", [("frontier", "anatomy"), ("frontier64", "anatomy64")])
def test_the_anatomys_rates_are_the_rules(frontier, anatomy):
    below, protocol = rates_below(runs_of(ROOT / "results" / frontier)), PROTOCOLS[anatomy]
    mine = {(cell.scheme, depth): set(cell.lrs or protocol.lrs) for cell in protocol.cells if not cell.params
            for depth in cell.depths or protocol.depths}  # fmt: skip
    assert {key: set(lrs) for key, lrs in below.items() if key[1] in (50, 100)} == mine


def test_plains_healthy_deaths_lie_later_than_mvsplits_as_the_readme_says():
    known = risks(with_health(ROOT / "results" / "anatomy"))
    plain, mvsplit = ([risk for risk in known if risk.name == scheme] for scheme in ("plain", "mvsplit"))
    deaths = [[sum(risk.pieces[which].deaths for risk in own) for which in (0, 1)] for own in (plain, mvsplit)]
    assert deaths == [[0, 12], [4, 0]] and [sum(risk.runs for risk in own) for own in (plain, mvsplit)] == [32, 32]
    between = [step for risk in known for step in risk.when if 936 < step < 1553]
    assert not between, "what the border's comment says"
