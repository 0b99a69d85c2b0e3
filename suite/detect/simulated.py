"""Loss logs made by chance whose truth is known: healthy ones of eight families, and deaths as in the paper's trace.

What a detector says of them is called simulated wherever it is told.
"""

from __future__ import annotations

import numpy as np

Case = tuple[np.ndarray, np.ndarray, int | None]  # steps, loss, and the step of the death where there is one
FAMILIES = ("white", "heavy tails, t(2)", "wandering, AR(.9)", "multiplicative", "power law", "spikes that recover", "rate drops",
            "three digits")  # fmt: skip


def paper_like(seed: int) -> Case:
    """A log as the paper's authors posted: every 10 steps, flat at .85, then 1.4 higher for good, with an overshoot."""
    rng = np.random.default_rng((90, seed))
    n, sd = int(rng.integers(100, 1000)), rng.uniform(0.005, 0.1)
    at = int(rng.integers(50, n - 30))
    loss = 0.85 + sd * rng.standard_normal(n)
    loss[at:] += 1.4
    loss[at + 1] += rng.uniform(0, 0.4)
    steps = 10 * np.arange(1, n + 1)
    return steps, loss, int(steps[at])


def trained(rng, n: int) -> np.ndarray:
    """A mean that falls as training does, from its start or from its middle."""
    end = rng.uniform(0.1, 2.0)
    height = rng.uniform(1, 8) if rng.random() < 0.5 else rng.uniform(0, 0.3) * end
    early = rng.uniform(1, 50)
    return end + height * ((np.arange(n) + early) / early) ** -rng.uniform(0.1, 0.6)


def healthy(family: str, seed: int) -> Case:
    """One healthy log of 30 to 3,000 points."""
    rng = np.random.default_rng((FAMILIES.index(family), seed))
    n = int(np.exp(rng.uniform(np.log(30), np.log(3000))))
    mean, noise = trained(rng, n), rng.standard_normal(n)
    sd = rng.uniform(0.01, 0.15) * mean[-1]
    if family == "white":
        loss = mean + sd * noise
    elif family == "heavy tails, t(2)":
        loss = mean + 0.5 * sd * rng.standard_t(2, n)
    elif family == "wandering, AR(.9)":
        for i in range(1, n):
            noise[i] = 0.9 * noise[i - 1] + np.sqrt(1 - 0.81) * noise[i]
        loss = mean + sd * noise
    elif family == "multiplicative":
        loss = mean * np.exp(rng.uniform(0.05, 0.4) * noise)
    elif family == "power law":
        loss = 3 * (np.arange(n) + rng.uniform(1, 20)) ** -rng.uniform(0.2, 0.6) * np.exp(0.03 * noise)
    elif family == "spikes that recover":
        loss = mean + sd * noise
        for _ in range(rng.integers(1, 5)):
            width = rng.uniform(1, max(2, min(30, n / 20)))
            since = np.arange(n) - rng.integers(0, max(1, n - int(8 * width) - 8))
            loss += np.where(since >= 0, rng.uniform(0.5, 5) * mean[-1] * np.exp(-np.maximum(since, 0) / width), 0)
    elif family == "rate drops":
        for at in np.sort(rng.integers(n // 5, n, 3)):
            mean[at:] *= rng.uniform(0.6, 0.95)
        loss = mean + sd * noise
    else:
        loss = np.array([float(f"{value:.3g}") for value in mean + sd * rng.uniform(0.001, 0.3) * noise])
    return 10 * np.arange(1, n + 1), loss, None
