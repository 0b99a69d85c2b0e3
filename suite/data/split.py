"""Which rows are held out: functions of the labels or of the number of rows, the same everywhere."""

from __future__ import annotations

import numpy as np

from suite.rng import generator

HELDOUT = 297 / 1797  # the digits: 1,500 to train on, 297 held out; mnist: 4,174 and 826


def stratified(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending row numbers to train on and to hold out, of each class its share."""
    from sklearn.model_selection import train_test_split

    count = round(len(labels) * HELDOUT)
    train, held = train_test_split(np.arange(len(labels)), test_size=count, stratify=labels, random_state=0)
    return np.sort(train), np.sort(held)


def spread(n: int, labels: np.ndarray | None, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of n rows, with `most` held out at most, spread over the classes where there are some."""
    import torch

    order = torch.randperm(n, generator=generator("heldout rows", n)).numpy()
    if labels is not None:
        order = order[labels[order].argsort(kind="stable")]
    k = min(round(n * HELDOUT), most)
    chosen = np.zeros(n, bool)
    chosen[order[(2 * np.arange(k) + 1) * n // (2 * k)]] = True  # every (n/k)-th: of a class its share, rounded
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
