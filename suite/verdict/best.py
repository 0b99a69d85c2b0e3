"""At which learning rate a cell learns best: the middle of the valley of its expected loss, not its one luckiest point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

FRESH = 1000  # seeds from here on measure what is reached at the best rate; none of them has a part in choosing it
VALLEY = 1.1  # times the lowest mean loss: the points that a parabola is laid through


def best_point(losses: Mapping[int, Sequence[float]]) -> int:
    """The lattice point nearest to the lowest expected held-out loss. losses: by point, of its runs; c where a run is unusable.

    Raises ValueError where there is no run.
    """
    if not losses:
        raise ValueError("no run to find a best rate by")
    ks = sorted(losses)
    return round(bottom(ks, [float(np.mean(losses[k])) for k in ks], [len(losses[k]) for k in ks]))


def bottom(x: Sequence[float], means: Sequence[float], n: Sequence[int]) -> float:
    """Where the expected loss is lowest, on the axis of x. x: (R,) logarithms of rates, ascending; means: (R,); n: (R,) runs.

    The vertex of a parabola through the points about the lowest mean whose means are within VALLEY of it, weighted by
    runs; the lowest mean itself where there are fewer than three, or where the parabola has no lowest point among them.
    """
    x, means, n = (np.asarray(part, dtype=float) for part in (x, means, n))
    low = int(means.argmin())
    far = np.flatnonzero(means > VALLEY * means[low])
    first, last = max(far[far < low], default=-1) + 1, min(far[far > low], default=len(x)) - 1
    if last - first < 2:
        return float(x[low])
    near = slice(first, last + 1)
    bend, slope, _ = np.polyfit(x[near] - x[low], means[near], 2, w=np.sqrt(n[near]))
    vertex = x[low] - slope / (2 * bend) if bend > 0 else np.inf
    return float(vertex if x[first] <= vertex <= x[last] else x[low])
