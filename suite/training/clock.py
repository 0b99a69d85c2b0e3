"""Wall-clock by phase: what `throughput.csv` is made of, and nothing else is."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager


class Clock:
    """Seconds spent and things done in each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    @contextmanager
    def timed(self, phase: str, count: int = 1):
        """Add the time spent inside, and `count`, to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start
        self.counts[phase] += count
