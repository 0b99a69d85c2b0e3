"""The page's words on detectors, from a table made here."""

import pytest

from suite.environment import provenance
from suite.evidence.head_to_head import LATER, OURS, POSTED, SIMULATED, TRACE, head_to_head, rows, sentence
from suite.records.csvfile import render
from suite.records.schema import TABLES
from suite.records.store import format_value

TABLE = TABLES["head_to_head"]
SETS = {OURS: (100, 200), LATER: (40, 0), TRACE: (10, 0), SIMULATED + "white": (0, 50), POSTED: (5, 6)}


@pytest.fixture
def folder(tmp_path):
    """Two detectors: one finds nine tenths, the other half and cries wolf in a quarter of the living."""
    lines = []
    for logs, (died, lived) in SETS.items():
        for name, found, wolf in (("loud", 0.5, 0.25), ("good", 0.9, 0.0)):
            row = {"logs": logs, "detector": name, "watches": "loss", "died": died, "found": int(found * died), "early": int(wolf * died),
                   "before": 0, "delay": 3 if died else None, "error": 1 if died else None, "near": 0, "lived": lived,
                   "false_alarms": int(wolf * lived), "rule_digest": "x", **provenance()}  # fmt: skip
            lines.append({column.name: format_value(row.get(column.name), column.type) for column in TABLE.columns})
    (tmp_path / TABLE.path).write_bytes(render(TABLE, sorted(lines, key=lambda row: [row[name] for name in TABLE.key])))
    return tmp_path


def test_the_better_detector_stands_first_with_its_counts(folder):
    assert list(dict.fromkeys(rows(folder)["detector"])) == ["good", "loud"]
    first, second = head_to_head(folder).split("\n\n")
    assert "found, of 100 deaths" in first and "of 40 from step 200 on" in first and "false alarms in 200 runs that lived" in first
    good, loud = first.splitlines()[2:]
    assert good.startswith("| good | loss | 90 [.824, .951] | 36 ") and "| 0 [0, .036] | 0 [0, .018] |" in good
    assert "| 25 [.169, .347] | 50 " in loud
    assert second.splitlines()[2] == "| good | 9 | 0 | 4 | 0 |" and second.splitlines()[3] == "| loud | 5 | 12 | 2 | 1 |"


def test_the_sentence_names_every_detector_and_every_n(folder):
    assert sentence(folder) == ("Deaths found, of 100 runs shown row by row (false alarms, of 200 that lived): good 90 % (0 %); loud 50 % "
                                "(25 %). Of 40 late deaths good finds 36, with 0 false alarms.")  # fmt: skip
