"""When a quantity leaves its calm range, and what is said of a death, on audits whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from suite.evidence import deaths
from suite.evidence.anatomy import _ratios, anatomy
from suite.evidence.hazard import Risk, poisson_interval
from suite.presets import PROTOCOLS
from suite.protocol import Cell
from suite.records.store import Store

CRASH = 100


def series(change=None):
    steps = np.arange(CRASH - 60, CRASH + 31)
    values = np.exp(0.1 * np.sin(2.4 * steps))  # restless, but never four scatters out
    return change(pd.Series(values, steps)) if change else pd.Series(values, steps)


def jump(at, until=1000, by=10.0):
    return series(lambda s: s.where((s.index < at) | (s.index > until), s * by))


def leaves(values, crash):
    return deaths.leaves(values.to_frame("x"), crash)["x"]


@pytest.mark.parametrize("offset", [-30, -25, -3, 0, 4, 10])
def test_a_lasting_jump_is_dated(offset):
    assert leaves(jump(CRASH + offset), CRASH) == offset
    assert leaves(1 / jump(CRASH + offset), CRASH) == offset  # down as well as up


def test_what_is_no_departure():
    assert math.isnan(leaves(series(), CRASH))
    assert math.isnan(leaves(jump(CRASH - 5, until=CRASH - 4), CRASH))  # two stray steps
    assert math.isnan(leaves(jump(CRASH + 11), CRASH))  # later than is asked
    assert math.isnan(leaves(jump(CRASH - 5, by=1.1), CRASH))  # within the scatter
    assert math.isnan(leaves(series()[lambda s: s.index > CRASH - 35], CRASH))  # too little calm to judge by


DEPTH, LAYERS = 8, (0, 3, 6, 7)


def died(folder, run_id, moves, held=0.7, **run):
    """A run that collapses at CRASH. moves: audited column -> (layer, step) at which it grows tenfold (1 - TCS: falls) in that layer."""
    draw = np.random.default_rng(0)
    steps = range(CRASH - 60, CRASH + 31)
    columns = {column for _, column in deaths.QUANTITIES.values()}
    audit = []
    for step in steps:
        for layer in LAYERS:
            for site in ("attn", "ffn"):
                row = {"step": step, "layer": layer, "site": site, "segment": "all", "window": True}
                for column in sorted(columns):
                    value = float(np.exp(0.1 * np.sin(2.4 * step + layer))) * (0.05 if column == "tcs" else 1)
                    at = moves.get(column, {}).get(layer)
                    if at is not None and step >= CRASH + at:
                        value = 0.999 if column == "tcs" else 10 * value
                    if column != "w2_grad" or site == "ffn":
                        row[column] = value
                audit.append(row)
    Store(folder).add({
        "run": {"run_id": run_id, "protocol": "anatomy", "protocol_version": PROTOCOLS["anatomy"].version, "scheme": "plain",
                "arm": "controlled", "params": "-", "writers": "zero", "control": "",
                "depth": DEPTH, "lr": 5e-3, "seed": 0, "data": "digits",
                "status": "done", "outcome": "collapsed", "crash_step": CRASH, "constant_loss": 2.0, "best_loss": 0.6, "horizon": 300,
                "window": 50, "state": "mean_dominated", "mms_signature": True, "last_step": CRASH + 30, "compiled": True} | run,
        "curve": [{"step": s, "loss": (0.7 if s < CRASH else 2.0) + 0.05 * draw.random(), "grad_norm": 1 + 0.1 * draw.random()}
                  for s in range(1, CRASH + 31)],
        "evals": [{"step": 50, "heldout_loss": 0.8}, {"step": 80, "heldout_loss": held}, {"step": 100, "heldout_loss": 2.0}],
        "audit": audit,
    })  # fmt: skip


def test_a_death_says_what_left_first_and_in_which_block(tmp_path):
    died(tmp_path, "a", {"tcs": {7: -5, 6: -12, 3: 4}, "g_ctr": {0: -8, 3: -8, 6: -2, 7: -2}})
    died(tmp_path, "b", {}, held=1.2)
    one, other = deaths.deaths(tmp_path)
    assert (one.run.died_healthy, other.run.died_healthy) == (True, False)
    assert one.forward == (6, -12) and one.backward == (3, -8)  # of several at once the deepest
    assert one.left["loss"] == 0 and math.isnan(one.left["gradient norm"]) and math.isnan(one.left["rho"])
    assert one.left["1-TCS"] == -12 and one.left["g_ctr"] == -2  # medians over the last quarter: blocks 6 and 7
    assert one.first == ["1-TCS"] and other.forward is None and other.first == ["loss"]


def test_the_readmes_tables_count_the_deaths(tmp_path):
    died(tmp_path / "anatomy", "a", {"g_ctr": {0: -8, 3: -8, 6: -2, 7: -2}})
    died(tmp_path / "anatomy", "b", {}, held=1.2, seed=1)
    died(tmp_path / "anatomy", "c", {}, seed=2, protocol_version=2)  # of an older version
    text = anatomy(tmp_path)
    assert "| plain | 8 | 0.005 | 2 | 2 | 1 | 79 |" in text and "| 0 | 0 | - |" in text  # from 50 to 99, and from 50 to 80
    assert "Every healthy death (1 run):" in text and "| plain | 8 | 0.005 | 0 | 100 | 0.60 | mean-dominated | yes | g_ctr (-2) |" in text
    low, high = poisson_interval(1)
    assert f"{1000 / 79:.3f} [{1000 * low / 79:.3f}, {1000 * high / 79:.3f}]" in text


def test_hazards_are_compared_piece_by_piece_at_one_rate_and_at_one_distance():
    known = [Risk("plain", 50, 6e-3, 8, 5, 9000, 3000, (1500, 1600, 1700)), Risk("plain", 50, 5e-3, 8, 1, 9000, 4000, (2000,)),
             Risk("mvsplit", 50, 7e-3, 8, 2, 9000, 2000, (300, 400)), Risk("mvsplit", 50, 6e-3, 8, 0, 9000, 2000),
             Risk("mvsplit sites=attn", 50, 6e-3, 3, 1, 3000, 1000, (1200,))]  # fmt: skip
    plan = replace(PROTOCOLS["anatomy"], depths=(50,), cells=(Cell("plain", lrs=(5e-3, 6e-3)), Cell("mvsplit", lrs=(7e-3, 6e-3)),
                                                              Cell("mvsplit", params="sites=attn", lrs=(6e-3,))))  # fmt: skip
    rows = {(row[0], row[1]): row for row in _ratios(known, plan)}
    assert [key for key in rows] == [("MV-Split", "rate"), ("MV-Split on attention alone", "rate"), ("MV-Split", "distance: highest"),
                                     ("MV-Split", "distance: second"), ("MV-Split", "distance: all")]  # fmt: skip
    assert rows["MV-Split", "rate"][3:] == ["0.006", "- [0 and 0]", "inf [0.48, inf; 3 and 0]"]  # 3 of 3 at 6000 and 7000 steps
    assert rows["MV-Split", "distance: highest"][3:5] == ["0.006 and 0.007", "0 [0, 3.5; 0 and 2]"]  # odds of 1 - .025^(1/2), times 2 / 3
    assert rows["MV-Split", "distance: all"][5].endswith("; 4 and 0]")
    assert rows["MV-Split on attention alone", "rate"][5].endswith("; 3 and 1]")


def test_the_strided_audit_has_its_steps_within_the_window_around_a_crash_too():
    columns = {column: 2.0 for _, column in deaths.QUANTITIES.values()} | {"tcs": 0.25, "segment": "all"}
    lines = [{"step": step, "layer": layer, "site": site, "window": dense, **columns}
             for dense, steps in ((False, (1, 100, 200, 300, 500)), (True, range(370, 431))) for step in steps
             for layer in (6, 7) for site in ("attn", "ffn")]  # fmt: skip
    audit = pd.DataFrame(lines)
    found = deaths.strided(audit, 8)
    assert list(found["rho"].index) == [1, 100, 200, 300, 400, 500]
    assert set(found["rho"]) == {2.0} and set(found["1-TCS"]) == {0.75}
    assert deaths.strided(audit[:0], 8).empty
