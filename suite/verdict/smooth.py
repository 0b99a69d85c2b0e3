"""Medians of a curve that its spikes cannot move."""

import numpy as np

SHORT = 5  # points: passes over spikes of one or two points, and keeps a jump at its exact place
MAD_TO_SD = 1.4826  # makes the median absolute deviation an sd on normal noise


def short_median(loss) -> np.ndarray:
    """Centred running median of five of a 1-D curve; at the ends of the points that are there (three, four)."""
    loss = np.asarray(loss, float)
    n, half = len(loss), SHORT // 2
    if n < SHORT:
        return np.array([np.median(loss[max(0, i - half):i + half + 1]) for i in range(n)])
    out = np.empty(n)
    out[half:n - half] = np.sort(np.lib.stride_tricks.sliding_window_view(loss, SHORT), axis=1)[:, half]
    for i in range(half):
        out[i] = np.median(loss[:i + half + 1])
        out[n - 1 - i] = np.median(loss[n - 1 - i - half:])
    return out


def robust_sd(x) -> float:
    """The sd of normal noise that has the median absolute deviation of x."""
    return float(MAD_TO_SD * np.median(np.abs(x - np.median(x))))
