"""Which runs are compared: those that ended as planned, of one protocol version, by cell.

A cell is a scheme (with its arm, parameters, writers, data and precision) at a depth; its runs differ in rate and
seed alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from suite.presets import PROTOCOLS
from suite.protocol import SCHEMES
from suite.records.frame import of_run
from suite.records.schema import TABLES
from suite.verdict.outcome import fate

PLANS = ("anatomy", "deep", "scale")
SPECIAL = {item for plan in PLANS for cell in PROTOCOLS[plan].cells for item in cell.params.split(",") if item} - {"beta=1"}
STD = {cell.scheme for plan in PLANS for cell in PROTOCOLS[plan].cells if cell.writers == "std"}  # that have cells with either writers


class Cell(NamedTuple):
    """All that the runs of a cell share, as columns of runs.csv."""

    scheme: str
    arm: str
    params: str
    writers: str
    gate_lr: float
    data: str
    compiled: bool
    depth: int

    @property
    def label(self) -> str:
        """As `label` has it."""
        return label(self.scheme, self.params, self.writers, self.arm)


def name(scheme: str, params: str) -> str:
    """A scheme with what its parameters have of the plan's special ones."""
    return " ".join([scheme, *(item for item in params.split(",") if item in SPECIAL)])


def label(scheme: str, params: str, writers: str, arm: str) -> str:
    """A scheme with what its parameters have of the plans' special ones, and its writers and arm where those are not the plans'."""
    std = ["std writers"] * (scheme in STD and writers == "std")
    return " ".join([name(scheme, params), *std, *[arm] * (arm != "controlled")])


def runs_of(folder: Path) -> pd.DataFrame:
    """runs.csv of a folder, without rows where it has none."""
    return of_run(folder / TABLES["runs"].path, TABLES["runs"])


def how_many(results: Path) -> int:
    """The runs of a results folder, of today's protocols."""
    return sum(len(runs_of(results / name)) for name in PROTOCOLS)


def in_order(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs by cell, in the project's order of schemes; their index stays, which has the table's order."""
    place = runs["scheme"].map({scheme: i for i, scheme in enumerate(SCHEMES)}).fillna(len(SCHEMES))
    return runs.assign(place=place, gate_lr=runs["gate_lr"].fillna(1.0)).sort_values(["place", *Cell._fields])


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished runs of the newest version, in order, with `name` and `fate`; too short ones, and those with a control, are left out."""
    return ended(runs[runs["control"] == ""])


def ended(runs: pd.DataFrame) -> pd.DataFrame:
    """`finished`, with the runs that have a control."""
    runs = runs[(runs["status"] == "done") & (runs["outcome"] != "too_short")]
    runs = in_order(runs[runs["protocol_version"] == runs["protocol_version"].max()])
    return runs.assign(name=list(map(name, runs["scheme"], runs["params"])), fate=runs["outcome"].map(fate))


def controlled(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished runs of the arm in which schemes differ in nothing but themselves."""
    return finished(runs[runs["arm"] == "controlled"])


def cells(runs: pd.DataFrame) -> dict[Cell, pd.DataFrame]:
    """The finished runs by cell, in order."""
    return {Cell(*key): mine for key, mine in finished(runs).groupby(list(Cell._fields), sort=False)}
