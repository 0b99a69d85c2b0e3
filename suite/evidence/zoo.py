"""How often `Monitor` is wrong of small networks that learn, and how late of runs that die: a table of results/detect/zoo.csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from suite.evidence.markdown import table
from suite.evidence.shares import share
from suite.records.store import read


def zoo(folder: Path) -> str:
    """Two tables: of networks that learn, where every alarm is wrong, and of runs that die."""
    rows = read(folder, "zoo")
    alive, dead = rows[rows["truth"] == "alive"], rows[rows["truth"] == "dead"]
    n = len(alive)
    counts = {
        "an alarm that stands": alive["alarms"] > alive["withdrawn"], "an alarm that was withdrawn": alive["withdrawn"] > 0,
        "called equal by cosines alone, the rule before": alive["by_cosine"].notna(),
    }  # fmt: skip
    first = table(
        [f"networks that learn, {alive['network'].nunique()} kinds, {alive['seed'].nunique()} seeds each", f"of {n}", "kinds"],
        ([what, f"{k.sum()} {share(int(k.sum()), n)}", "; ".join(sorted({*alive["network"][k]})) or "-"] for what, k in counts.items()),
    )  # fmt: skip  # fmt: skip
    second = table(
        ["runs that die, measured at step 1 and every 50th", "first cosine near 1 at step", "\"tokens equal\" at", "\"loss jumped\" at"],
        ([f"{row.network.replace(' - ', ', ')}, rate {row.lr:g}", *(_step(at) for at in (row.by_cosine, row.tokens_equal, row.loss_jumped))]
         for row in dead.itertuples()),
    )  # fmt: skip
    return f"{first}\n\n{second}"


def _step(at) -> str:
    return "-" if pd.isna(at) else str(at)
