"""Synthetic curves whose truth is known."""
import numpy as np

from suite.detect.judge import judge_foreign

C, WINDOW = 2.0, 50  # the digits' constant loss and the protocols' confirmation window


def learns(n, seed=0, low=0.7, sd=0.1):
    """A healthy curve: from C down to `low` in some 100 steps, with batch noise."""
    return low + (C - low) * np.exp(-np.arange(n) / 40) + sd * np.random.default_rng(seed).standard_normal(n)


def collapses(n, at, seed=0, to=C):
    """`learns`, then at the index `at` a jump to `to` for good."""
    loss = learns(n, seed)
    loss[at:] = to + 0.1 * np.random.default_rng(seed + 1).standard_normal(n - at)
    return loss


def noise(kind, rows, n, seed=0):
    """`rows` curves of unit noise: white, heavy-tailed (Student t, 2 degrees), or AR(1) with coefficient .9."""
    rng = np.random.default_rng(seed)
    if kind == "t2":
        return rng.standard_t(2, (rows, n))
    z = rng.standard_normal((rows, n))
    if kind == "ar":
        for i in range(1, n):
            z[:, i] = 0.9 * z[:, i - 1] + np.sqrt(1 - 0.81) * z[:, i]
    return z


def foreign(loss, start=0, every=1, **kwargs):
    """The verdict of a log of one point every `every` steps."""
    return judge_foreign(start + every * np.arange(len(loss)), loss, **kwargs)[0]
