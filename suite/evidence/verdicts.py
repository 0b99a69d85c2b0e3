"""From an estimate with its interval to a verdict, by a rule that has a number and a margin.

An interval that holds no decision gives none: where it reaches over a border the verdict is the weaker one, and with one run alone there
is no interval, so the verdict is `inconclusive` whatever the number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import sem
from scipy.stats import t as student

from suite.evidence.jackknife import LEVEL
from suite.evidence.shares import exact

REPRODUCED, IN_PART, NOT, OPPOSITE = "reproduced", "in part", "not reproduced", "opposite"
INCONCLUSIVE, UNTESTED = "inconclusive", "not tested"
VERDICTS = (REPRODUCED, IN_PART, NOT, OPPOSITE, INCONCLUSIVE, UNTESTED)


# ---- estimates

@dataclass(frozen=True)
class Seen:
    """A number with its 95 % interval (nan: none) and what it rests on, in words; without value where nothing was measured."""

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    on: str = ""

    def __bool__(self) -> bool:
        return not np.isnan(self.value)

    def __str__(self) -> str:
        if not self:
            return "not measured"
        ends = "no interval" if np.isnan(self.low) else f"[{number(self.low)}, {number(self.high)}]"
        return f"{number(self.value)} {ends} ({self.on})"


def number(value: float) -> str:
    """Three digits; powers of ten from a hundred thousand on."""
    if np.isinf(value):
        return "inf" if value > 0 else "-inf"
    text = f"{value:.3g}" if abs(value) < 1e5 else f"{value:.1e}"
    return f"{value:.0f}" if "e+0" in text and abs(value) < 1e5 else text


def share(k: int, n: int, of: str) -> Seen:
    """k of n with the exact interval (Clopper, Pearson)."""
    if not n:
        return Seen()
    return Seen(k / n, *exact(k, n), f"{k} of {n} {of}")


def mean(values: Iterable[float], of: str) -> Seen:
    """Mean over independent values (Student); not finite ones are left out."""
    known = np.asarray(list(values), float)
    known = known[np.isfinite(known)]
    if not len(known):
        return Seen()
    spread = student.ppf((1 + LEVEL) / 2, len(known) - 1) * sem(known) if len(known) > 1 else np.nan
    return Seen(float(known.mean()), float(known.mean() - spread), float(known.mean() + spread), counted(len(known), of))


def counted(n: int, of: str) -> str:
    """"n = 3 runs", "n = 1 run"."""
    one = re.sub(r"^([a-z]+)s", r"\1", of)
    return f"n = {n} {one if n == 1 else of}"


def geometric(values: Iterable[float], of: str) -> Seen:
    """Geometric mean over independent ratios (Student on logarithms)."""
    known = np.asarray(list(values), float)
    found = mean(np.log(known[known > 0]), of)
    return Seen(*map(float, np.exp([found.value, found.low, found.high])), found.on) if found else found


# ---- rules

@dataclass(frozen=True)
class Rule:
    """Borders on one axis. The claimed side is that of `holds` as seen from `fails`.

    holds: the whole interval on its claimed side reproduces. fails: the whole interval on its other side does not; wholly on its claimed
    side, but not beyond `holds`: in part. opposite: the whole interval beyond it, away from the claim. why: where the numbers are from.
    """

    holds: float
    fails: float
    opposite: float | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if self.holds == self.fails or self.opposite is not None and self._signed(self.opposite) > self._signed(self.fails):
            raise ValueError(f"a rule with borders out of order: {self}")

    def _signed(self, value: float) -> float:
        return value if self.holds > self.fails else -value

    def verdict(self, seen: Seen) -> str:
        if not seen:
            return UNTESTED
        if np.isnan(seen.low):
            return INCONCLUSIVE
        worst, best = sorted((self._signed(seen.low), self._signed(seen.high)))
        if worst >= self._signed(self.holds):
            return REPRODUCED
        if self.opposite is not None and best <= self._signed(self.opposite):
            return OPPOSITE
        if best <= self._signed(self.fails):
            return NOT
        return IN_PART if worst >= self._signed(self.fails) else INCONCLUSIVE

    def __str__(self) -> str:
        side, other = ("at least", "at most") if self.holds > self.fails else ("at most", "at least")
        words = f"reproduced if {side} {number(self.holds)}, not reproduced if {other} {number(self.fails)}"
        return words + (f", opposite if {other} {number(self.opposite)}" if self.opposite is not None else "")


@dataclass(frozen=True)
class Same:
    """That two things are alike: a difference of which the whole interval lies within the margin, on either side of 0."""

    margin: float
    why: str = ""

    def verdict(self, seen: Seen) -> str:
        if not seen:
            return UNTESTED
        if np.isnan(seen.low):
            return INCONCLUSIVE
        if -self.margin <= seen.low and seen.high <= self.margin:
            return REPRODUCED
        return NOT if seen.low >= self.margin or seen.high <= -self.margin else INCONCLUSIVE

    def __str__(self) -> str:
        return f"reproduced if within ±{number(self.margin)}, not reproduced if beyond it"


def together(verdicts: Iterable[str]) -> str:
    """The verdict of a claim of several parts: their common one; else in part where one of them is reproduced at least in part, not
    reproduced where none is and none is open, inconclusive where one is. What is not tested counts against `reproduced` alone.
    """
    seen = set(verdicts)
    if not seen:
        return UNTESTED
    if len(seen) == 1:
        return seen.pop()
    tested = seen - {UNTESTED}
    if tested & {REPRODUCED, IN_PART}:
        return IN_PART
    if tested <= {NOT, OPPOSITE}:
        return NOT if NOT in tested else OPPOSITE
    return INCONCLUSIVE
