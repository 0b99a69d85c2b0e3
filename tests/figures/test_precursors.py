"""When a quantity leaves its calm range before or after a crash."""

import math

import numpy as np
import pandas as pd
import pytest

from paper_figures.precursors import leaves

CRASH = 100


def series(change=None):
    steps = np.arange(CRASH - 30, CRASH + 31)
    values = np.exp(0.1 * np.sin(2.4 * steps))  # restless, but never four scatters out
    return change(pd.Series(values, steps)) if change else pd.Series(values, steps)


def jump(at, until=1000, by=10.0):
    return series(lambda s: s.where((s.index < at) | (s.index > until), s * by))


@pytest.mark.parametrize("offset", [-10, -3, 0, 4, 10])
def test_a_lasting_jump_is_dated(offset):
    assert leaves(jump(CRASH + offset), CRASH) == offset
    assert leaves(1 / jump(CRASH + offset), CRASH) == offset  # down as well as up


def test_what_is_no_departure():
    assert math.isnan(leaves(series(), CRASH))
    assert math.isnan(leaves(jump(CRASH - 5, until=CRASH - 4), CRASH))  # two stray steps
    assert math.isnan(leaves(jump(CRASH + 11), CRASH))  # later than is asked
    assert math.isnan(leaves(jump(CRASH - 5, by=1.1), CRASH))  # within the scatter
    assert math.isnan(leaves(series()[lambda s: s.index > CRASH - 14], CRASH))  # too little calm to judge by


def test_a_longer_series_is_judged_by_the_window_alone():
    far = pd.Series(1e6, np.arange(1, CRASH - 30))
    assert leaves(pd.concat([far, jump(CRASH - 3)]), CRASH) == -3
