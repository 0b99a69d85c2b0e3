"""Edges measured again: which rows of the rounding table are one, and that the numbers are those of its runs."""

import pandas as pd
import pytest

from suite.environment import ROOT
from suite.evidence.again import edges_again, nudges

TABLE = pd.read_csv(ROOT / "results" / "rounding" / "rounding.csv")


def test_a_row_is_of_one_run_under_many_roundings_or_of_an_edge_under_one():
    single, edge = nudges(ROOT / "results")
    assert not set(single.index) & set(edge.index)
    assert set(single["lr"]) == {0.00936} and len(single) == 24
    assert len(single) + len(edge) == TABLE["counts"].sum()


def test_an_edge_measured_again_lies_between_the_rates_at_which_all_live_and_all_fail():
    found, near = edges_again(ROOT / "results"), TABLE[TABLE["lr"] != 0.00936]
    assert {(one.scheme, one.isa) for one in found} == {("plain", "avx2"), ("mvsplit", "avx2")}
    for one in found:
        mine = near[(near["scheme"] == one.scheme) & (near["isa"] == one.isa) & (near["compiled"] == one.compiled)]
        usable = (mine["outcome"] == "survived").groupby(mine["lr"]).mean()
        assert one.found.n == len(mine) and one.committed.n > 60 and 0 < one.p <= 1
        if one.found.kind == "fit":
            assert usable.index[usable == 1].max() < one.found.rate or usable.iloc[0] < 1
            assert one.found.rate == pytest.approx(usable.index[(usable - 0.5).abs().argmin()], rel=0.15)
