"""The search for a cell's edge, on cells whose truth is known: it ends, finds it, asks for nothing twice, and goes on when stopped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.evidence import stats
from suite.protocol import HOTTEST, KNOWN, LAST, rate
from suite.sweep import frontier
from suite.sweep.frontier import ALL_SEEDS, FIRST_SEEDS, Point, edge, points, wanted


def search(dies, start=12, known=None):
    """All (rate, seed, dead) that the search asks for. dies: whether a seed dies at a point."""
    runs = list(known or [])
    while pairs := wanted(points(runs), start):
        assert len(runs) < 400, "the search does not end"
        for k, seed in pairs:
            assert 0 <= k <= LAST and not any((rate(k), seed) == run[:2] for run in runs), "asked for twice"
            runs.append((rate(k), seed, bool(dies(k, seed))))
    return runs


def sharp(at):
    return lambda k, seed: k >= at


def coin(at, width, salt=0):
    """Seeds with limits of their own about a point."""
    limits = at + width * np.random.default_rng(salt).normal(size=ALL_SEEDS)
    return lambda k, seed: k > limits[seed]


def test_the_lattice():
    assert [rate(k) for k in range(4)] == [1e-3, 1.15e-3, 1.32e-3, 1.52e-3]
    assert rate(LAST) <= HOTTEST < rate(LAST + 1) and len(KNOWN) == LAST + 1
    assert all(float(f"{lr:g}") == lr for lr in KNOWN)  # six digits hold it
    assert points([(1.15e-3, 0, True), (1.2e-3, 0, True)]) == {1: Point(dead=frozenset({0}))}


@pytest.mark.parametrize("at", [0, 1, 2, 5, 12, 13, 14, 20, LAST - 1, LAST, LAST + 1, 99])
@pytest.mark.parametrize("start", [0, 12, 20])
def test_a_sharp_edge_is_found_with_all_seeds_on_both_sides(at, start):
    runs = search(sharp(at), start)
    known = points(runs)
    low, high = edge(known)
    found = stats.critical(*zip(*runs), draws=2)
    if 0 < at <= LAST - LAST % 2:
        assert (low, high) == (at - 1, at) and found.kind == "bracket" and (found.n_low, found.n_high) == (ALL_SEEDS, ALL_SEEDS)
    elif at == 0:
        assert low is None and found.kind == "below"
    else:
        assert found.kind == ("above" if at > LAST - LAST % 2 else "bracket")
    assert len(runs) <= FIRST_SEEDS * (abs(start - min(at, LAST)) // 2 + 5) + 5 * 5


@settings(max_examples=60, deadline=None)
@given(at=st.floats(-1, LAST + 1), width=st.floats(0.05, 4), salt=st.integers(0, 99), start=st.sampled_from((0, 8, 12, 24)))
def test_it_ends_and_every_point_of_the_edge_has_its_seeds(at, width, salt, start):
    runs = search(coin(at, width, salt), start)
    known = points(runs)
    low, high = edge(known)
    between = range(low if low is not None else min(known), (high if high is not None else max(known)) + 1)
    wide = len(between) > frontier.WIDEST
    assert wide or all(len(known[k].seeds) == ALL_SEEDS for k in between)
    if low is not None and low >= 2:
        assert any(k < low and not known[k].dead for k in known)  # one more on the cold side
    assert {k % 2 for k in known if k not in between} <= {0}


def test_an_edge_that_is_too_wide_to_be_one_costs_no_more_seeds():
    runs = search(lambda k, seed: k > 12 and (k + 2 * seed) % 6 < 3)  # at some hot points one seed dies, at the next another
    assert {seed for _, seed, _ in runs} == set(range(FIRST_SEEDS)) and {rate(k) for k in range(14, LAST, 2)} <= {lr for lr, *_ in runs}


def test_a_hole_in_the_frontier_is_looked_at():
    """A cell that lives again at a hotter rate is no bracket: the search goes on past it."""
    runs = search(lambda k, seed: k in (12, 13) or k >= 18)
    found = stats.critical(*zip(*runs), draws=20)
    assert found.kind == "fit" and found.falls and edge(points(runs)) == (11, 18)


def test_it_goes_on_where_it_was_stopped():
    for salt in range(20):
        dies = coin(14.3, 1.5, salt)
        whole = search(dies)
        for stop in (1, 3, 10, 20, len(whole) - 6, len(whole) - 1):
            assert sorted(search(dies, known=whole[:stop])) == sorted(whole)
