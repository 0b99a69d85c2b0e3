"""What the claims are computed from: the committed tables, each read once and only when it is asked for.

Everything is an attribute that may be replaced before it is read, so that a claim can be put to other tables than the committed ones.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from suite.evidence.cells import Cell, cells, controlled, finished, runs_of
from suite.evidence.critical_rates import pool, pooled
from suite.evidence.early_warning import SIGNALS, Warned, curves, line, warned
from suite.evidence.edges import Ratio, hypotheses, ratios
from suite.evidence.events import DEEP, events
from suite.evidence.hazard import with_health
from suite.evidence.measures import Measures, measures
from suite.evidence.remedies import remedied
from suite.presets import PROTOCOLS
from suite.records.schema import TABLES
from suite.records.store import RowsByRun, read
from suite.records.trajectories import once
from suite.verdict.outcome import DEAD
from suite.verdict.smooth import short_median

LONG = ("anatomy", "anatomy64")  # runs below their edge, audited, watched for long after a crash
LOW, HIGH = 0.25, 0.75  # of the way from the best loss to c: between them a loss jumps
SETTLE = 50  # steps behind a crash from which a loss should stay where it is: the confirmation window
BOTH = "beta=1,sites=both"  # MV-Split as in the paper at 400 blocks


class Tables:
    """The tables of a results folder."""

    def __init__(self, results: Path) -> None:
        self.results = Path(results)

    @cached_property
    def _long(self) -> list[Path]:
        """The folders of the long runs: those that are there, or else one that is empty."""
        return [self.results / name for name in LONG if self._has(name)] or [self.results / LONG[0]]

    def _has(self, protocol: str) -> bool:
        return (self.results / protocol / TABLES["runs"].path).exists()

    def _of_runs(self, name: str, protocol: str) -> pd.DataFrame:
        """A table of a protocol with the columns of its runs beside it; no rows where the folder has none."""
        folder = self.results / protocol
        runs = finished(runs_of(folder)).sort_index()
        return (read(folder, name) if self._has(protocol) else runs[["run_id"]]).merge(runs, on="run_id", suffixes=("", "_of_run"))

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The finished runs of every protocol, a trajectory once."""
        folders = [self.results / name for name in PROTOCOLS if self._has(name)] or [self.results / "none"]
        return once(pd.concat([finished(runs_of(folder)) for folder in folders], ignore_index=True))

    @cached_property
    def remedied(self) -> pd.DataFrame:
        """The runs of `remedies`, as `remedies.remedied` has them."""
        return remedied(self.results)

    @cached_property
    def scale(self) -> list[Measures]:
        """The numbers of the cells of `scale`, and of the frontier's beside them, that have a best loss."""
        return [one for one in pooled(self.results, "scale") if one.fresh]

    @cached_property
    def scale_runs(self) -> dict[Cell, pd.DataFrame]:
        """Their runs, by cell."""
        return cells(pool(self.results, "scale"))

    @cached_property
    def frontier(self) -> pd.DataFrame:
        return controlled(runs_of(self.results / "frontier"))

    @cached_property
    def measures(self) -> dict[tuple[str, int], Measures]:
        """By scheme and depth the frontier's numbers."""
        return {(one.cell.scheme, one.cell.depth): one for one in measures(self.frontier)}

    @cached_property
    def ratios(self) -> list[Ratio]:
        """LR50 over plain's, of the comparisons that were fixed beforehand."""
        fixed = hypotheses(self.results, "frontier") if len(self.frontier) else ()
        return [one for one in ratios(self.frontier, fixed) if one.adjusted is not None] if len(fixed) else []

    @cached_property
    def long(self) -> pd.DataFrame:
        """The runs below their edge, with health."""
        return pd.concat([with_health(folder) for folder in self._long], ignore_index=True)

    @cached_property
    def events(self) -> pd.DataFrame:
        return events(self._long)

    @cached_property
    def aftermath(self) -> pd.DataFrame:
        """The dead of the long runs, with `jump` (steps that the loss takes from LOW to HIGH of the way to c, nan if it does not), `seen`
        (steps trained behind SETTLE), `lowest` (of the way to c, the lowest short median there) and `top_norm` (largest raw gradient
        norm within ten steps of the crash)."""
        parts, out = {folder.name: RowsByRun(folder) for folder in self._long}, []
        for run in self.long[self.long["outcome"].isin(DEAD)].to_dict("records"):
            curve = parts[run["protocol"]].frame("curves", run)
            step, crash, best = curve["step"].to_numpy(), run["crash_step"], run["best_loss"]
            way = (short_median(curve["loss"]) - best) / (run["constant_loss"] - best)
            behind = way[step >= crash + SETTLE]
            near = curve["grad_norm"][(curve["step"] - crash).abs() <= 10]
            out.append(run | {"jump": _jump(step, way, crash), "seen": len(behind), "top_norm": near.max(),
                              "lowest": behind.min() if len(behind) else float("nan")})  # fmt: skip
        return pd.DataFrame(out)

    @cached_property
    def warnings(self) -> list[Warned]:
        """Of each signal: the healthy deaths that it warns of, by a line that no run that lived ever passed."""
        lives = list(curves(self._long))
        living, dead = [life for life in lives if life.crash is None], [life for life in lives if life.crash and life.healthy]
        return [warned(dead, name, line(living, name, 0.0)) for name in SIGNALS] if living and dead else []

    @cached_property
    def modes(self) -> pd.DataFrame:
        """Of every audited run of the long ones: the medians of g_mean and g_ctr of attention's W_O over blocks and the evenly spaced
        steps from 200 to the crash."""
        parts, out = {folder.name: RowsByRun(folder) for folder in self._long}, []
        for run in self.long.to_dict("records"):
            rows = parts[run["protocol"]].frame("audit", run)
            end = run["horizon"] if pd.isna(run["crash_step"]) else run["crash_step"] - SETTLE
            rows = rows[~rows["window"] & (rows["site"] == "attn") & (rows["segment"] == "all") & rows["step"].between(200, end)]
            if len(rows):
                out.append(run | rows[["g_mean", "g_ctr"]].median().to_dict())
        return pd.DataFrame(out)

    @cached_property
    def spikes(self) -> pd.DataFrame:
        return self._of_runs("spikes", "anatomy")

    @cached_property
    def probe(self) -> pd.DataFrame:
        return self._of_runs("probe", "anatomy")

    @cached_property
    def quality(self) -> pd.DataFrame:
        """Scores of the anatomy and of the laptop protocol, with their runs."""
        return pd.concat([self._of_runs("quality", name) for name in ("anatomy", "laptop")], ignore_index=True)

    @cached_property
    def start(self) -> pd.DataFrame:
        """The runs with standard writers and final projection, with `tcs`: median over the last quarter of the blocks at the last
        audited step."""
        folder, out = self.results / "stdinit", []
        parts = RowsByRun(folder)
        for run in finished(runs_of(folder)).to_dict("records"):
            rows = parts.frame("audit", run)
            rows = rows[(rows["segment"] == "all") & (rows["site"] == "attn") & (rows["layer"] >= DEEP * run["depth"])]
            out.append(run | {"tcs": rows.loc[rows["step"] == rows["step"].max(), "tcs"].median()})
        return pd.DataFrame(out)


def _jump(step, way, crash: int) -> float:
    """Steps from the last point below LOW before the loss first is above HIGH near the crash; nan where it never is."""
    above = np.flatnonzero((step >= crash - SETTLE) & (way > HIGH))
    if not len(above):
        return np.nan
    below = np.flatnonzero((step < step[above[0]]) & (way < LOW))
    return float(step[above[0]] - step[below[-1]]) if len(below) else np.nan
