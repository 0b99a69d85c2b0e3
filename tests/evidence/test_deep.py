"""The cells of the table of the paper's own depths, in words."""

from collections import Counter

import pandas as pd

from suite.environment import ROOT
from suite.evidence.deep import describe
from suite.evidence.markdown import grid
from suite.presets import PROTOCOLS


def row(outcome, loss=0.7, crash=None, late=None):
    return {"outcome": outcome, "heldout_loss": loss, "crash_step": crash, "late_step": late}


def described(rows):
    return describe(pd.DataFrame(rows).astype({"crash_step": "Int64", "late_step": "Int64"}))


def test_a_cell_names_its_fates_with_steps_and_losses():
    assert grid({25: "25 blocks", 50: "50 blocks"}, {("plain", 50): "x"}).splitlines()[-1] == "| plain | - | x |"
    assert described([row("survived"), row("survived", 0.9)]) == "2 of 2 survived, 0.800 (0.700 to 0.900)"
    rows = [row("collapsed", 2.0, 120), row("nonfinite", None, 80), row("stuck", 1.5), row("survived", 0.72)]
    assert described(rows) == "2 of 4 dead (steps 80, 120); 1 of 4 stuck or untrained; 1 of 4 survived, 0.720"


def test_a_run_with_an_event_behind_the_horizon_lives_but_lends_its_loss_to_no_mean():
    rows = [row("survived", 1.34, late=602), row("survived", 0.73)]
    assert described(rows) == "2 of 2 survived, one falling at step 602, behind the horizon, 0.730"
    assert described(rows[:1]) == "1 of 1 survived, one falling at step 602, behind the horizon"


def test_what_the_readme_says_of_400_and_1000_blocks_is_the_tables():
    """Read from runs.csv alone: lives, and held-out losses of the living, by scheme, parameters, depth and rate."""
    runs = pd.read_csv(ROOT / "results" / "deep" / "runs.csv")
    cool, middle, hot = sorted(set(runs.lr))
    assert Counter(runs.depth) == {400: 45, 1000: 4}  # 5 schemes, 3 rates, 3 seeds; one seed of 4 cells
    runs["live"] = runs.outcome == "survived"
    at_400 = runs[runs.depth == 400]
    lives = at_400.groupby(["lr", "scheme"]).live.sum()
    assert (lives[cool] == 3).all() and all((lives[:, scheme] == 3).all() for scheme in ("layerscale", "rezero", "deepnorm"))
    assert (lives[middle, "plain"], lives[middle, "mvsplit"], lives[hot, "plain"], lives[hot, "mvsplit"]) == (3, 2, 0, 1)
    well = at_400[at_400.live & at_400.late_step.isna()].groupby(["lr", "scheme"]).heldout_loss
    assert well.mean().idxmax() == (middle, "plain") and well.min()[middle, "plain"] > well.max().drop((middle, "plain")).max()
    at_1000 = runs[runs.depth == 1000]
    assert {(row.scheme, "beta=0.03" in str(row.params)) for row in at_1000[at_1000.live].itertuples()} == {
        ("layerscale", False), ("mvsplit", True)}  # fmt: skip
    fallen = at_1000[~at_1000.live]
    assert set(fallen.scheme) == {"plain", "mvsplit"} and all(fallen.outcome == "untrained")
    for row in fallen.itertuples():
        curve = pd.read_csv(ROOT / "results" / "deep" / "curves" / f"{row.scheme}-L1000" / f"{row.run_id}.csv.gz")
        loss = curve.set_index("step").loss.rolling(11, center=True).median()
        lowest, back = loss.idxmin(), loss[loss.idxmin():].gt(0.95 * row.constant_loss).idxmax()
        assert loss[lowest] < 0.85 * row.constant_loss < 0.95 * row.constant_loss < loss[back:].min()
        assert abs(back - PROTOCOLS["deep"].warmup) <= 10
