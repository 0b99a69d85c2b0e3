"""The rows of spikes.csv: which spikes led into a crash, and which weights carried them."""

from __future__ import annotations

import pandas as pd

SHALLOW = 2  # the paper's families at the onset end at L2 (its Figure 9)


def until_crash(spikes, row):
    """One row per spike of a run up to its crash, or all where it had none: what comes later is no warning.

    back: whether no crash followed within the confirmation window.
    """
    mine = spikes[(spikes["run_id"] == row.run_id) & (spikes["rank"] == 1)].sort_values("step")
    mine = mine.assign(back=mine["recovered"].fillna(False).astype(bool))
    return mine if pd.isna(row.crash_step) else mine[mine["step"] <= row.crash_step]


def fatal(spikes, row) -> list[int]:
    """Steps of the spikes in the window before a crash, the last being the one nearest to it."""
    return [] if pd.isna(row.crash_step) else until_crash(spikes, row).query("not back")["step"].tolist()


def families(spikes, run_id: str, step: int):
    """The families of one spike, the largest first, with `square` (of their norm), `weight` (Q, W2, ...; nan
    outside the blocks), and whether they are `shallow`: where the paper's onset lies, in L0 to L2 or the embedding."""
    top = spikes[(spikes["run_id"] == run_id) & (spikes["step"] == step)].sort_values("rank")
    parts = top["family"].str.extract(r"L(?P<block>\d+) (?P<weight>.+)")
    shallow = (top["family"] == "Embed") | (parts["block"].astype(float) <= SHALLOW)
    return top.assign(square=top["family_grad_norm"] ** 2, weight=parts["weight"], shallow=shallow)


def summary(top) -> dict[str, float]:
    """Of a spike's families: their part of the squared norm; how many, and what share of theirs, are shallow, W_O, W_2."""
    out = {"covered": top["square"].sum() / top["grad_norm"].iloc[0] ** 2}
    for name, mask in (("shallow", top["shallow"]), *((name, top["weight"] == name) for name in ("WO", "W2"))):
        out[name], out[f"{name}_share"] = int(mask.sum()), float(top["square"][mask].sum() / top["square"].sum())
    return out
