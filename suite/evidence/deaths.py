"""What happened at each death: which quantity left its calm range first, in which block, and what kind of state came
of it.

From the audit of every step around a crash. Calm are the steps of its window that lie well before the crash; a
quantity leaves when it is outside its calm range for some steps in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from suite.evidence.hazard import with_health
from suite.records.store import RowsByRun
from suite.verdict.outcome import DEAD
from suite.verdict.signature import SIGNATURE_EARLY
from suite.verdict.smooth import MAD_TO_SD

CALM_UNTIL = 30  # steps before the crash at which calm ends; the longest growth that we have seen took 25
LEAVES = 4.0  # scatters from the calm median that count as leaving; a normal series does so once in 16,000 steps
STAYS = 3  # steps in a row that it must be outside, so that a stray step or two is no precursor
ENOUGH = 5  # calm steps that a range needs
QUANTITIES = {  # name -> site of the audit, column
    "g_mean": ("attn", "g_mean"), "g_ctr": ("attn", "g_ctr"), "A": ("attn", "amplification"), "1-TCS": ("attn", "tcs"),
    "rho": ("attn", "rho"), "r_tr": ("attn", "r_tr"), "mu_eff": ("attn", "mu_eff"), "Q gradient": ("attn", "q_grad"),
    "K gradient": ("attn", "k_grad"), "update rms": ("attn", "update_rms"), "W_2 gradient": ("ffn", "w2_grad"),
}  # fmt: skip
CURVE = {"loss": "loss", "grad_norm": "gradient norm"}
FORWARD, BACKWARD = "tcs", "g_ctr"  # by which the block is found where the trunk, and where the writers' gradient, goes first


@dataclass(frozen=True)
class Death:
    """A death with a window around it.

    run: its row of runs.csv, with health; left: by quantity the step from the crash at which its median over the last
    quarter of the blocks (or the curve) left, nan if it did not; forward, backward: (block, step) where the trunk's
    similarity and where the writers' gradient left first, None if nowhere.
    """

    run: tuple
    left: pd.Series
    forward: tuple[int, float] | None
    backward: tuple[int, float] | None

    @property
    def first(self) -> list[str]:
        """The quantities that left first."""
        return list(self.left.index[self.left == self.left.min()])


def leaves(table: pd.DataFrame, crash: int) -> pd.Series:
    """By column of a table of positive values by step: the step, counted from `crash`, at which it leaves its calm
    range, or nan.

    Looked at are the steps from CALM_UNTIL before the crash to SIGNATURE_EARLY behind it; calm are those before. The
    range is LEAVES scatters (1.4826 times the median absolute deviation) about the median of the logarithm.
    """
    logs = np.log(table.where(table > 0))
    calm = logs[logs.index < crash - CALM_UNTIL]
    late = logs.reindex(range(crash - CALM_UNTIL, crash + SIGNATURE_EARLY + STAYS))
    scatter = MAD_TO_SD * (calm - calm.median()).abs().median()
    outside = (late - calm.median()).abs() > LEAVES * scatter
    stays = outside[::-1].astype(float).rolling(STAYS).sum()[::-1] == STAYS
    found = stays.any() & (calm.count() >= ENOUGH)
    return (stays.idxmax() - crash).where(found).astype(float)


def deaths(folder: Path) -> list[Death]:
    """The deaths of a folder's newest version that have a window around them, in the order of runs.csv."""
    parts, out, runs = RowsByRun(folder), [], with_health(folder)
    for run in runs[runs["outcome"].isin(DEAD)].itertuples():
        window, crash = _of_all_tokens(parts.frame("audit", run._asdict()), dense=True), int(run.crash_step)
        if not window.empty:
            curve = parts.frame("curves", run._asdict()).set_index("step")[list(CURVE)].rename(columns=CURVE)
            series = pd.concat([curve[curve.index >= window["step"].min()], _deep(window, run.depth)], axis=1)
            out.append(Death(run, leaves(series, crash), *(_first_block(window, column, crash) for column in (FORWARD, BACKWARD))))
    return out


def strided(audit: pd.DataFrame, depth: int) -> pd.DataFrame:
    """Quantities by step, medians over the deep blocks, at the steps that every run is audited at, also those of them
    within the window around a crash; without rows where there is none."""
    rows, within = (_of_all_tokens(audit, dense) for dense in (False, True))
    stride = rows["step"].drop_duplicates().sort_values().diff().median()
    return _deep(pd.concat([rows, within[within["step"] % stride == 0]]), depth)


def _of_all_tokens(audit: pd.DataFrame, dense: bool) -> pd.DataFrame:
    """The rows over all tokens of the steps around a crash (or of all others), similarities as 1 less them."""
    rows = audit[(audit["window"] == dense) & (audit["segment"] == "all")]
    return rows.assign(tcs=1 - rows["tcs"])


def _deep(rows: pd.DataFrame, depth: int) -> pd.DataFrame:
    """Quantities by step: medians over the last quarter of the blocks."""
    where = [(column, site) for site, column in QUANTITIES.values()]
    medians = rows[rows["layer"] >= 0.75 * depth].groupby(["step", "site"])[[column for column, _ in where]].median()
    return medians.unstack("site").reindex(columns=pd.MultiIndex.from_tuples(where)).set_axis(list(QUANTITIES), axis=1)


def _first_block(window: pd.DataFrame, column: str, crash: int) -> tuple[int, float] | None:
    """(block, step) of the layer, of those that every step has, in which a column of attention left first; the
    deepest of several."""
    rows = window[window["site"] == "attn"]
    steps = rows["layer"].value_counts()
    table = rows.pivot(index="step", columns="layer", values=column)[sorted(steps.index[steps == steps.max()])]
    left = leaves(table, crash)
    return (int(left.index[left == left.min()].max()), left.min()) if left.notna().any() else None
