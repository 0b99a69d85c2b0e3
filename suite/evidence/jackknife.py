"""An interval from leaving one seed out at a time (Quenouille, Biometrika 43, 1956; Tukey 1958)."""

from __future__ import annotations

import numpy as np
from scipy.stats import t

LEVEL = 0.95


def jackknife(whole: float, without: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) about an estimate. whole: from all seeds; without: (S,) the same with each of the S seeds left out.

    The t quantile has as many degrees of freedom as seeds move the estimate, (sum d^2)^2 / sum d^4 of the moves d:
    2 for three seeds of equal weight, as it should be, and no more where others say nothing.
    """
    moves = np.asarray(without, dtype=float) - whole
    moves = moves[np.isfinite(moves)]
    square = (moves**2).sum()
    if len(moves) < 2 or not np.isfinite(whole):
        return np.nan, np.nan
    if square == 0:
        return whole, whole
    freedom = square**2 / (moves**4).sum()
    spread = t.ppf((1 + level) / 2, max(1.0, freedom)) * np.sqrt(square * (len(moves) - 1) / len(moves))
    return whole - spread, whole + spread
