"""The exact interval of a share (Clopper and Pearson, Biometrika 26, 1934)."""

from __future__ import annotations

from scipy.stats import binomtest

from suite.evidence.jackknife import LEVEL


def exact(k: int, n: int) -> tuple[float, float]:
    """The 95 % interval of k of n."""
    found = binomtest(int(k), int(n)).proportion_ci(LEVEL, method="exact")
    return float(found.low), float(found.high)


def share(k: int, n: int) -> str:
    """The same in words: "[.794, 1]"."""
    ends = (f"{end:.3f}".rstrip("0").rstrip(".").removeprefix("0") or "0" for end in exact(k, n))
    return f"[{', '.join(ends)}]"
