"""Has the loss just jumped, and stayed? Judged at every step of a run under way, from its own level and scatter.

`suite.verdict` judges curves when they are complete; this one cannot wait. It speaks where the median of the last
RECENT losses lies JUMP robust sds above the median of the losses before, and NEEDED of them lie half as far: a spike
of a few steps stays below that.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from suite.verdict.smooth import robust_sd

RECENT, NEEDED = 12, 10  # losses that must have stayed up, for a word within 20 steps of a jump; how many of them above half way
LEVEL, LEAST = 50, 30  # losses before them that make the level, and how many there must be
JUMP = 4.0  # robust sds of one loss: 11 of the median of twelve white ones, 5 of AR(.9) noise
RELATIVE = 0.05  # of the level: a rise of less is nobody's death


class LossWatch:
    """One number a step in, and at most one sentence a jump out."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=LEVEL + RECENT)
        self.line = math.inf  # above it the jump that was told still lasts

    def see(self, loss: float) -> str:
        """What the loss of this step shows, or ""."""
        if not math.isfinite(loss):
            return ""
        self.losses.append(loss)
        if len(self.losses) < LEAST + RECENT:
            return ""
        every = np.array(self.losses)
        before, recent = every[:-RECENT], every[-RECENT:]
        now = float(np.median(recent))
        if now > self.line:
            return ""
        self.line = math.inf
        level = float(np.median(before))
        rise = max(JUMP * robust_sd(before), RELATIVE * abs(level))
        if now <= level + rise or (recent > level + rise / 2).sum() < NEEDED:
            return ""
        self.line = (level + now) / 2
        return f"the loss has jumped from {level:.4g} to {now:.4g} and stayed for {RECENT} steps"
