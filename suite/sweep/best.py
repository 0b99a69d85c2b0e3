"""At which learning rate a cell learns best: the middle of the valley of its expected loss, not its one luckiest point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

VALLEY = 1.1  # times the lowest mean loss: the points that a parabola is laid through


def best_point(losses: Mapping[int, Sequence[float]]) -> int:
    """The lattice point of the lowest expected held-out loss. losses: by point, of its runs; c where a run is unusable.

    The vertex of a parabola in the logarithm of the rate, weighted by runs, through the points about the lowest mean
    whose means are within VALLEY of it. The lowest mean itself where there are fewer than three, or where the parabola
    has no lowest point among them. Raises ValueError where there is no run.
    """
    if not losses:
        raise ValueError("no run to find a best rate by")
    ks = np.array(sorted(losses))
    means, n = np.array([np.mean(losses[k]) for k in ks]), np.array([len(losses[k]) for k in ks])
    low = int(means.argmin())
    near = means <= VALLEY * means[low]
    first = low - np.argmin(np.append(near[: low + 1][::-1], False)) + 1
    last = low + np.argmin(np.append(near[low:], False))
    valley = slice(int(first), int(last))
    if last - first < 3:
        return int(ks[low])
    bend, slope, _ = np.polyfit(ks[valley] - ks[low], means[valley], 2, w=np.sqrt(n[valley]))
    vertex = ks[low] - slope / (2 * bend) if bend > 0 else np.inf
    return round(vertex) if ks[first] <= vertex <= ks[last - 1] else int(ks[low])
