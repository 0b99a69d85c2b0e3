"""Which detector finds a death as it happens, and which cries wolf: tables of results/detect/head_to_head.csv, and the sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from suite.evidence.markdown import table
from suite.evidence.online import LATE, LEAD
from suite.evidence.shares import share
from suite.records.store import read

OURS, SIMULATED, POSTED = "our runs", "simulated: ", "posted logs"
LATER = f"our deaths from step {LATE} on"
TRACE = SIMULATED + "the paper's trace"
MINE = " (ours)"  # behind the names of our own
QUIET = 0.01  # of the runs that lived: a detector with fewer false alarms rarely cries wolf


def rows(folder: Path) -> pd.DataFrame:
    """The table, by set of logs; a detector that is right of more of our runs first."""
    found = read(folder, "head_to_head")
    right = found["found"] - found["early"] - found["false_alarms"]
    order = right[found["logs"] == OURS].set_axis(found["detector"][found["logs"] == OURS]).sort_values(ascending=False, kind="stable")
    place = found["detector"].map({name: i for i, name in enumerate(order.index)})
    return found.assign(place=place).sort_values(["place", "logs"], kind="stable")


def of(rows: pd.DataFrame, logs: str) -> pd.DataFrame:
    """The rows of one set of logs, by detector."""
    return rows[rows["logs"] == logs].set_index("detector")


def head_to_head(folder: Path) -> str:
    """The tables of our runs, and of logs that people posted and simulated ones. Every row has its n."""
    found = rows(folder)
    late, trace, posted = of(found, LATER), of(found, TRACE), of(found, POSTED)
    first = table(
        ["shown our runs, row by row", "looks at", f"found, of {_n(found, OURS, 'died')} deaths",
         f"of {_n(found, LATER, 'died')} from step {LATE} on",
         f"alarm more than {LEAD} steps too early", f"false alarms in {_n(found, OURS, 'lived')} runs that lived", "alarm before the death",
         "steps behind it (median)", "death placed at most 5 steps off"],
        ([name, row.watches, f"{row.found} {share(row.found, row.died)}", f"{late.found[name]} {share(late.found[name], late.died[name])}",
          f"{row.early} {share(row.early, row.died)}", f"{row.false_alarms} {share(row.false_alarms, row.lived)}", _before(row),
          "-" if pd.isna(row.delay) else f"{row.delay:g}", f"{row.near} of {row.found}"]
         for name, row in of(found, OURS).iterrows()),
    )  # fmt: skip
    families = [logs for logs in found["logs"].unique() if logs.startswith(SIMULATED) and logs != TRACE]
    alive = {logs: of(found, logs) for logs in families}
    second = table(
        ["shown other logs", f"simulated: found, of {_n(found, TRACE, 'died')} like the paper's trace",
         *(f"{logs.removeprefix(SIMULATED)}: false alarms in {_n(found, logs, 'lived')}" for logs in families),
         f"posted: found, of {_n(found, POSTED, 'died')}", f"posted: false alarms in {_n(found, POSTED, 'lived')}"],
        ([name, trace.found[name], *(alive[logs].false_alarms[name] for logs in families), posted.found[name], posted.false_alarms[name]]
         for name in of(found, OURS).index if name in trace.index),
    )  # fmt: skip
    return f"{first}\n\n{second}"


def _n(found: pd.DataFrame, logs: str, what: str) -> int:
    return int(found[found["logs"] == logs][what].max())


def _before(row) -> str:
    """How many alarms came before the death, and by how much."""
    return str(row.before) + ("" if pd.isna(row.lead) else f", by {row.lead:g} (median)")


def sentence(folder: Path) -> str:
    """Who finds our deaths, and at what price, the best first; and what the best of the others that rarely cry wolf finds of late ones."""
    found = rows(folder)
    ours, late = of(found, OURS), of(found, LATER)
    told = [f"{_short(name)} {100 * row.found / row.died:.0f} % ({_percent(row.false_alarms, row.lived)})" for name, row in ours.iterrows()]
    quiet = [name for name, row in ours.iterrows() if MINE not in name and row.false_alarms <= QUIET * row.lived]
    out = (f"Deaths found, of {ours['died'].max()} runs shown row by row (false alarms, of {ours['lived'].max()} that lived): "
           f"{'; '.join(told)}.")  # fmt: skip
    if quiet:
        best = max(quiet, key=lambda name: late.found[name])
        out += f" Of {late.died[best]} late deaths {_short(best)} finds {late.found[best]}, with {ours.false_alarms[best]} false alarms."
    return out


def _short(name: str) -> str:
    """A detector by who uses it, where one does."""
    found = re.search(r"\((.*)\)$", name)
    return name if not found else name.removesuffix(MINE) if MINE in name else found[1]


def _percent(k: int, n: int) -> str:
    return f"{100 * k / n:.0f} %" if k == 0 or k / n > 0.01 else f"{100 * k / n:.1f} %"
