"""The search of a cell, on cells whose truth is known: it ends, finds the edge, asks for nothing twice, and goes on when stopped."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import logistic

from suite.evidence import stats
from suite.protocol import FIRST, HOTTEST, KNOWN, LAST, rate
from suite.sweep.frontier import MOST, PRECISION, RESERVED, Seen, by_point, wanted
from suite.verdict.best import best_point

C = 2.0  # the value of a run that is not usable


def loss(k, best):
    """A valley: 10 % above its bottom at eight points from it."""
    return 0.75 * (1 + 0.1 * ((k - best) / 8) ** 2)


def search(dies, best=8, known=(), batch=2, precision=PRECISION, most=None, shuffle=None):
    """(runs, words) of a search; dies: whether a seed is lost at a point; most: the runs after which it is stopped."""
    runs = list(known)
    while (found := wanted(runs, precision, batch)).pairs:
        pairs = shuffle.sample(found.pairs, len(found.pairs)) if shuffle else found.pairs
        for k, seed in pairs:
            assert FIRST <= k <= LAST and not any((k, seed) == run[:2] for run in runs), "asked for twice"
            assert len(runs) < 200, "the search does not end"
            runs.append(Seen(k, seed, not dies(k, seed), C if dies(k, seed) else loss(k, best)))
            if len(runs) == most:
                return runs, found.edge
    return runs, found.edge


def coin(at, slope, salt=0):
    """A run is lost beyond a limit of its own, logistic about a point of the lattice; slope: logits per e-fold of the rate."""
    return lambda k, seed: k > at + logistic.ppf(np.random.default_rng([k - FIRST, seed, salt]).random()) / slope / np.log(1.15)


def critical(runs):
    return stats.critical(*stats.upward([rate(run.k) for run in runs], [run.seed for run in runs], [not run.usable for run in runs]))


def own(runs):
    return [run for run in runs if run.seed not in RESERVED]


def test_the_lattice():
    assert [rate(k) for k in range(4)] == [1e-3, 1.15e-3, 1.32e-3, 1.52e-3]
    assert rate(LAST) <= HOTTEST < rate(LAST + 1) and list(KNOWN.values()) == [*range(FIRST, LAST + 1)] and FIRST == -10
    assert all(float(f"{lr:g}") == lr for lr in KNOWN)  # six digits hold it


@pytest.mark.parametrize("at", [-8, 0, 5, 12, 13, 20, LAST])
@pytest.mark.parametrize("batch", [2, 8])
def test_a_sharp_edge_is_found(at, batch):
    runs, words = search(lambda k, seed: k >= at, best=at - 8, batch=batch)
    found = critical(own(runs))
    assert found.kind == "fit" and abs(np.log(found.rate / rate(at)) / np.log(1.15) + 0.5) < 0.1
    assert float(words.split(",")[0]) == pytest.approx(found.rate, rel=0.02) and "within" in words
    assert sum(run.k > at - 4 for run in own(runs)) < 40
    assert {run.k >= at for run in runs} == {True, False}


@settings(max_examples=15, deadline=None)
@given(at=st.floats(-6, LAST - 3), slope=st.sampled_from((12, 20, 40)), salt=st.integers(0, 99), batch=st.sampled_from((2, 3, 8)))
def test_it_ends_at_the_precision_or_at_sixty_runs_and_says_which(at, slope, salt, batch):
    runs, words = search(coin(at, slope, salt), best=at - 8, batch=batch)
    off = float(words.split("within ")[1].split("%")[0]) / 100
    fresh = len({run.seed for run in own(runs)})  # of the edge each run has a seed of its own
    assert off <= PRECISION + 5e-4 or ("only" in words and len(own(runs)) >= MOST), words
    assert fresh <= MOST + batch
    if off > PRECISION:
        assert f"{MOST}" in words or int(words.split("only: ")[1].split()[0]) >= MOST
    assert sum(at + 2 < run.k <= at + 8 for run in runs) >= 2 or at + 6 > LAST  # the hot side was looked at
    near = [run.seed for run in own(runs) if at - 3 < run.k < at + 3]
    assert len(set(near)) > 0.7 * len(near)


def test_a_finer_precision_costs_more_runs_and_keeps_to_it():
    dies = coin(14.3, 20)
    few, many = (search(dies, precision=precision) for precision in (0.12, 0.05))
    assert len(few[0]) < len(many[0])
    for (runs, words), precision in ((few, 0.12), (many, 0.05)):
        assert float(words.split("within ")[1].rstrip("%")) <= 100 * precision + 0.05 or len(own(runs)) >= MOST


@pytest.mark.parametrize("dies, words", [
    (lambda k, seed: False, "hotter than"), (lambda k, seed: True, "never learns")])  # fmt: skip
def test_a_cell_without_an_edge_on_the_lattice_ends_too(dies, words):
    runs, said = search(dies)
    assert words in said and len(runs) < 60
    assert any(run.seed in RESERVED for run in runs) == (words == "hotter than")


def test_a_cell_that_learns_in_the_heat_alone_is_looked_for_there():
    runs, words = search(lambda k, seed: k < 18 or k > 24.5, best=20)
    assert "within" in words and abs(float(words.split(",")[0]) / rate(24) - 1.07) < 0.05


def test_a_hole_in_the_frontier_is_looked_at_and_said():
    """A cell that lives again at hotter rates has no edge: the search sees it, spends its runs, and says so."""
    runs, words = search(lambda k, seed: k in (12, 13) or k >= 18)
    assert critical(own(runs)).falls and "not monotone at" in words, words
    runs, words = search(lambda k, seed: k in (12, 13))
    assert "not monotone at" in words or "hotter than" in words, words


def test_the_cold_side_ends_where_the_loss_is_a_tenth_above_its_best_and_no_sooner():
    runs, _ = search(coin(16, 20), best=8)
    cold = sorted({run.k for run in own(runs) if run.k < 8}, reverse=True)
    assert cold == [7, 4, 1, -2] and all({run.seed for run in runs if run.k == k} == {0, 1, 2} for k in cold)  # .75 x 1.1 at 0
    runs, _ = search(coin(16, 20), best=-16)  # it goes on getting better: to the end of the lattice
    assert min(run.k for run in own(runs)) == -8
    valley = {run.k for run in own(runs)}
    assert all(valley & {k - 1, k, k + 1} for k in range(-8, 14, 3))  # and leaves out nothing on the way


def test_eight_runs_of_reserved_seeds_at_the_best_rate_end_it():
    runs, _ = search(coin(16, 20), best=8)
    last = runs[-8:]
    assert [run.seed for run in last] == [*RESERVED] and {run.k for run in last} == {best_point(by_point(own(runs)))}
    assert not any(run.seed in RESERVED for run in runs[:-8]) and abs(last[0].k - 8) <= 1


@pytest.mark.parametrize("batch", [2, 8])
def test_it_goes_on_where_it_was_stopped(batch):
    for salt in range(3):
        dies = coin(14.3, 15, salt)
        whole, _ = search(dies, batch=batch)
        edge = [run for run in whole if run.seed > 2]
        for stop in (1, 3, 10, 21, len(whole) - 12, len(whole) - 1):
            first, _ = search(dies, batch=batch, most=stop, shuffle=random.Random(salt))
            again, _ = search(dies, known=first, batch=batch)
            assert len(set(again) ^ set(whole)) <= 2 * batch if stop > len(edge) else set(again) == set(whole)


def test_what_others_have_run_counts():
    """Runs of the same seeds at every rate, as the search before this one made them: the edge is known, and nothing of it is asked."""
    pairs = [(k, seed) for k in (10, 12, 14, 15, 16, 18, 20) for seed in range(8)]
    known = [Seen(k, seed, k < 15 + seed % 2, loss(k, 8) if k < 15 + seed % 2 else C) for k, seed in pairs]
    runs, words = search(lambda k, seed: k >= 15 + seed % 2, known=known)
    assert "within" in words and {run.k for run in runs[len(known) :]} <= {7, 4, 1, -2, 8, 9}
