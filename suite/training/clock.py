"""Wall-clock by phase: what `throughput.csv` is made of, and nothing else is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import contextmanager


class Clock:
    """Seconds spent and things done in each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    def timed(self, phase: str, count: int = 1):
        """Add the time spent inside, and `count`, to a phase."""
        return together([self], phase, count)


@contextmanager
def together(clocks: Sequence[Clock], phase: str, count: int = 1):
    """Time what runs of a group do as one: each is given an equal share of the seconds, and the whole count."""
    start = time.perf_counter()
    yield
    share = (time.perf_counter() - start) / max(1, len(clocks))
    for clock in clocks:
        clock.seconds[phase] += share
        clock.counts[phase] += count
