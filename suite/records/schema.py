"""The tables of `results/`; columns.csv beside this file is the dictionary of their columns: type, unit and meaning of each.

`suite.records.store` writes both out as `datapackage.json` beside the tables and checks every file against them. A
change of names, types, order or keys is a new SCHEMA_VERSION; a better sentence in a meaning is not.

Symbols: X is the trunk entering a merge, U the branch output that joins it, T the number of tokens, J X the token
mean mu(X), P X = X - J X the centered part c(X), A the attention matrix. At a writer W (attention W_O, FFN W_2), y_t
is its input and delta_t the gradient of the loss with respect to its output at token t; ybar and dbar are their token
means. Norms are Frobenius norms. Equation and table numbers are those of arXiv:2605.06169.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

SCHEMA_VERSION = "8"
# tables of no protocol's runs, whose rows say where they were made
MEASURED = ("bench", "rounding", "detect", "zoo", "head_to_head", "autopsy")
OF_NO_RUN = (*MEASURED, "critical_rates", "ranking", "hypotheses", "thresholds", "replay", "simulation", "references")
# columns of runs.csv that follow from its others: `verify` works them out again, and `rows_digest` leaves them out
DERIVED = ("trajectory",)
# columns that say where a row was made; `suite.environment.provenance` fills them
PROVENANCE = ("threads", "commit", "python", "torch", "accelerate", "cpu_model", "cpu_isa", "compiler", "platform")


@dataclass(frozen=True)
class Column:
    """One column. `unit` is "1" for a pure number and "" for text; an empty cell (not measured) is legal unless `required`."""

    name: str
    type: str  # string, integer, number or boolean
    unit: str
    meaning: str
    required: bool = False
    enum: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One table. `path` is relative to `results/<protocol>/`; one that names {run_id} is one compressed file a run.

    Those of OF_NO_RUN are of no protocol and none of its runs: they lie in `results/` or in a folder of their own, `results/bench/`.
    """

    name: str
    path: str
    meaning: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    order: tuple[str, ...] = ()  # columns to sort by; the key where empty

    @property
    def by_run(self) -> bool:
        """Whether each run has a file of its own."""
        return "{" in self.path


with open(Path(__file__).with_name("columns.csv"), encoding="utf-8", newline="") as _file:
    _ROWS = list(csv.DictReader(_file))


def _columns(table: str) -> tuple[Column, ...]:
    """The columns of a table, in their order; those of PROVENANCE are as runs.csv has them wherever they stand."""
    rows = [row for row in _ROWS if row["table"] == table]
    if table in MEASURED:
        rows += [row for row in _ROWS if row["table"] == "runs" and row["name"] in PROVENANCE]
    return tuple(
        Column(row["name"], row["type"], row["unit"], row["meaning"], bool(row["required"]), tuple(filter(None, row["enum"].split(";"))))
        for row in rows
    )


TABLES = {name: Table(name, path, meaning, key, _columns(name), *order) for name, path, meaning, key, *order in (
    ("runs", "runs.csv", "one row per attempted run, failures included", ("run_id",),
     ("protocol", "scheme", "arm", "params", "writers", "gate_lr", "control", "depth", "lr", "seed", "run_id")),
    ("curves", "curves/{scheme}-L{depth}/{run_id}.csv.gz", "raw training curves", ("run_id", "step")),
    ("evals", "evals.csv", "held-out loss along each run", ("run_id", "step")),
    ("quality", "quality.csv", "sample quality", ("run_id", "step")),
    ("throughput", "throughput.csv", "everything wall-clock; the one table that differs between repeats", ("run_id", "phase")),
    ("audit", "audit/{scheme}-L{depth}/{run_id}.csv.gz", "the paper's metrics by layer and merge",
     ("run_id", "step", "layer", "site", "segment")),
    ("spikes", "spikes.csv", "gradient spikes and the weights that carried them", ("run_id", "step", "rank")),
    ("probe", "probe.csv", "how well the timestep can be read from the trunk", ("run_id", "step", "layer", "feature")),
    ("gates", "gates.csv", "a scheme's own gates at every held-out evaluation; none for a scheme without gates",
     ("run_id", "step", "site", "third", "gate")),
    ("bench", "bench.csv", "what a step and its parts cost, by scheme and depth; all rows of one call on one machine",
     ("phase", "variant", "scheme", "depth", "setting", "device", "workers", "replicas"),
     ("phase", "setting", "device", "workers", "depth", "scheme", "variant")),
    ("rounding", "rounding.csv", "the same runs under other roundings (results/rounding/measure.py)",
     ("scheme", "depth", "lr", "seed", "isa", "compiled", "moved")),
    ("detect", "detect.csv", "how well `detect` judges logs whose truth is known (results/detect/judge_all.py)",
     ("truth", "family", "cut", "every")),
    ("zoo", "zoo.csv", "whether `Monitor` tells networks that learn from runs that die (results/detect/zoo.py)",
     ("truth", "network", "seed")),
    ("head_to_head", "head_to_head.csv", "who finds a death as it happens, and who cries wolf (results/detect/head_to_head.py)",
     ("logs", "detector")),
    ("critical_rates", "critical_rates.csv", "what each cell of the searches is ranked by: one row a cell",
     ("protocol", "scheme", "arm", "params", "writers", "gate_lr", "depth", "data"),
     ("protocol", "depth", "data", "arm", "best_loss", "scheme", "params", "writers", "gate_lr")),
    ("ranking", "ranking.csv", "the ranking of the schemes at every depth: one row a cell",
     ("protocol", "scheme", "arm", "params", "writers", "gate_lr", "depth", "data"),
     ("protocol", "depth", "data", "arm", "best_loss", "scheme", "params", "writers", "gate_lr")),
    ("hypotheses", "hypotheses.csv", "comparisons that were fixed before the runs; all others are exploratory",
     ("protocol", "quantity", "scheme", "over", "depth")),
    ("thresholds", "thresholds.csv", "what hangs on the thresholds of the crash rule (results/instrument/thresholds.py)",
     ("threshold", "value", "depth", "scheme")),
    ("replay", "replay.csv", "what searches cost, replayed on the committed runs (results/instrument/compare.py)",
     ("design", "scheme", "depth", "precision")),
    ("simulation", "simulation.csv", "what searches cost, and how often their intervals hold the truth, on simulated cells",
     ("design", "slope", "share", "precision")),
    ("autopsy", "autopsy.csv", "what networks use: held-out loss where some of what they read is exchanged (`python -m suite autopsy`)",
     ("run_id", "intervention"), ("scheme", "params", "depth", "lr", "seed", "run_id", "intervention")),
    ("references", "references.csv", "losses to compare it with: of predictors that see so much and no more",
     ("data", "image_tokens", "level")),
)}
