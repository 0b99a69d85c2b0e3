"""What `detect` says of logs that people posted, beside the answers of a careful reader, which were committed before any was judged."""

from __future__ import annotations

import csv
from pathlib import Path

from suite.detect.judge import detect_runs
from suite.evidence.markdown import table
from suite.evidence.online import ANSWERS, answers
from suite.verdict.outcome import DEAD

FIRST = ANSWERS.with_name("first.csv")  # of a results folder: what was said of each at first sight, by the version that had seen none
REFUSED = "refused"
KINDS = {  # by what a careful reader says: outcomes of which one is among the answers; the first kind that fits
    "a loss or gradient that is no number": {"nonfinite"}, "it trained, and the loss rose for good": {"collapsed", "degraded"},
    "nothing happened": {"survived"}, "never learnt, or too little to tell": {"unknown", "too_short", REFUSED},
}  # fmt: skip


def said(path: Path) -> tuple[str, int | None]:
    """(outcome, step of the event or None) of a log; REFUSED where it is, or holds several runs."""
    try:
        (found,) = detect_runs(path)
    except ValueError:
        return REFUSED, None
    return found["outcome"], found["crash_step"]


def right(row: dict[str, str], outcome: str, step: int | None) -> bool:
    """Whether an answer is one of the reader's, and the step of a death where the reader saw it; where that is told by an epoch that
    counts no single rows, any step is."""
    where = row["step_low"].isdigit() and outcome in DEAD
    return outcome in row["expected"].split("|") and (not where or int(row["step_low"]) <= (step or 0) <= int(row["step_high"]))


def verdicts(results: Path) -> list[dict[str, object]]:
    """A row a log: file, kind, expected (outcomes), what is said today, and whether that is right, and what was said at first sight."""
    with open(results / FIRST, encoding="utf-8", newline="") as file:
        first = {row["file"]: (row["outcome"], int(row["step"]) if row["step"] else None) for row in csv.DictReader(file)}
    out = []
    for row in answers(results):
        kind = next(name for name, outcomes in KINDS.items() if outcomes & {*row["expected"].split("|")})
        before, today = first[row["file"]], said((results / ANSWERS).parent / row["file"])
        out.append({"file": row["file"], "kind": kind, "expected": row["expected"], "today": today[0], "first_right": right(row, *before),
                    "today_right": right(row, *today)})  # fmt: skip
    return out


def blind(results: Path) -> str:
    """A table by kind, and what is still wrong."""
    rows = verdicts(results)
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    counted = table(
        ["what a careful reader says", "logs", "right at first sight", "right today, having seen them"],
        ([kind, len(mine), *(sum(map(bool, (row[when] for row in mine))) for when in ("first_right", "today_right"))]
         for kind, mine in {**kinds, "all": rows}.items() if mine),
    )  # fmt: skip
    wrong = [f"{row['file']} ({row['today']}, not {row['expected'].replace('|', ' or ')})" for row in rows if not row["today_right"]]
    return counted + ("\n\nStill wrong: " + "; ".join(wrong) + "." if wrong else "")
