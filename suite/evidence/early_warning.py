"""Does anything that can be watched tell of a death beforehand? Scored on the committed runs, with the run as the unit.

A signal is a number a step, large where it warns. Its largest value in the steps before each death, the last 25 left
out (they are the death itself), stands against that over the same steps of runs of its own scheme, depth and rate that
lived: others have other sizes of everything, hotter runs more of most, and every signal drifts as a run learns. The
area is the chance that the first is larger. An alarm needs a line: above all that the living runs ever showed, or
above the largest value of all but one in twenty of them. No death has a part in its own line. A trajectory counts
once, whatever protocols trained it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from suite.evidence.deaths import QUANTITIES, strided
from suite.evidence.hazard import poisson_interval, with_health
from suite.evidence.markdown import table
from suite.evidence.stats import LEVEL
from suite.records.store import RowsByRun
from suite.records.trajectories import once

GAP = 25  # steps before a death that are left out; the longest growth that we have seen took 25 (deaths.CALM_UNTIL)
HORIZONS, AUDITED_HORIZONS = (50, 125, 400), (125, 400)  # steps before a death at which a window begins; audits are 100 apart
WARN = 100  # steps before a death in which an alarm counts as one of it
ONE_IN = 0.05  # of the living runs may pass the second line
ENOUGH = 4  # deaths that an area needs
START = 60  # steps that a signal needs before it can be read; the digits have learnt their first by then
DRAWS = 500  # bootstrap samples of runs for an interval of the area
SHORT, BASES = 5, (20, 50)  # steps now, and steps before them to compare with

Signal = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Life:
    """One run: its crash step or None, whether it was healthy when it died, its signals by name, each (steps,) with
    nan, and its cell."""

    crash: int | None
    healthy: bool
    signals: dict[str, np.ndarray]
    steps: np.ndarray
    cell: tuple[str, ...] = ()


def trailing(x: np.ndarray, width: int) -> np.ndarray:
    """(N,) medians of the last `width` values; nan where there are fewer."""
    return pd.Series(x).rolling(width).median().to_numpy()


def growth(base: int, of_norm: bool) -> Signal:
    """The logarithm of the median of the last SHORT steps over that of the `base` steps before them."""

    def signal(loss: np.ndarray, norm: np.ndarray) -> np.ndarray:
        x = np.log(np.maximum(norm if of_norm else loss, 1e-30))
        return trailing(x, SHORT) - pd.Series(trailing(x, base)).shift(SHORT).to_numpy()

    return signal


SIGNALS: dict[str, Signal] = {
    **{f"growth of the gradient norm, {SHORT} steps over {base}": growth(base, True) for base in BASES},
    "gradient norm": lambda loss, norm: trailing(norm, SHORT),
    f"growth of the loss, {SHORT} steps over {BASES[0]}": growth(BASES[0], False),
    "loss over its lowest so far": lambda loss, norm: trailing(loss, SHORT) / np.fmin.accumulate(trailing(loss, SHORT)),
}


def curves(folders: list[Path]) -> Iterator[Life]:
    """Runs that lived or died with a finite loss, with the signals of loss and gradient norm."""
    for run, parts in _runs(folders):
        steps, loss, norm = (parts.frame("curves", run)[name].to_numpy() for name in ("step", "loss", "grad_norm"))
        yield _life(run, {name: signal(loss, norm) for name, signal in SIGNALS.items()}, steps)


def audited(folders: list[Path]) -> Iterator[Life]:
    """The same with what the audit measured at every so many steps, medians over the deep blocks."""
    for run, parts in _runs(folders):
        found = strided(parts.frame("audit", run), run["depth"])
        if len(found):
            yield _life(run, {name: found[name].to_numpy(float) for name in found}, found.index.to_numpy())


def _runs(folders: list[Path]) -> Iterator[tuple[dict, RowsByRun]]:
    parts = {folder.name: RowsByRun(folder) for folder in folders}
    runs = once(pd.concat([with_health(folder) for folder in folders], ignore_index=True))
    lived = (runs["outcome"] == "survived") & runs["late_step"].isna()
    for run in runs[lived | runs["outcome"].isin(["collapsed", "degraded"])].to_dict("records"):
        yield run, parts[run["protocol"]]


def _life(run: dict, signals: dict[str, np.ndarray], steps: np.ndarray) -> Life:
    cell = tuple(run[name] for name in ("scheme", "params", "writers", "gate_lr", "arm", "data", "image_tokens", "depth", "lr"))
    return Life(None if pd.isna(run["crash_step"]) else run["crash_step"], run["died_healthy"], signals, steps, cell)


class Score(NamedTuple):
    """How well one signal warns within one horizon: the area under its curve with an interval, of n dead runs against
    living ones."""

    area: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.area:.2f} [{self.low:.2f}, {self.high:.2f}]" if self.n >= ENOUGH else "-"


class Warned(NamedTuple):
    """The dead of which a signal passed a line in the last WARN steps, of them those that it passed before the gap, of
    all dead, and the median steps from the first passing to the crash."""

    warned: int
    early: int
    dead: int
    lead: float

    def __str__(self) -> str:
        if not self.warned:
            return f"0 of {self.dead} [0, {min(1, poisson_interval(0)[1] / self.dead):.2f}]"
        return f"{self.warned} of {self.dead}, {self.lead:g} steps before ({self.early} by {GAP} or more)"


def score(dead: list[Life], living: list[Life], name: str, horizon: int) -> Score | None:
    """None where no run died with a value in the horizon in a cell in which others lived over the same steps."""
    parts = []
    for cell in dict.fromkeys(life.cell for life in dead):
        mine, alive = ([life for life in lives if life.cell == cell] for lives in (dead, living))
        spans = [(max(START, life.crash - horizon), life.crash - GAP) for life in mine]
        own = np.array([_top(life, name, *span) for life, span in zip(mine, spans)])
        others = np.array([[_top(life, name, *span) for life in alive] for span in spans]).reshape(len(mine), len(alive))
        if (told := np.isfinite(own) & np.isfinite(others).any(1)).any():
            parts.append((own[told], others[told]))
    return Score(*area(parts), sum(len(own) for own, _ in parts)) if parts else None


def _top(life: Life, name: str, first: int, end: int) -> float:
    """The largest value at steps from `first` to before `end`; nan where there is none, or the run was not watched so far."""
    stride = life.steps[-1] - life.steps[-2] if len(life.steps) > 1 else 1
    if not len(life.steps) or life.steps[-1] + stride < end:
        return np.nan
    values = life.signals[name][(life.steps >= first) & (life.steps < end)]
    values = values[np.isfinite(values)]
    return values.max() if len(values) else np.nan


def line(living: list[Life], name: str, passing: float) -> float:
    """The level that the largest value of that share of the living runs lies above; for 0 the largest of all."""
    tops = np.sort([values.max() for life in living if len(values := _calm(life, name))])
    return float(tops[len(tops) - 1 - int(passing * len(tops))])


def warned(dead: list[Life], name: str, above: float) -> Warned:
    leads = []
    for life in dead:
        near = (life.steps >= max(START, life.crash - WARN)) & (life.steps < life.crash)
        if len(passed := life.steps[near][life.signals[name][near] > above]):
            leads.append(life.crash - passed[0])
    return Warned(len(leads), sum(bool(lead >= GAP) for lead in leads), len(dead), float(np.median(leads)) if leads else float("nan"))


def _calm(life: Life, name: str) -> np.ndarray:
    values = life.signals[name][life.steps >= START]
    return values[np.isfinite(values)]


def area(cells: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """The chance that a death's value is larger than a living run's, ties half; and its interval, with the dead and the
    living runs of each cell resampled.

    cells: of each (N,) values of its dead and (N, M) values of its living over the same steps, nan where one was not
    watched. Each death counts once, however many runs it is compared with.
    """
    random, total, drawn, weight = np.random.default_rng(0), 0.0, np.zeros(DRAWS), np.zeros(DRAWS)
    for own, others in cells:
        there = np.isfinite(others)
        above = np.where(there, (own[:, None] > others) + 0.5 * (own[:, None] == others), 0.0)
        total += (above.sum(1) / there.sum(1)).sum()
        dead, living = (random.multinomial(n, np.full(n, 1 / n), DRAWS) for n in above.shape)
        known = living @ there.T  # (draws, dead): living runs drawn to compare with
        dead = np.where(known > 0, dead, 0)
        drawn += (dead * (living @ above.T) / np.maximum(known, 1)).sum(1)
        weight += dead.sum(1)
    low, high = np.nanquantile(drawn[weight > 0] / weight[weight > 0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(total / sum(len(own) for own, _ in cells)), float(low), float(high)


def early_warning(results: Path) -> str:
    """Tables: loss and gradient norm of all runs, and of healthy deaths alone; what was audited."""
    folders = [results / name for name in ("frontier", "anatomy") if (results / name).is_dir()]
    found, seen = list(curves(folders)), list(audited([folder for folder in folders if folder.name == "anatomy"]))
    tables = [("all deaths", found, lambda life: life.crash > START, SIGNALS, HORIZONS),
              ("deaths of healthy runs", found, lambda life: life.healthy, SIGNALS, HORIZONS),
              ("audited, deaths of healthy runs", seen, lambda life: life.healthy, QUANTITIES, AUDITED_HORIZONS)]
    parts = []
    for title, lives, counts, names, horizons in tables:
        living, dead = [life for life in lives if life.crash is None], [life for life in lives if life.crash and counts(life)]
        if living and dead:
            parts.append(_table(f"{title} (n = {len(dead)}; {len(living)} survived)", dead, living, list(names), horizons))
    return "\n\n".join(parts)


def _table(title: str, dead: list[Life], living: list[Life], names: list[str], horizons: tuple[int, ...]) -> str:
    scored = [[score(dead, living, name, horizon) for horizon in horizons] for name in names]
    compared = (max((one.n for one in column if one), default=0) for column in zip(*scored))
    none, some = poisson_interval(0)[1] / len(living), int(ONE_IN * len(living))
    head = [title, *(f"area, {h} to {GAP} steps before (n = {n})" for h, n in zip(horizons, compared)),
            f"alarm in the last {WARN} steps; false alarms in 0 of {len(living)} runs that survived [0, {none:.2g}]",
            f"false alarms in {some} of {len(living)}"]  # fmt: skip
    def alarms(name: str) -> list[Warned]:
        return [warned(dead, name, line(living, name, passing)) for passing in (0.0, ONE_IN)]

    return table(head, ([name, *(one or "-" for one in row), *alarms(name)] for name, row in zip(names, scored)))
