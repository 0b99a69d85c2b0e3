"""What a `Monitor` calls a death, as a training goes on, and what it takes back.

Equal tokens alone are none: a large vector that all tokens have in common makes their cosines 1 in networks that learn.
In the collapse of arXiv:2605.06169 the writers' gradients lose the part that differs between tokens (`g_ctr`, Lemma 1),
and the loss is that of a predictor without tokens. Both are compared with the network's own past.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from suite.diagnosis.watch import JUMP, LEVEL, RELATIVE, LossWatch
from suite.verdict.smooth import SHORT, robust_sd

OVERFLOWS = 10  # steps in a row without a finite gradient that are no gradient scaler's search any more
EQUAL = 0.99  # TCS of the writers' outputs at which tokens are one vector; our healthy networks stay below .6
EXTINCT = 0.01  # of the largest centered share seen: a dying plain network passes it within ten steps, tied N(0, 1) embeddings stay at .15
LESS = 0.5  # of it: where the loss rises as the tokens become equal; that plain network had .15 at the first step of its death
NO_BETTER = 1.0  # sds of one loss above the lowest median of five: what the lowest of many lies below


@dataclass
class Alarm:
    """What was told, and, where it was wrong, what took it back and when."""

    step: int
    kind: str
    sentence: str
    withdrawn: str = ""
    withdrawn_at: int | None = None


@dataclass
class Levels:
    """The loss without its spikes: the median of the last five, the lowest of these so far, and the scatter of one loss."""

    last: deque[float] = field(default_factory=lambda: deque(maxlen=LEVEL))
    lowest: float = math.inf
    lowest_at: int = 0

    def see(self, at: int, loss: float) -> None:
        self.last.append(loss)
        if len(self.last) >= SHORT and self.now < self.lowest:
            self.lowest, self.lowest_at = self.now, at

    @property
    def now(self) -> float:
        """inf before the first loss."""
        return median(list(self.last)[-SHORT:]) if self.last else math.inf

    @property
    def last_above(self) -> float:
        """How far the last loss lies above the lowest median: the step of a jump, which no median shows."""
        return self.last[-1] - self.lowest if self.last else math.nan

    @property
    def scatter(self) -> float:
        """Of neighbours' differences, which a trend does not widen; nan, with which nothing compares, while they are few."""
        return robust_sd(np.diff(self.last)) / math.sqrt(2) if len(self.last) >= 2 * SHORT else math.nan


class Alarms:
    """`see` once a step; returns the alarms that are new, and those that are withdrawn."""

    def __init__(self) -> None:
        self.told: list[Alarm] = []
        self.levels = Levels()
        self.equal = False  # whether tokens were equal when they were last measured
        self.start: float | None = None  # the largest centered share of the writers' gradient that was seen while tokens were apart
        self.apart_at: int | None = None  # the last measurement that found them different
        self._watch, self._overflows, self._broken = LossWatch(), 0, False
        self._open: dict[str, Alarm] = {}
        self._before: dict[str, float] = {}  # kind -> the loss that must be undercut for it to be withdrawn
        self._said = False  # of tokens that have been equal since
        self._extinct: float | None = None  # the level of the loss when the share was first extinct

    def see(self, at: int, row: Mapping[str, float]) -> list[Alarm]:
        """What a step's row (a `Monitor`'s) shows; cells that it lacks break nothing."""
        loss, norm = (row.get(name, 0.0) for name in ("loss", "grad_norm"))
        new: list[Alarm] = []
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        broken = not math.isfinite(loss) or self._overflows >= OVERFLOWS
        if broken and not self._broken:
            new.append(Alarm(at, "nonfinite", f"loss {loss:g}, gradient norm {norm:g}"))
        self._broken = broken
        if "loss" in row and math.isfinite(loss):
            new += self._see_loss(at, loss)
        if not math.isnan(row.get("tcs", math.nan)):
            new += self._see_tokens(at, row)
        self.told += [alarm for alarm in new if alarm.withdrawn_at is None]
        return new

    def _see_loss(self, at: int, loss: float) -> list[Alarm]:
        before, line = self.levels.lowest, self._watch.line
        self.levels.see(at, loss)
        if said := self._watch.see(loss):
            alarm = Alarm(at, "loss jumped", said)
            self._open[alarm.kind], self._before[alarm.kind] = alarm, before
            return [alarm]
        out = []
        if math.isfinite(line) and self._watch.line == math.inf and "loss jumped" in self._open:
            out += self._withdraw(at, "loss jumped", f"the loss has come back to {self.levels.now:.4g}")
        if "tokens equal" in self._open and self.levels.now < self._before["tokens equal"] - NO_BETTER * self.levels.scatter:
            out += self._withdraw(at, "tokens equal", f"the loss has fallen to {self.levels.now:.4g} since, lower than before the alarm")
        return out

    def _see_tokens(self, at: int, row: Mapping[str, float]) -> list[Alarm]:
        self.equal = row["tcs"] > EQUAL
        whole = math.hypot(row.get("g_mean", math.nan), row.get("g_ctr", math.nan))
        share = row["g_ctr"] / whole if 0 < whole < math.inf else math.nan
        if not self.equal:
            self.apart_at, self._said, self._extinct = at, False, None
            if not math.isnan(share):  # near 0 where gradients are alike by construction, as under a mean over tokens: never extinct then
                self.start = max(share, self.start or 0.0)
            return self._withdraw(at, "tokens equal", "the tokens differ again")
        if self._said or not (why := self._dead(0.0 if whole == 0 else share)):  # no gradient at all is no centered one
            return []
        self._said = True
        alarm = Alarm(at, "tokens equal", f"the writers' outputs are the same for all tokens (TCS {row['tcs']:.3f}), and {why}")
        self._open[alarm.kind], self._before[alarm.kind] = alarm, self.levels.lowest
        return [alarm]

    def _dead(self, share: float) -> str:
        """Why equal tokens are a death, or ""."""
        levels = self.levels
        above, scatter = levels.now - levels.lowest, levels.scatter
        if self.start is None or share <= LESS * self.start:
            if math.isfinite(above) and above > max(JUMP * scatter, RELATIVE * abs(levels.lowest)):
                return f"the loss has risen from {levels.lowest:.4g} to {levels.now:.4g}"
        if not share < EXTINCT * (1.0 if self.start is None else self.start):
            self._extinct = None
            return ""
        first, self._extinct = self._extinct, levels.now if self._extinct is None else self._extinct
        none = "no part of their gradients differs between tokens"
        if self.apart_at is not None and not max(above, levels.last_above) <= NO_BETTER * scatter:  # also where no loss is seen
            return f"{none} any more"
        if first is not None and not levels.now < first - NO_BETTER * scatter:
            return f"{none}, and the loss has not improved since"
        return ""

    def _withdraw(self, at: int, kind: str, why: str) -> list[Alarm]:
        if kind not in self._open:
            return []
        alarm = self._open.pop(kind)
        alarm.withdrawn, alarm.withdrawn_at = why, at
        return [alarm]
