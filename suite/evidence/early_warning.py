"""Does anything that can be watched tell of a death beforehand? Scored on the committed runs, with the run as the unit.

A signal is a number a step, large where it warns. Its largest value in the last steps before each death stands against that in windows
of the same length of runs of its own protocol, scheme, depth and rate that lived (others have other sizes of everything, and hotter
runs more of most): the area is the chance that the first is larger. An alarm needs a line: above all that the living
runs ever showed (the lowest rate of false alarms that so many steps can show), or above all but one step in a thousand. No death has a
part in its own line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suite.evidence.deaths import QUANTITIES, strided
from suite.evidence.hazard import died_healthy
from suite.evidence.markdown import table
from suite.evidence.stats import LEVEL
from suite.records.tables import RowsByRun, Store

HORIZONS, AUDITED_HORIZONS = (10, 25, 100, 400), (25, 100, 400)  # steps before a death
ONE_IN = 1e-3  # of the healthy steps lie above the second line
START = 60  # steps that a signal needs before it can be read; the digits have learnt their first by then
DRAWS = 500  # bootstrap samples of runs for an interval of the area
SHORT, BASES = 5, (20, 50)  # steps now, and steps before them to compare with

Signal = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Life:
    """One run: its crash step or None, whether it was healthy when it died, its signals by name, each (steps,) with nan, and its cell."""

    crash: int | None
    healthy: bool
    signals: dict[str, np.ndarray]
    steps: np.ndarray
    cell: tuple[str, ...] = ()


def trailing(x: np.ndarray, width: int) -> np.ndarray:
    """(N,) medians of the last `width` values; nan where there are fewer."""
    out = np.full(len(x), np.nan)
    if len(x) >= width:
        out[width - 1:] = np.median(np.lib.stride_tricks.sliding_window_view(x, width), axis=1)
    return out


def growth(base: int, of_norm: bool) -> Signal:
    """The logarithm of the median of the last SHORT steps over that of the `base` steps before them."""

    def signal(loss: np.ndarray, norm: np.ndarray) -> np.ndarray:
        x = np.log(np.maximum(norm if of_norm else loss, 1e-30))
        before = np.full(len(x), np.nan)
        before[SHORT:] = trailing(x, base)[:-SHORT]
        return trailing(x, SHORT) - before

    return signal


SIGNALS: dict[str, Signal] = {
    **{f"growth of the gradient norm, {SHORT} steps over {base}": growth(base, True) for base in BASES},
    "gradient norm": lambda loss, norm: trailing(norm, SHORT),
    f"growth of the loss, {SHORT} steps over {BASES[0]}": growth(BASES[0], False),
    "loss over its lowest so far": lambda loss, norm: trailing(loss, SHORT) / np.fmin.accumulate(trailing(loss, SHORT)),
}


def lives(folders: list[Path]) -> Iterator[Life]:
    """Runs that lived or died with a finite loss, with the signals of loss and gradient norm."""
    for row, parts in _runs(folders):
        steps, loss, norm = (parts.frame("curves", row)[name].to_numpy() for name in ("step", "loss", "grad_norm"))
        signals = {name: f(loss, norm) for name, f in SIGNALS.items()}
        yield Life(_crash(row), died_healthy(row, parts.rows("evals", row)), signals, steps, _cell(row))


def audited(folders: list[Path]) -> Iterator[Life]:
    """The same with what the audit measured at every so many steps, medians over the deep blocks."""
    for row, parts in _runs(folders):
        found = strided(parts.frame("audit", row), int(row["depth"]))
        if found:
            steps = np.array(sorted(set.union(*(set(series.index) for series in found.values()))))
            yield Life(_crash(row), died_healthy(row, parts.rows("evals", row)),
                       {name: series.reindex(steps).to_numpy(float) for name, series in found.items()}, steps, _cell(row))  # fmt: skip


def _runs(folders: list[Path]):
    for folder in folders:
        parts = RowsByRun(folder)
        for row in Store(folder).runs():
            lived = row["outcome"] == "survived" and not row["late_step"]
            if row["status"] == "done" and (lived or row["outcome"] in ("collapsed", "degraded")):
                yield row, parts


def _crash(row: dict[str, str]) -> int | None:
    return int(row["crash_step"]) if row["crash_step"] else None


def _cell(row: dict[str, str]) -> tuple[str, ...]:
    return row["protocol"], row["scheme"], row["params"], row["arm"], row["depth"], row["lr"]


@dataclass(frozen=True)
class Score:
    """How well one signal warns within one horizon: the area under its curve with an interval, of n dead runs against living ones."""

    area: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Warned:
    """The dead of which a signal passed a line within the horizon, of all of them, and the median steps from there to the crash."""

    warned: int
    dead: int
    lead: float


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
    """The chance that a value of a cell's first is larger than one of its second, ties half, over all values of all cells alike; and its
    interval, with the dead and the living runs of each cell resampled."""
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
    found = list(lives(folders))
    living, healthy = [life for life in found if life.crash is None], [life for life in found if life.crash and life.healthy]
    every = [life for life in found if life.crash and life.crash > START]
    said = [_table("all deaths", every, living, SIGNALS, HORIZONS), _table("deaths of healthy runs", healthy, living, SIGNALS, HORIZONS)]
    seen = list(audited([results / "anatomy"])) if (results / "anatomy").is_dir() else []
    living, dead = [life for life in seen if life.crash is None], [life for life in seen if life.crash and life.healthy]
    if living and dead:
        said.append(_table("audited, deaths of healthy runs", dead, living, QUANTITIES, AUDITED_HORIZONS))
    return "\n\n".join(said)


def _table(title: str, dead: list[Life], living: list[Life], names, horizons) -> str:
    steps = sum(len(_calm(life, next(iter(names)))) for life in living)
    longest = horizons[-2]
    scored = {name: [score(dead, living, name, horizon) for horizon in horizons] for name in names}
    compared = [max((found[k].n for found in scored.values() if found[k]), default=0) for k in range(len(horizons))]
    head = [f"{title} (n = {len(dead)}; {len(living)} lived, {steps:,} steps)",
            *(f"area, {h} steps before (n = {n})" for h, n in zip(horizons, compared, strict=True)),
            f"warned in the last {longest}, no false alarm (below {3000 / steps:.2g} per 1,000)",
            "at one false alarm per 1,000"]  # fmt: skip
    rows = []
    for name in names:
        found = [warned(dead, name, longest, line(living, name, passing)) for passing in (0.0, ONE_IN)]
        rows.append([name, *("-" if s is None else f"{s.area:.2f} [{s.low:.2f}, {s.high:.2f}]" for s in scored[name]),
                     *(f"{w.warned} of {w.dead}" + (f", {w.lead:g} steps before" if w.warned else "") for w in found)])  # fmt: skip
    return table(head, rows)
