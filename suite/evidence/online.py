"""How well a detector does that sees a training as it happens: what it finds, when, and how often it cries wolf.

A detector is made anew for every log, and is shown one row after another; it cannot see what comes. What counts is the
run: one that died is found by an alarm from LEAD rows before its death on, one that lived is a false alarm by any.
"""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from suite.detect.log_columns import read_logs
from suite.detect.simulated import FAMILIES, healthy, paper_like
from suite.evidence.jackknife import LEVEL
from suite.records.corpus import corpus

LEAD = 50  # rows before a death from which an alarm counts as one of it: the steps by which our protocols confirm one
LATE = 200  # step from which a run has learnt something (suite.verdict.outcome.MIN_STEPS): most deaths come sooner
SIMULATED = 200  # logs of each family: a false alarm in none is fewer than 1 in 54, exactly
ANSWERS = Path("detect/posted/answers.csv")  # of a results folder
NEAR = 5  # rows: how far from the death an alarm may place it

Detector = Callable[[int, float, float], object]  # (step, loss, gradient norm; nan where none is logged) -> what it says
Make = Callable[[], Detector]


class Seen(NamedTuple):
    """A log to be shown row by row: (N,) steps, loss and gradient norm, and the step of the death of one that died."""

    name: str
    steps: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray | None
    crash: int | None


@dataclass
class Score:
    """Counts of runs, and for those found the rows from the death to the alarm (below 0: before it) and to where it places the death."""

    died: int = 0
    found: int = 0
    early: int = 0  # runs that died, with an alarm more than LEAD rows before
    lived: int = 0
    false_alarms: int = 0
    delays: list[int] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)

    def row(self) -> dict[str, object]:
        """For a table: counts, and medians where something was found."""
        leads = [-delay for delay in self.delays if delay < 0]
        return {
            "died": self.died, "found": self.found, "early": self.early, "before": len(leads), "lead": median(leads) if leads else None,
            "delay": median(self.delays) if self.delays else None, "error": median(self.errors) if self.errors else None,
            "near": sum(error <= NEAR for error in self.errors), "lived": self.lived, "false_alarms": self.false_alarms,
        }  # fmt: skip


class DetectorError(ValueError):
    """A detector that cannot be scored: what it did, and where, in one line."""


def alarms(detector: Detector, log: Seen, name: str = "the detector") -> Iterator[tuple[int, int]]:
    """(row at which an alarm is raised, row at which it says that the death began) of a log, as a detector sees it.

    It says None or False for nothing, True for an alarm, or the step at which it takes the death to have begun.
    """
    norms = np.full(len(log.steps), math.nan) if log.grad_norm is None else log.grad_norm
    for i, (step, loss, norm) in enumerate(zip(log.steps.tolist(), log.loss.tolist(), norms.tolist(), strict=True)):
        try:
            said = detector(step, loss, norm)
        except Exception as error:
            what = str(error).partition("\n")[0]
            raise DetectorError(f"{name}: {type(error).__name__} at step {step} of {log.name}: {what}") from error
        if said is None or said is False or isinstance(said, np.bool_) and not said:
            continue
        if isinstance(said, bool | np.bool_):
            yield i, i
        elif isinstance(said, int | np.integer) and said <= step:
            yield i, int(np.searchsorted(log.steps, said))
        else:
            raise DetectorError(f"{name}: says {said!r} at step {step} of {log.name}; it is to say None or False, True, or a step so "
                                "far")  # fmt: skip


def score(make: Make, logs: Iterable[Seen], name: str = "the detector") -> Score:
    """A detector over logs. Raises DetectorError where it fails, or says what is no answer."""
    out = Score()
    for log in logs:
        told = alarms(make(), log, name)
        if log.crash is None:
            out.lived += 1
            out.false_alarms += next(told, None) is not None
            continue
        out.died += 1
        first = int(np.searchsorted(log.steps, log.crash))
        early = False
        for at, began in told:
            if at < first - LEAD:
                early = True
            elif began >= first - LEAD:
                out.found += 1
                out.delays.append(at - first)
                out.errors.append(abs(began - first))
                break
        out.early += early
    return out


