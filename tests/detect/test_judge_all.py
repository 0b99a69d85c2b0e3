"""The bench of `detect`: its logs are what they say, and the committed table is of the rule of today."""

import numpy as np
import pytest
from judge_all import DETECT, SEEDS, groups, judged, own, rule_digest

from suite.detect.simulated import FAMILIES, healthy, paper_like
from suite.environment import ROOT
from suite.records.csvfile import read_rows
from suite.records.package import PACKAGE, package_text

FOLDER = ROOT / "results" / "detect"
committed = pytest.mark.skipif(not FOLDER.is_dir(), reason="no table of detect is committed")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_log_does_not_end_above_where_it_was(family):
    """Held by medians of quarters, not by the rule: a family whose mean rose would teach the rule to be blind."""
    rises = []
    for seed in range(60):
        steps, loss, at = healthy(family, seed)
        assert at is None and len(steps) == len(loss) >= 30 and np.isfinite(loss).all()
        quarter = len(loss) // 4
        rises.append(np.median(loss[-quarter:]) - np.median(loss[:quarter]))
    assert np.mean(np.array(rises) <= 0) >= (0.7 if "AR" in family else 0.8)


def test_the_papers_trace_jumps_where_it_says():
    steps, loss, at = paper_like(3)
    first = int(np.searchsorted(steps, at))
    assert loss[:first].max() + 0.5 < loss[first:].min()


def test_counts_and_errors_of_a_group():
    steps = 10 * np.arange(1, 201)
    noise = 0.02 * np.random.default_rng(0).standard_normal(200)
    dead = np.where(steps < 1010, 0.8, 2.0) + noise
    nan = np.where(steps < 1010, 0.8, np.nan)
    alive, cut = (steps, 0.8 + noise, 1010), (steps[:102], dead[:102], 1010)
    row = judged([(steps, dead, 1010), (steps, dead, 1040), (steps, nan, 1010), alive, cut])
    assert (row["logs"], row["dead"], row["within_1"], row["within_5"], row["worst"], row["too_few"]) == (5, 3, 2, 3, 3, 1)


@committed
def test_the_committed_table_is_of_todays_rule_and_of_all_groups():
    assert (FOLDER / PACKAGE).read_text(encoding="utf-8") == package_text(FOLDER)
    rows = read_rows(FOLDER / DETECT.path, DETECT)
    assert {row["rule_digest"] for row in rows} == {rule_digest()}, "measure again: PYTHONPATH=. python results/detect/judge_all.py"
    assert {row["family"] for row in rows} == {"our runs", "the paper's trace", *FAMILIES}
    assert {int(row["logs"]) for row in rows if row["family"] != "our runs"} == {SEEDS}
    assert [int(row["logs"]) for row in rows if row["truth"] == "dead" and row["cut"] == "whole" and row["every"] == "1"][0] == len(
        own(ROOT / "results", dead=True))  # fmt: skip


@committed
@pytest.mark.slow
@pytest.mark.timeout(1200)  # all of the table
def test_the_committed_table_comes_out_again():
    rows = read_rows(FOLDER / DETECT.path, DETECT)
    for name, cases in groups(ROOT / "results"):
        (row,) = (row for row in rows if all(row[key] == str(value) for key, value in name.items()))
        assert {key: "" if value is None else str(value) for key, value in judged(cases).items()}.items() <= row.items()
