"""Training runs with labels: every committed run that died or lived on, once, with its curve and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from suite.environment import ROOT
from suite.presets import PROTOCOLS
from suite.records.frame import of_run
from suite.records.schema import TABLES
from suite.records.store import RowsByRun
from suite.records.tableerror import TableError
from suite.records.trajectories import once
from suite.verdict.outcome import DEAD


@dataclass(frozen=True, eq=False)
class Labelled:
    """One run's log, a point a step, and its label. The curve goes on behind a death, mostly for the 50 steps that confirm it."""

    run_id: str
    protocol: str
    scheme: str
    params: str
    depth: int  # blocks
    lr: float
    seed: int
    steps: np.ndarray  # (N,) integers
    loss: np.ndarray  # (N,) of the batch, in the data's unit
    grad_norm: np.ndarray  # (N,) before clipping
    outcome: str  # survived; collapsed, degraded or nonfinite: it died
    crash_step: int | None  # the first step at which a run that died was of no use; None for one that survived
    state: str  # of a run that died, at its end: mean_dominated (all tokens nearly equal), mean_free or other; else ""
    known_by: str  # how the label is known

    @property
    def dead(self) -> bool:
        """Whether it died."""
        return self.outcome in DEAD


def corpus(results: str | Path = ROOT / "results", protocols: Iterable[str] | None = None) -> Iterator[Labelled]:
    """The runs of a results folder that died or lived on, one at a time, each trajectory once, at its longest.

    Runs that never trained (stuck, untrained) are neither, and left out, and so are those whose loss rose only behind
    the last step that counts, and runs with a control. protocols: names of those whose runs are wanted; all by default. Labels are those of
    runs.csv, by `suite.verdict.outcome.judge`, which knows the loss of the best constant output. Raises TableError
    where the folder holds none of them.
    """
    import pandas as pd

    folders = [Path(results) / name for name in (PROTOCOLS if protocols is None else protocols)]
    folders = [folder for folder in folders if (folder / TABLES["runs"].path).exists()]
    if not folders:
        raise TableError(results, "no runs here", "run something first, or name a folder with runs of a protocol")
    parts = {folder.name: RowsByRun(folder) for folder in folders}
    runs = pd.concat([of_run(folder / TABLES["runs"].path, TABLES["runs"]) for folder in folders], ignore_index=True)
    runs = once(runs[(runs["status"] == "done") & (runs["control"] == "")])
    for row in runs[runs["outcome"].isin(DEAD) | (runs["outcome"] == "survived") & runs["late_step"].isna()].to_dict("records"):
        curve = parts[row["protocol"]].frame("curves", row)
        steps, loss, norm = (curve[name].to_numpy() for name in ("step", "loss", "grad_norm"))
        crash = int(row["crash_step"]) if row["outcome"] in DEAD else None
        same = {name: row[name] for name in ("run_id", "protocol", "scheme", "params", "depth", "lr", "seed", "outcome", "state")}
        yield Labelled(steps=steps, loss=loss, grad_norm=norm, crash_step=crash, known_by=_known_by(row, crash, len(steps)), **same)


def _known_by(row: dict, crash: int | None, followed: int) -> str:
    """How a run's label is known, in words."""
    if crash is None:
        return f"followed for {followed} steps, up to step {row['horizon']} no rise that stays"
    if row["outcome"] == "nonfinite":
        return f"loss or gradient norm is no finite number at step {crash}"
    stays = f"for the {row['window']} steps that confirm it" if row["confirmed"] else "to the end of its curve, too short to confirm it"
    return (f"the loss rises past half way between its lowest and that of the best constant output ({row['constant_loss']:.4g}) at step "
            f"{crash}, and stays there {stays}")  # fmt: skip
