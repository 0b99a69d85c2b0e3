"""How well `detect` judges logs whose truth is known, as tables."""

from __future__ import annotations

from pathlib import Path

from suite.evidence.hazard import poisson_interval
from suite.evidence.markdown import table
from suite.records.store import read


def detecting(folder: Path) -> str:
    """The tables of deaths and of healthy logs. Every row has its n."""
    rows = read(folder, "detect").fillna({"within_1": 0, "within_5": 0})
    ours, whole = rows["family"] == "our runs", rows["cut"] == "whole"
    rows = rows.assign(later=~ours, shorter=~whole).sort_values(["later", "shorter", "every"], kind="stable")
    first = table(
        ["logs of runs that died", "logs", "found", "step at most 1 point off", "at most 5", "unknown", "too short", "missed"],
        ([_name(row), row.logs, *(f"{100 * n / row.logs:.0f} %" for n in (row.dead, row.within_1, row.within_5)),
          row.unknown, row.too_short, row.survived] for row in rows[rows["truth"] == "dead"].itertuples()),
    )  # fmt: skip
    second = table(
        ["logs of runs that survived", "logs", "false alarms", "per 1,000", "unknown"],
        ([_name(row), row.logs, row.dead, _per_thousand(row.dead, row.logs), row.unknown]
         for row in rows[rows["truth"] == "alive"].itertuples()),
    )  # fmt: skip
    return f"{first}\n\n{second}"


def _name(row) -> str:
    every = {1: "", 2: "every 2nd step", 3: "every 3rd step"}.get(row.every, f"every {row.every}th step")
    return ", ".join(part for part in (row.family, every, "" if row.cut == "whole" else row.cut) if part)


def _per_thousand(n: int, of: int) -> str:
    """A rate with the exact interval of a Poisson count, which none is too."""
    low, high = poisson_interval(n)
    return f"{1000 * n / of:.1f} [{1000 * low / of:.1f}, {1000 * high / of:.1f}]"