def sets(results: Path, protocols: Iterable[str] | None = None) -> Iterator[tuple[str, list[Seen]]]:
    """What detectors are shown, by name: the runs of a results folder, those of them that died late, and simulated logs.

    A run that died by a number that is not finite is left out: nobody needs a detector for it.
    """
    ours = [Seen(f"run {log.run_id}", log.steps, log.loss, log.grad_norm, log.crash_step) for log in corpus(results, protocols)
            if log.outcome != "nonfinite"]  # fmt: skip
    yield "our runs", ours
    yield f"our deaths from step {LATE} on", [log for log in ours if log.crash is not None and log.crash >= LATE]
    yield "simulated: the paper's trace", [_made("the paper's trace", seed, *paper_like(seed)) for seed in range(SIMULATED)]
    for family in FAMILIES:
        yield f"simulated: {family}", [_made(family, seed, *healthy(family, seed)) for seed in range(SIMULATED)]
    if (results / ANSWERS).exists():
        yield "posted logs", list(posted(results))


def posted(results: Path) -> Iterator[Seen]:
    """The logs that people posted of which a careful reader says that they died with a finite loss, at a step that can be named, or
    that nothing happened. Those that cannot be read are left out."""
    for row in answers(results):
        outcomes = set(row["expected"].split("|"))
        died = bool(outcomes & {"collapsed", "degraded"}) and outcomes <= {"collapsed", "degraded", "unknown"}
        if not (died and row["step_low"].isdigit() or "survived" in outcomes and outcomes <= {"survived", "too_short", "refused"}):
            continue
        try:
            (log,) = read_logs((results / ANSWERS).parent / row["file"])
        except ValueError:  # no log for it, or several
            continue
        yield Seen(row["file"], log.steps, log.loss, log.grad_norm, int(row["step_low"]) if died else None)


def answers(results: Path) -> list[dict[str, str]]:
    """What a careful reader says of each posted log, written down before any was judged: columns file, source, expected (outcomes,
    any of which is right), step_low and step_high (where the event lies) and why."""
    with open(results / ANSWERS, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _made(name: str, seed: int, steps: np.ndarray, loss: np.ndarray, crash: int | None) -> Seen:
    return Seen(f"{name}, seed {seed}", steps, loss, None, crash)


def load(name: str) -> Make:
    """What makes a detector, by module:function. Raises DetectorError where there is none."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise DetectorError(f"--score {name}: give it as module:function, as in my_detector:make")
    try:
        make = getattr(importlib.import_module(module), function, None)
    except Exception as error:
        what = str(error).partition("\n")[0]
        raise DetectorError(f"--score {name}: {module} cannot be imported here: {type(error).__name__}: {what}") from error
    if not callable(make):
        raise DetectorError(f"--score {name}: {module} has no function {function}")
    try:
        detector = make()
    except Exception as error:
        what = str(error).partition("\n")[0]
        raise DetectorError(f"--score {name}: {function}() fails: {type(error).__name__}: {what}; it takes no argument") from error
    if not callable(detector):
        raise DetectorError(f"--score {name}: {function}() gives {type(detector).__name__}, not a function of step, loss and norm")
    return make


def interval(k: int, n: int) -> list[float] | None:
    """The exact 95 % interval of a share (Clopper, Pearson); None of nothing."""
    if not n:
        return None
    found = binomtest(k, n).proportion_ci(LEVEL, method="exact")
    return [round(found.low, 4), round(found.high, 4)]


def scores(name: str, results: Path) -> Iterator[dict[str, object]]:
    """What `detect --score` prints of a detector: a row a set of logs, with the intervals of its shares."""
    make = load(name)
    for logs, cases in sets(results):
        row = score(make, cases, name).row()
        yield {"detector": name, "logs": logs, **row, "found_share": interval(row["found"], row["died"]),
               "early_share": interval(row["early"], row["died"]),
               "false_alarm_share": interval(row["false_alarms"], row["lived"])}  # fmt: skip
