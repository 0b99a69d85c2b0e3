"""How well `detect` judges logs whose truth is known, as tables of the README."""

from __future__ import annotations

from pathlib import Path

from suite.evidence.markdown import table
from suite.records.csvfile import read_rows
from suite.records.schema import TABLES

DETECT = TABLES["detect"]


def detecting(folder: Path) -> str:
    """The tables of deaths and of healthy logs. Every row has its n."""
    rows = read_rows(folder / DETECT.path, DETECT)
    rows.sort(key=lambda row: (row["family"] != "our runs", row["cut"] != "whole", int(row["every"])))
    dead, alive = ([row for row in rows if row["truth"] == truth] for truth in ("dead", "alive"))
    first = table(
        ["logs of runs that died", "logs", "found", "step at most 1 point off", "at most 5", "unknown", "too short", "missed"],
        [[_name(row), row["logs"], *(_share(row[name], row["logs"]) for name in ("dead", "within_1", "within_5")),
          row["unknown"], row["too_short"], row["survived"]] for row in dead],
    )  # fmt: skip
    second = table(
        ["logs of runs that live", "logs", "false alarms", "per 1,000", "unknown"],
        [[_name(row), row["logs"], row["dead"], _per_thousand(int(row["dead"]), int(row["logs"])), row["unknown"]] for row in alive],
    )
    return f"{first}\n\n{second}"


def _name(row: dict[str, str]) -> str:
    every = {"1": "", "2": "every 2nd step", "3": "every 3rd step"}.get(row["every"], f"every {row['every']}th step")
    cut = "" if row["cut"] == "whole" else row["cut"]
    return ", ".join(part for part in (row["family"], every, cut) if part)


def _share(part: str, whole: str) -> str:
    return f"{100 * int(part or 0) / int(whole):.0f} %"


def _per_thousand(n: int, of: int) -> str:
    """A rate; where none was seen, the rate that 95 % of such samples would have shown."""
    return f"{1000 * n / of:.1f}" if n else f"below {3000 / of:.1f}"
