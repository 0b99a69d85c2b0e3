"""Verdicts on hypotheses: each claim can hold, be refuted and stay open; the tests by hand; what is missing is not judged."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_measures import cell

from suite.evidence import hypotheses
from suite.evidence.hypotheses import Difference, judge, loss_difference, share_difference
from suite.records.store import TABLES, write_package, write_rows
from suite.verdict.best import FRESH

SEEDS = range(FRESH, FRESH + 8)


def losses(mean, noise=0.004, seed=0):
    return pd.Series(mean + np.random.default_rng(seed).normal(scale=noise, size=8), SEEDS)


def verdict(claim, found, quantity="best_loss", margin=0.02):
    row = SimpleNamespace(quantity=quantity, claim=claim, margin=margin)
    return hypotheses._verdict(row, found, hypotheses._p(row, found))


@pytest.mark.parametrize(("claim", "holds", "refuted", "is_open"), [
    ("lower", (-0.05, 0.01), (0.05, 0.01), (-0.01, 0.02)),
    ("higher", (0.05, 0.01), (-0.05, 0.01), (0.01, 0.02)),
    ("same", (0.005, 0.004), (0.06, 0.01), (0.005, 0.02)),
    ("no worse", (-0.10, 0.01), (0.06, 0.01), (0.01, 0.02)),
])  # fmt: skip
def test_every_claim_can_hold_be_refuted_and_stay_open(claim, holds, refuted, is_open):
    assert [verdict(claim, Difference(*one, 7)) for one in (holds, refuted, is_open)] == ["holds", "refuted", "open"]


def test_no_worse_looks_at_the_better_side_of_each_quantity():
    wide, narrow = Difference(1.0, 0.2), Difference(-1.0, 0.2)
    assert verdict("no worse", wide, "window", 0.5) == "holds" and verdict("no worse", narrow, "window", 0.5) == "refuted"
    assert verdict("no worse", wide, "best_loss", 0.5) == "refuted" and verdict("no worse", narrow, "best_loss", 0.5) == "holds"


def test_a_difference_of_losses_is_students_in_pairs_and_equality_is_two_one_sided_tests():
    one, other = losses(0.74), losses(0.75, seed=1)
    found = loss_difference(one, other)
    plain = stats.ttest_rel(one, other)
    assert found.value * other.mean() == pytest.approx((one - other).mean())
    assert 2 * min(found.above(0), found.below(0)) == pytest.approx(plain.pvalue)
    margin = 0.02 * other.mean()
    ends = stats.ttest_rel(one + margin, other, alternative="greater"), stats.ttest_rel(one - margin, other, alternative="less")
    by_hand = max(end.pvalue for end in ends)
    assert hypotheses._p(SimpleNamespace(quantity="best_loss", claim="same", margin=0.02), found) == pytest.approx(by_hand)
    low, high = found.interval
    assert (low * other.mean(), high * other.mean()) == pytest.approx(plain.confidence_interval(0.95))
    assert loss_difference(one.iloc[:4], other.iloc[5:]) is None  # no pairs


def test_the_interval_of_two_shares_covers():
    random, truth, hit, tries = np.random.default_rng(0), (0.9, 0.7), 0, 2000
    for _ in range(tries):
        counts = [(int(random.binomial(n, p)), n) for n, p in zip((25, 40), truth)]
        low, high = share_difference(*counts).interval
        hit += low <= truth[0] - truth[1] <= high
    assert 0.93 < hit / tries < 0.985
    assert share_difference((0, 0), (3, 4)) is None


def folder(path, frames, rows):
    """A results folder with runs of `frontier` and `scale`, and hypotheses of `scale`."""
    columns = {column.name: None for column in TABLES["runs"].columns}
    for name, runs in frames.items():
        (path / name).mkdir()
        rows_of = [columns | row.dropna().to_dict() for _, row in runs.astype(object).iterrows()]
        write_rows(path / name / "runs.csv", TABLES["runs"], rows_of)
        write_package(path / name)
    fixed = {"protocol": "scale", "depth": 100, "fixed": "before"}
    write_rows(path / "hypotheses.csv", TABLES["hypotheses"], [fixed | row for row in rows])
    write_package(path)
    return path


def runs(protocol, params="-", state="mean_dominated", **numbers):
    made = cell(noise=0.004, **numbers).assign(protocol=protocol, params=params)
    made["run_id"] = [f"r{protocol}{numbers['scheme']}{params}{i}" for i in range(len(made))]
    return made.assign(state=[state if outcome == "collapsed" else None for outcome in made["outcome"]])


def test_hypotheses_are_judged_on_the_protocols_cells_and_those_beside_it(tmp_path):
    frames = {
        "frontier": runs("frontier", scheme="plain", floor=0.78),
        "scale": pd.concat([runs("scale", "g=0.1", scheme="gain", floor=0.74), runs("scale", "g=0.3", scheme="gain", floor=0.80),
                            runs("scale", "alpha=0,beta=0.1,sites=both", state="other", scheme="mvsplit", floor=0.741)]),
    }  # fmt: skip
    wanted = [
        {"quantity": "best_loss", "claim": "lower", "scheme": "gain (best)", "over": "plain"},
        {"quantity": "best_loss", "claim": "same", "scheme": "mvsplit beta=0.1", "over": "gain g=0.1", "margin": 0.02},
        {"quantity": "best_loss", "claim": "same", "scheme": "gain g=0.3", "over": "gain g=0.1", "margin": 0.02},
        {"quantity": "equal_deaths", "claim": "lower", "scheme": "mvsplit beta=0.1", "over": "gain g=0.1"},
        {"quantity": "lr50", "claim": "higher", "scheme": "gain g=0.1", "over": "plain"},
        {"quantity": "window", "claim": "no worse", "scheme": "gain g=0.3", "over": "gain g=0.1", "margin": 0.5},
        {"quantity": "best_loss", "claim": "same", "scheme": "layerscale init=0.1", "over": "gain g=0.1", "margin": 0.02},
    ]
    found = judge(folder(tmp_path, frames, wanted), "scale")
    verdicts = {(one.row.quantity, one.row.scheme): one.verdict for one in found}
    assert [verdicts[row["quantity"], row["scheme"]] for row in wanted] == [
        "holds", "holds", "refuted", "holds", "open", "refuted", "not measured"]  # fmt: skip
    known = [one for one in found if one.p is not None]
    assert len(known) == 6 and all(one.adjusted >= one.p for one in known)
    lines = hypotheses.hypotheses_table(found).splitlines()
    assert len(lines) == 9 and sum("| not measured |" in line for line in lines) == 1 and sum("within 2%" in line for line in lines) == 3
    dead = {params: sum(mine["outcome"] == "collapsed") for params, mine in frames["scale"].groupby("params")}
    assert f"| 0 of {dead['alpha=0,beta=0.1,sites=both']} against {dead['g=0.1']} of {dead['g=0.1']} |" in "".join(lines)
