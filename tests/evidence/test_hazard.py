"""Healthy steps, deaths and their intervals, against counting by hand and by brute force."""

import math
import random

import pandas as pd
import pytest

from suite.environment import ROOT
from suite.evidence.cells import runs_of
from suite.evidence.hazard import (
    HEALTHY,
    Risk,
    died_healthy,
    hazard_ratio,
    healthy_steps,
    longer,
    poisson_interval,
    rates_below,
    risks,
    with_health,
)
from suite.presets import PROTOCOLS


def run(outcome="survived", crash=None, horizon=300, last=350, lr=1e-3, seed=0, scheme="plain", depth=100):
    return pd.Series({
        "run_id": f"{scheme}{lr}{seed}", "outcome": outcome, "crash_step": crash, "horizon": horizon, "last_step": last,
        "constant_loss": 2.0, "lr": lr, "seed": seed, "status": "done", "protocol_version": 4, "scheme": scheme, "arm": "controlled",
        "params": "-", "writers": "zero", "gate_lr": 1.0, "data": "digits", "compiled": True, "depth": depth, "final_loss": 1.0,
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
        last, healthy, known = (int(crash) - 1 if crash else 300), 0, 9.0
        for step in range(1, last + 1):  # a step is healthy if the newest measurement before it was
            healthy += known < HEALTHY * 2
            known = losses[step // 50 - 1] if step % 50 == 0 else known
        assert healthy_steps(row, evals(*losses)) == healthy


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
    assert Risk("plain", 100, 1e-3, 8, 1, 4000, (1,) * n).hazard == pytest.approx((n / 4, low / 4, high / 4))
    assert Risk("plain", 100, 1e-3, 8, 1, 0).hazard[1:] == (0.0, math.inf)


def test_a_ratio_of_hazards_has_the_tails_of_the_binomial_that_a_sum_of_counts_leaves():
    one, other = (Risk("plain", 100, 1e-3, 8, deaths, steps, (1,) * deaths) for deaths, steps in ((5, 6463), (2, 17631)))
    ratio, low, high = hazard_ratio(one, other)
    assert ratio == pytest.approx(one.hazard[0] / other.hazard[0]) and low < ratio < high

    def tail(times, counts):  # of 7 deaths, the chance that so many are the first's if its hazard is `times` the other's
        p = times * 6463 / (times * 6463 + 17631)
        return sum(math.comb(7, k) * p**k * (1 - p) ** (7 - k) for k in counts)

    assert tail(low, range(5, 8)) == pytest.approx(0.025) == pytest.approx(tail(high, range(6)))
    none = Risk("plain", 100, 1e-3, 8, 0, 100)
    assert hazard_ratio(one, none)[::2] == (math.inf, math.inf) and hazard_ratio(none, one)[:2] == (0, 0)
    assert hazard_ratio(none, none) is None is hazard_ratio(one, Risk("plain", 100, 1e-3, 8, 0, 0))


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
    plain, mvsplit = ([risk.when for risk in known if risk.name == scheme and risk.when] for scheme in ("plain", "mvsplit"))
    assert min(min(when) for when in plain) > max(max(when) for when in mvsplit)
