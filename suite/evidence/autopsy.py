"""What the autopsies say of a group of networks: by how much the loss rises under each intervention, with its interval."""

from __future__ import annotations

from typing import NamedTuple

from suite.evidence.jackknife import LEVEL
from suite.verdict.outcome import fate

GROUP = ["scheme", "arm", "params", "writers", "gate_lr", "depth", "image_tokens", "fate"]


class Rise(NamedTuple):
    """Mean over n networks, and Student's interval; without one where n is 1."""

    n: int
    mean: float
    half: float | None


def with_fate(table):
    """The table with a column `fate`: dead, unusable (never trained, or stuck) or live."""
    return table.assign(fate=table["outcome"].map(fate))


def rises(group) -> dict[str, Rise]:
    """By intervention, of the rows of networks that are of one kind."""
    from scipy.stats import t

    out = {}
    for name, rows in group.groupby("intervention"):
        n, values = len(rows), rows["rise"]
        half = float(t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / n**0.5) if n > 1 else None
        out[name] = Rise(n, float(values.mean()), half)
    return out
