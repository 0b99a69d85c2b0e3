"""What happened at each death: which quantity left its calm range first, in which block, and what kind of state came of it.

From the audit of every step around a crash. Calm are the steps of its window that lie well before the crash; a quantity leaves when it is
outside its calm range for some steps in a row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from suite.evidence.hazard import died_healthy
from suite.records.tables import RowsByRun, Store
from suite.verdict.outcomes import DEAD
from suite.verdict.signature import SIGNATURE_EARLY, SIGNATURE_LATE
from suite.verdict.smooth import robust_sd

CALM_UNTIL = 30  # steps before the crash at which calm ends; the longest growth that we have seen took 25 (design, section 2)
LEAVES = 4.0  # scatters from the calm median that count as leaving; a normal series does so once in 16,000 steps
STAYS = 3  # steps in a row that it must be outside, so that a stray step or two is no precursor
ENOUGH = 5  # calm steps that a range needs
QUANTITIES = {  # name -> site of the audit, column
    "g_mean": ("attn", "g_mean"), "g_ctr": ("attn", "g_ctr"), "A": ("attn", "amplification"), "1-TCS": ("attn", "tcs"),
    "rho": ("attn", "rho"), "r_tr": ("attn", "r_tr"), "mu_eff": ("attn", "mu_eff"), "Q gradient": ("attn", "q_grad"),
    "K gradient": ("attn", "k_grad"), "update rms": ("attn", "update_rms"), "W_2 gradient": ("ffn", "w2_grad"),
}  # fmt: skip
CURVE = {"loss": "loss", "gradient norm": "grad_norm"}
FORWARD, BACKWARD = "1-TCS", "g_ctr"  # by which the block is found where the trunk, and where the writers' gradient, goes first


def leaves(values: pd.Series, crash: int) -> float:
    """The step, counted from `crash`, at which a positive series (by step) leaves its calm range; nan if it does not.

    Looked at are the steps from CALM_UNTIL before the crash to SIGNATURE_EARLY behind it; calm are those before. The range is LEAVES
    scatters (1.4826 times the median absolute deviation) about the median of the logarithm.
    """
    series = np.log(values[values > 0])
    calm = series[series.index < crash - CALM_UNTIL]
    late = series[(series.index >= crash - CALM_UNTIL) & (series.index < crash + SIGNATURE_EARLY + STAYS)]
    if len(calm) < ENOUGH:
        return float("nan")
    scatter = robust_sd(calm)
    outside = (late - calm.median()).abs() > LEAVES * scatter
    for step in outside.index[outside & (outside.index <= crash + SIGNATURE_EARLY)]:
        if outside.loc[step : step + STAYS - 1].sum() == STAYS:
            return float(step - crash)
    return float("nan")


def deaths(folder: Path) -> list[dict[str, object]]:
    """One entry for each death with a window around it, in the order of runs.csv.

    row: its row of runs.csv; healthy: whether it was when it died; left: quantity -> step from the crash at which its median over the
    last quarter of the blocks (or the curve) left, nan if it did not; first: the quantities that left first; block_forward,
    block_backward: (block, step) where the trunk's similarity and where the writers' gradient left first, None if nowhere; g_mean_rise:
    the largest deep g_mean of the event over its calm median; tcs: deep median at the window's end.
    """
    parts, out = RowsByRun(folder), []
    for row in Store(folder).runs():
        if row["outcome"] not in DEAD:
            continue
        window = _window(parts.frame("audit", row))
        if window.empty:
            continue
        crash, depth = int(row["crash_step"]), int(row["depth"])
        left = {name: leaves(series, crash) for name, series in _series(parts.frame("curves", row), window, depth, crash)}
        first = min((step for step in left.values() if step == step), default=None)
        g_mean, tcs = (_deep(window, depth, "attn", name) for name in ("g_mean", "tcs"))
        calm = g_mean[g_mean.index < crash - CALM_UNTIL].median()
        out.append({
            "row": row, "healthy": died_healthy(row, parts.rows("evals", row)), "left": left,
            "first": [name for name, step in left.items() if step == first],
            "block_forward": _first_block(window, FORWARD, crash), "block_backward": _first_block(window, BACKWARD, crash),
            "g_mean_rise": g_mean.max() / calm if calm > 0 else float("nan"), "tcs": float(tcs.iloc[-SIGNATURE_LATE // 3 :].median()),
        })  # fmt: skip
    return out


def strided(audit: pd.DataFrame, depth: int) -> dict[str, pd.Series]:
    """Quantity -> deep median by step, at the steps that every run is audited at, also those of them within the window around a crash;
    empty where there is none."""
    rows = _window(audit, dense=False)
    stride = rows["step"].drop_duplicates().sort_values().diff().median()
    if stride == stride:
        within = _window(audit)
        rows = pd.concat([rows, within[within["step"] % stride == 0]])
    return {} if rows.empty else {name: _positive(_deep(rows, depth, *where), name) for name, where in QUANTITIES.items()}


def _window(audit: pd.DataFrame, dense: bool = True) -> pd.DataFrame:
    """The rows over all tokens of the steps around a crash (or of all others)."""
    wanted = sorted({column for _, column in QUANTITIES.values()})
    return audit.loc[(audit["window"] == dense) & (audit["segment"] == "all"), ["step", "layer", "site", *wanted]]


def _positive(series: pd.Series, name: str) -> pd.Series:
    return 1 - series if name == "1-TCS" else series


def _deep(window: pd.DataFrame, depth: int, site: str, column: str) -> pd.Series:
    """Median over the last quarter of the blocks, by step."""
    rows = window[(window["site"] == site) & (window["layer"] >= 0.75 * depth)]
    return rows.groupby("step")[column].median()


def _series(curve: pd.DataFrame, window: pd.DataFrame, depth: int, crash: int):
    """(name, series by step) of the curve and of the audit's quantities over the window."""
    for name, column in CURVE.items():
        series = curve.set_index("step")[column]
        yield name, series[series.index >= window["step"].min()]
    for name, (site, column) in QUANTITIES.items():
        yield name, _positive(_deep(window, depth, site, column), name)


def _first_block(window: pd.DataFrame, name: str, crash: int) -> tuple[int, float] | None:
    """(block, step) of the layer, of those that every step has, in which a quantity left first; the deepest of several."""
    site, column = QUANTITIES[name]
    rows = window[window["site"] == site]
    seen = rows.groupby("layer")["step"].nunique()
    found = []
    for layer in seen.index[seen == seen.max()]:
        series = rows[rows["layer"] == layer].set_index("step")[column].sort_index()
        if (step := leaves(_positive(series, name), crash)) == step:
            found.append((step, -int(layer)))
    return (-min(found)[1], min(found)[0]) if found else None
