"""The logs that people posted: whole, of the readers who collected them, and counted as they are."""

import csv

import pytest

from suite.environment import ROOT
from suite.evidence import blind
from suite.evidence.online import ANSWERS, answers, posted
from suite.verdict.outcome import OUTCOMES

FOLDER = (ROOT / "results" / ANSWERS).parent
ROWS = answers(ROOT / "results")


def test_every_log_has_an_answer_and_a_first_verdict():
    files = {path.name for path in FOLDER.iterdir()} - {ANSWERS.name, blind.FIRST.name}
    first = list(csv.DictReader((ROOT / "results" / blind.FIRST).read_text().splitlines()))
    assert files == {row["file"] for row in ROWS} == {row["file"] for row in first} and len(files) == len(ROWS) == 40
    for row in ROWS:
        assert {*row["expected"].split("|")} <= {*OUTCOMES, "unknown", blind.REFUSED} and row["source"] and row["why"]
        assert bool(row["step_low"]) == bool(row["step_high"]) and float(row["step_low"] or 0) <= float(row["step_high"] or 0)
    assert {row["outcome"] for row in first} <= {*OUTCOMES, "unknown", blind.REFUSED}


@pytest.mark.parametrize(("expected", "low", "high", "outcome", "step", "right"), [
    ("nonfinite", "90", "100", "nonfinite", 100, True), ("nonfinite", "90", "100", "nonfinite", 101, False),
    ("nonfinite", "90", "100", "survived", None, False), ("collapsed|degraded", "5", "6", "degraded", 5, True),
    ("degraded", "0.11", "0.18", "degraded", 12, True), ("survived|too_short", "", "", "too_short", None, True),
    ("unknown", "438", "438", "unknown", 441, True), ("refused", "", "", "survived", None, False),
])  # fmt: skip
def test_an_answer_is_right_by_outcome_and_step(expected, low, high, outcome, step, right):
    assert blind.right({"expected": expected, "step_low": low, "step_high": high}, outcome, step) == right


def test_what_is_still_wrong_is_what_the_page_says():
    """Whoever mends one of the two has a better page to write."""
    rows = blind.verdicts(ROOT / "results")
    assert {row["file"][:2] for row in rows if not row["today_right"]} == {"13", "32"}
    assert sum(row["first_right"] for row in rows) == 33
    text = blind.blind(ROOT / "results")
    assert "| all | 40 | 33 | 38 |" in text and "Still wrong: 13-" in text


def test_the_logs_that_detectors_are_shown_are_those_whose_end_a_reader_is_sure_of():
    shown = {log.name: log for log in posted(ROOT / "results")}
    for row in ROWS:
        outcomes = {*row["expected"].split("|")}
        if row["file"] in shown:
            assert "nonfinite" not in outcomes and not ("survived" in outcomes and outcomes & {"collapsed", "degraded"})
            assert (shown[row["file"]].crash is not None) == bool(outcomes & {"collapsed", "degraded"})
    assert sum(log.crash is not None for log in shown.values()) >= 5 <= sum(log.crash is None for log in shown.values())
