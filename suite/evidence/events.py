"""What the audit shows of each crash, as one row of numbers a run: how far gradients rise and fall, and how tokens line up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from suite.evidence.deaths import leaves
from suite.evidence.hazard import with_health
from suite.records.store import RowsByRun
from suite.verdict.outcome import DEAD
from suite.verdict.signature import SIGNATURE_EARLY, fall, rise

ACTIVE = 0.5  # A - 1 above which the paper calls a layer active
DEEP = 0.75  # of the depth, from which a median is taken, as in the paper's published trace
SITES = ("attn", "ffn")
RISES = {"g_mean": SITES, "g_ctr": SITES, "r_tr": SITES}
FALLS = {"q_grad": SITES[:1], "k_grad": SITES[:1]}
LEVELS = {"rho": "attn", "mu_eff": "attn", "tcs": "attn"}  # median before the event, and behind it


def through_origin(x, y) -> tuple[float, float]:
    """Slope of the least-squares line through the origin, and R2 about the mean; nan with fewer than two points."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 2 or not (x**2).sum():
        return float("nan"), float("nan")
    slope, spread = (x * y).sum() / (x**2).sum(), ((y - y.mean()) ** 2).sum()
    return float(slope), float(1 - ((y - slope * x) ** 2).sum() / spread) if spread else float("nan")


def events(folders: list[Path]) -> pd.DataFrame:
    """A row for each death that was audited at every step around it: its row of runs.csv `with_health`, and of the last quarter of the
    blocks, by site:

    g_mean_attn, ...: largest median of the event over the median before it; q_grad_attn, k_grad_attn: median before over the smallest;
    rho, mu_eff, tcs: (before, behind) medians as rho_before, rho_after, ...; g_mean_left, mu_eff_left: step from the crash at which it left
    its calm range, nan where it did not; slope_attn, slope_ffn, top_attn, top_ffn: of all audited blocks where g_mean of W_O is largest,
    the slope of A - 1 over (T - 1) kappa_hat of the active ones, and the largest A - 1 as a share of T - 1.
    """
    return pd.DataFrame([row for folder in folders for row in _events(folder)])


def _events(folder: Path) -> Iterator[dict]:
    runs, parts = with_health(folder), RowsByRun(folder)
    for run in runs[runs["outcome"].isin(DEAD)].to_dict("records"):
        audit = parts.frame("audit", run)
        window = audit[audit["window"] & (audit["segment"] == "all")].replace([np.inf, -np.inf], np.nan)
        if len(window):
            yield run | _numbers(window, run)


def _numbers(window: pd.DataFrame, run: dict) -> dict[str, float]:
    """The numbers of one crash from the rows around it."""
    crash, out = int(run["crash_step"]), {}
    deep = window[window["layer"] >= DEEP * run["depth"]].groupby(["site", "step"])
    medians = {site: deep[[*RISES, *FALLS, *LEVELS]].median().loc[site] for site in SITES}
    for names, measure in ((RISES, rise), (FALLS, fall)):
        for name, sites in names.items():
            out |= {f"{name}_{site}": measure(medians[site].index, medians[site][name], crash) for site in sites}
    for name, site in LEVELS.items():
        series = medians[site][name]
        out[f"{name}_before"] = series[series.index < crash - SIGNATURE_EARLY].median()
        out[f"{name}_after"] = series[series.index > crash + SIGNATURE_EARLY].median()
    left = leaves(medians["attn"][["g_mean", "mu_eff"]], crash)
    out |= {f"{name}_left": left[name] for name in left.index}
    g_mean = medians["attn"]["g_mean"]
    near = g_mean[abs(g_mean.index - crash) <= SIGNATURE_EARLY].dropna()
    room = run["image_tokens"] + run["caption_tokens"] - 1  # T - 1
    for site, at in window[window["step"] == near.idxmax()].groupby("site") if len(near) else ():
        excess = at["amplification"] - 1
        active = excess > ACTIVE
        out[f"slope_{site}"] = through_origin(room * at["kappa_hat"][active], excess[active])[0]
        out[f"top_{site}"] = float(excess.max() / room)
    return out
