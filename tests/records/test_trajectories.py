"""A trajectory is one sample: which rows share one, by their columns and by the bytes of their curves."""

import gzip
from dataclasses import fields, replace

import pandas as pd
import pytest

from suite.environment import ROOT
from suite.presets import PROTOCOLS
from suite.protocol import MEASURED, Protocol, Run
from suite.records.trajectories import once

FOLDERS = sorted(path.parent for path in (ROOT / "results").glob("*/runs.csv"))
SAME = ["scheme", "arm", "params", "writers", "gate_lr", "control", "depth", "lr", "seed", "data", "data_digest", "width",
        "image_tokens", "caption_tokens", "batch", "init", "compiled", "dtype", "code_digest"]  # fmt: skip
PLAN = ("purpose", "group_blocks", "cells", "depths", "lrs", "seeds", "data", "search", "unscored", "at_depth")


@pytest.fixture(scope="module")
def committed():
    return pd.concat([pd.read_csv(folder / "runs.csv", keep_default_na=False, dtype=str) for folder in FOLDERS], ignore_index=True)


def test_rows_share_a_trajectory_where_all_their_columns_say_so(committed):
    done = committed[committed["status"] == "done"]
    assert (done["trajectory"] != "").all() and not committed["run_id"].duplicated().any()
    assert (done.groupby(SAME)["trajectory"].nunique() == 1).all() and (done.groupby("trajectory")[SAME].nunique() == 1).all(axis=None)


def test_the_curves_of_a_trajectory_have_the_same_bytes_as_far_as_both_go(committed):
    """Of one kind of machine; between two the column still says that the same was asked for."""
    def lines(row):
        path = ROOT / "results" / row.protocol / "curves" / f"{row.scheme}-L{row.depth}" / f"{row.run_id}.csv.gz"
        return [line.partition(",")[2] for line in gzip.decompress(path.read_bytes()).decode().splitlines()]

    groups = [rows for _, rows in committed.groupby(["trajectory", "cpu_model", "cpu_isa"]) if len(rows) > 1]
    assert len(groups) >= 93
    for rows in groups:
        first, *others = sorted((lines(row) for row in rows.itertuples()), key=len)
        assert len(first) > 50 and all(first == other[: len(first)] for other in others), rows["run_id"].tolist()


def test_length_and_measurement_leave_a_trajectory_alone_and_all_else_moves_it():
    run = Run(PROTOCOLS["frontier"], "plain", "controlled", "-", "zero", 50, 5e-3, 0, "digits", "d1", "d2", True)

    def other(value):
        return not value if isinstance(value, bool) else value + "x" if isinstance(value, str) else value + 1 if value != () else (3,)

    for setting in fields(Protocol):
        if setting.name not in PLAN:
            changed = replace(run, protocol=replace(run.protocol, **{setting.name: other(getattr(run.protocol, setting.name))}))
            assert changed.run_id != run.run_id or setting.name == "compiled", setting.name  # that one is the run's own
            assert (changed.trajectory == run.trajectory) == (setting.name in (*MEASURED, "compiled")), setting.name
    for name in ("scheme", "arm", "writers", "depth", "lr", "seed", "data_digest", "code_digest", "compiled", "gate_lr", "control"):
        assert replace(run, **{name: other(getattr(run, name))}).trajectory != run.trajectory, name


def test_the_longest_of_a_trajectory_counts_and_of_equals_the_first():
    runs = pd.DataFrame({"trajectory": ["a", "b", "a", "", "b", ""], "horizon": [400, 400, 3000, 400, 400, 400], "n": range(6)})
    assert once(runs)["n"].tolist() == [1, 2, 3, 5]
