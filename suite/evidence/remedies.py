"""Remedies that are no residual schemes, beside none: who still dies where plain and MV-Split do, and what it costs where plain learns."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from suite.evidence.cells import ended, runs_of
from suite.evidence.hypotheses import EQUAL
from suite.evidence.markdown import table
from suite.presets import HARD, MVSPLIT_DIES, PLAIN_DIES, PLAIN_LEARNS
from suite.verdict.outcome import DEAD

NAME = "remedies"
CENTERING = "centering"  # of the trunk: the one remedy that is written as a scheme
NONE = "none"
CALLED = {  # in the table's order
    NONE: "none", CENTERING: "hard centering, P X + F", "a_minus_i": "attention A - I", "i_minus_a": "attention I - A",
    "half_a": "attention (I + A)/2", "head_gates": "attention's output gated by head",
    "feature_gates": "attention's output gated by feature",
    "clip_off": "no clipping", "clip_0.1": "clipping at .1", "beta2_0.95": "beta2 .95", "warmup_200": "warm-up of 200 steps",
}  # fmt: skip


def remedied(results: Path) -> pd.DataFrame:
    """The runs of `remedies`, with `remedy`, of CALLED, and `on`: the scheme that it is put to."""
    runs = ended(runs_of(results / NAME)).query("arm == 'controlled' and writers == 'zero' and depth == 100 and data == 'digits'")
    hard = (runs["scheme"] == "split") & (runs["params"] == HARD) & (runs["control"] == "")
    runs = runs[hard | runs["scheme"].isin(["plain", "mvsplit"])]
    hard = hard[runs.index]
    remedy = runs["control"].where(runs["control"] != "", NONE).mask(hard, CENTERING)
    return runs.assign(remedy=remedy, on=runs["scheme"].mask(hard, "plain"))


def at(runs: pd.DataFrame, remedy: str, on: str, lr: float) -> pd.DataFrame:
    """The runs of a cell of `remedies`."""
    return runs[(runs["remedy"] == remedy) & (runs["on"] == on) & (runs["lr"] == lr)]


def remedies(results: Path) -> str:
    """Markdown: a row for each remedy that has runs."""
    runs = remedied(results)
    rows = []
    for remedy in (one for one in CALLED if one in set(runs["remedy"])):
        hot, cool, split = (at(runs, remedy, *cell) for cell in (("plain", PLAIN_DIES), ("plain", PLAIN_LEARNS), ("mvsplit", MVSPLIT_DIES)))
        rows.append([CALLED[remedy], _unusable(hot), _equal(hot), _when(hot), _loss(hot), _loss(cool), _unusable(split), _equal(split)])
    head = ["remedy", f"plain at {PLAIN_DIES:.2e}: unusable", "dead with equal tokens", "median step of death", "loss of the usable",
            f"plain at {PLAIN_LEARNS:.2e}: loss", f"MV-Split at {MVSPLIT_DIES:.2e}: unusable", "dead with equal tokens"]  # fmt: skip
    return table(head, rows)


def _unusable(runs: pd.DataFrame) -> str:
    return f"{(runs['outcome'] != 'survived').sum()} of {len(runs)}" if len(runs) else "-"


def _equal(runs: pd.DataFrame) -> str:
    dead = runs[runs["outcome"].isin(DEAD)]
    return f"{(dead['state'] == EQUAL).sum()} of {len(dead)}" if len(dead) else "-"


def _when(runs: pd.DataFrame) -> str:
    dead = runs["crash_step"].dropna()
    return f"{dead.median():.0f}" if len(dead) else "-"


def _loss(runs: pd.DataFrame) -> str:
    usable = runs[runs["outcome"] == "survived"]["heldout_loss"]
    return f"{usable.mean():.3f} (n = {len(usable)})" if len(usable) else "-"
