"""Does anything that can be watched tell of a death beforehand? Scored on the committed runs, with the run as the unit.

A signal is a number a step, large where it warns. Its largest value in the last steps before each death stands
against that in windows of the same length of runs of its own protocol, scheme, depth and rate that lived (others have
other sizes of everything, and hotter runs more of most): the area is the chance that the first is larger. An alarm
needs a line: above all that the living runs ever showed (the lowest rate of false alarms that so many steps can
show), or above all but one step in a thousand. No death has a part in its own line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from suite.evidence.deaths import QUANTITIES, strided
from suite.evidence.hazard import with_health
from suite.evidence.markdown import table
from suite.evidence.stats import LEVEL
from suite.records.store import RowsByRun

HORIZONS, AUDITED_HORIZONS = (10, 25, 100, 400), (25, 100, 400)  # steps before a death
ONE_IN = 1e-3  # of the healthy steps lie above the second line
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
    for folder in folders:
        parts, runs = RowsByRun(folder), with_health(folder)
        lived = (runs["outcome"] == "survived") & runs["late_step"].isna()
        yield from ((run, parts) for run in runs[lived | runs["outcome"].isin(["collapsed", "degraded"])].to_dict("records"))


def _life(run: dict, signals: dict[str, np.ndarray], steps: np.ndarray) -> Life:
    cell = tuple(run[name] for name in ("protocol", "scheme", "params", "arm", "depth", "lr"))
    return Life(None if pd.isna(run["crash_step"]) else run["crash_step"], run["died_healthy"], signals, steps, cell)


class Score(NamedTuple):
    """How well one signal warns within one horizon: the area under its curve with an interval, of n dead runs against
    living ones."""

    area: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.area:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Warned(NamedTuple):
    """The dead of which a signal passed a line within the horizon, of all of them, and the median steps from there to
    the crash."""

    warned: int
    dead: int
    lead: float

    def __str__(self) -> str:
        return f"{self.warned} of {self.dead}" + (f", {self.lead:g} steps before" if self.warned else "")


def score(dead: list[Life], living: list[Life], name: str, horizon: int) -> Score | None:
    """None where no run died with a value in the horizon in a cell in which others lived."""
    parts = []
    for cell in dict.fromkeys(life.cell for life in dead):
        near = (_near(life, name, horizon)[1] for life in dead if life.cell == cell)
        before = np.array([np.nanmax(values) for values in near if np.isfinite(values).any()])
        windows = [tops for life in living if life.cell == cell and len(tops := _windows(life, name, horizon))]
        if len(before) and windows:
            parts.append((before, windows))
    return Score(*area(parts), sum(len(before) for before, _ in parts)) if parts else None


def line(living: list[Life], name: str, passing: float) -> float:
    """The level above which that share of the healthy steps lies; for 0 the largest of all."""
    return float(np.quantile(np.concatenate([_calm(life, name) for life in living]), 1 - passing))


def warned(dead: list[Life], name: str, horizon: int, above: float) -> Warned:
    leads = []
    for life in dead:
        steps, values = _near(life, name, horizon)
        if len(passed := steps[values > above]):
            leads.append(life.crash - passed[0])
    return Warned(len(leads), len(dead), float(np.median(leads)) if leads else float("nan"))


def _near(life: Life, name: str, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) within the horizon before a crash."""
    near = (life.steps >= max(START, life.crash - horizon)) & (life.steps < life.crash)
    return life.steps[near], life.signals[name][near]


def _calm(life: Life, name: str) -> np.ndarray:
    values = life.signals[name][life.steps >= START]
    return values[np.isfinite(values)]


def _windows(life: Life, name: str, horizon: int) -> np.ndarray:
    """Largest values of windows of the horizon's length, one behind the other."""
    values = life.signals[name][life.steps >= START]
    spacing = int(np.median(np.diff(life.steps))) if len(life.steps) > 1 else 1
    size = max(1, min(horizon // max(1, spacing), len(values)))
    tops = np.fmax.reduce(values[: len(values) // size * size].reshape(-1, size), axis=1)
    return tops[np.isfinite(tops)]


def area(cells: list[tuple[np.ndarray, list[np.ndarray]]]) -> tuple[float, float, float]:
    """The chance that a value of a cell's first is larger than one of its second, ties half, over all values of all
    cells alike; and its interval, with the dead and the living runs of each cell resampled."""
    random, total, drawn = np.random.default_rng(0), 0.0, np.zeros(DRAWS)
    everything = sum(len(values) for values, _ in cells)
    for values, windows in cells:
        above = np.stack([_beaten(values, np.sort(window)) for window in windows], 1)  # (dead, living): windows that lie below
        sizes = np.array([len(window) for window in windows])
        dead, living = (random.multinomial(n, np.full(n, 1 / n), DRAWS) for n in above.shape)
        total += above.sum() / sizes.sum()
        drawn += ((dead @ above) * living).sum(1) / (living @ sizes)
    low, high = np.quantile(drawn / everything, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(total / everything), float(low), float(high)


def _beaten(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """How many of some sorted numbers lie below each value, ties half."""
    return (np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right")) / 2


def early_warning(results: Path) -> str:
    """README's tables: loss and gradient norm of all runs, and of healthy deaths alone; what was audited."""
    folders = [results / name for name in ("frontier", "anatomy") if (results / name).is_dir()]
    found, seen = list(curves(folders)), list(audited([folder for folder in folders if folder.name == "anatomy"]))
    tables = [("all deaths", found, lambda life: life.crash > START, SIGNALS, HORIZONS),
              ("deaths of healthy runs", found, lambda life: life.healthy, SIGNALS, HORIZONS),
              ("audited, deaths of healthy runs", seen, lambda life: life.healthy, QUANTITIES, AUDITED_HORIZONS)]
    parts = []
    for title, lives, counts, names, horizons in tables:
        living, dead = [life for life in lives if life.crash is None], [life for life in lives if life.crash and counts(life)]
        if lives is found or living and dead:
            parts.append(_table(f"{title} (n = {len(dead)}; {len(living)} lived", dead, living, list(names), horizons))
    return "\n\n".join(parts)


def _table(title: str, dead: list[Life], living: list[Life], names: list[str], horizons: tuple[int, ...]) -> str:
    steps = sum(len(_calm(life, names[0])) for life in living)
    longest = horizons[-2]
    scored = [[score(dead, living, name, horizon) for horizon in horizons] for name in names]
    compared = (max((one.n for one in column if one), default=0) for column in zip(*scored))
    head = [f"{title}, {steps:,} steps)", *(f"area, {h} steps before (n = {n})" for h, n in zip(horizons, compared)),
            f"warned in the last {longest}, no false alarm (below {3000 / steps:.2g} per 1,000)",
            "at one false alarm per 1,000"]  # fmt: skip
    return table(head, ([name, *(one or "-" for one in row), *(warned(dead, name, longest, line(living, name, passing))
                                                              for passing in (0.0, ONE_IN))]
                        for name, row in zip(names, scored)))  # fmt: skip
