"""What `plan --cost` says, against counted operations, the paper's own step time, and rows of a bench table made up here."""

import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from suite.data.dataset import DataError
from suite.environment import ROOT
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.records.schema import TABLES
from suite.records.store import read_rows, write_rows
from suite.scale import price
from suite.scale.memory import micro_rows
from suite.sweep.plan import Selection, make_plan
from suite.training.state import build_model

NO_BENCH = ROOT / "no" / "bench.csv"
STEP = ("phase", "variant", "scheme", "depth", "device", "replicas")


def paper(depth=400, scheme="mvsplit", data_digest=price.UNREAD):
    p = PROTOCOLS["paper"]
    return Run(p, scheme, "controlled", "", "zero", depth, p.lrs[0], 0, p.data, data_digest, "", True)


def laptop(**changes):
    (run,) = make_plan(Selection("laptop", schemes=("plain",), depths=(100,), lrs=(4.05e-3,), seeds=(0,)))
    return replace(run, protocol=replace(run.protocol, **changes))


def measured(**cells):
    """A row of bench.csv, as text."""
    row = {"phase": "step", "variant": "suite", "scheme": "plain", "depth": "100", "setting": "digits", "width": "32", "image_tokens": "16",
           "caption_tokens": "4", "batch": "16", "dtype": "fp32", "device": "cuda", "workers": "1", "replicas": "1", "status": "measured",
           "median_ms": "20", "hardware": "NVIDIA H100"}  # fmt: skip
    return {column.name: "" for column in TABLES["bench"].columns} | row | {name: str(value) for name, value in cells.items()}


@pytest.mark.parametrize("replays", [False, True])
def test_operations_are_those_that_a_step_does(replays):
    """Counted by torch as a small model trains; only the products of the ends with the pixels are left out by neither."""
    run = laptop(width=64, heads=2, ffn=192, checkpoint_blocks=replays)
    run = replace(run, depth=9)
    model = build_model(run, (1, 8, 8))
    model.init_weights(0, init="0.02", writers="std", final="std")
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(16, 1, 8, 8), torch.randn(16, 4, 64), torch.rand(16)).square().mean().backward()
    again = 1.0 if replays else 0.0
    assert price.flops(price.size(run), 16, again) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_papers_step_gives_its_utilisation_and_that_its_step():
    weights, attention = 2 * 5_454_496_896, 4 * 512 * 1024 * 400
    by_hand = 1024 * 512 * (weights + attention) * 3.75 / (4.58 * 8 * 989.4e12)
    assert price.utilisation(256) == pytest.approx(by_hand, rel=1e-3) and 0.6 < by_hand < 0.7
    assert 0.3 < price.utilisation(32) < 0.4
    found = price.seconds(paper(), 8, 1, [])
    assert found.least == pytest.approx(4.58) and found.most == pytest.approx(4.58 * price.utilisation(256) / price.utilisation(32))
    sixteen = price.seconds(paper(), 16, 1, [])
    assert sixteen.least == pytest.approx(4.58 / 2) and found.source == sixteen.source == "estimated"


def test_a_measured_step_is_taken_before_an_estimate_and_the_nearest_first():
    table = [measured(median_ms=50), measured(replicas=8, median_ms=9), measured(depth=400, median_ms=90),
             measured(scheme="mvsplit", median_ms=30), measured(status="not measured", replicas=2), measured(device="cpu", replicas=3)]
    run = laptop()
    assert price.seconds(run, 1, 1, table) == price.Seconds(0.05, 0.05, "measured (plain, 100 blocks, a run alone, on NVIDIA H100)")
    assert price.seconds(run, 1, 7, table).least == 0.009 and "extrapolated" in price.seconds(run, 1, 7, table).source
    deep = price.seconds(replace(run, depth=800), 1, 1, table)
    assert deep.least == pytest.approx(0.18) and "in proportion to depth" in deep.source  # from 400 blocks
    assert price.seconds(replace(run, scheme="mvsplit", params=""), 1, 1, table).least == 0.03


def test_a_row_of_another_width_batch_or_precision_says_nothing():
    for other in ({"width": 64}, {"batch": 8}, {"dtype": "bf16"}, {"image_tokens": 64}, {"phase": "sample"}, {"variant": "reference"}):
        assert price.seconds(laptop(), 1, 1, [measured(**other)]) is None


def test_a_narrower_model_has_the_traffic_of_its_activations_in_its_range():
    (run,) = make_plan(Selection("quarter", schemes=("plain",), lrs=PROTOCOLS["quarter"].lrs[:1]))
    found, of = price.seconds(run, 1, 1, []), price.size(run)
    arithmetic = price.flops(of, 64, 1.0) / price.PEAK
    assert found.least > arithmetic and found.most > found.least
    assert found.least >= 8 * 64 * 400 * of.kept / 3.35e12  # forward, replay and twice that for backward, written and read


def test_the_papers_plan_is_costed_without_its_data(capsys):
    with pytest.raises(DataError):
        make_plan(Selection("paper"))
    runs = make_plan(Selection("paper"), for_costs=True)
    lines = price.describe(runs, (), ROOT / "results" / "bench" / "bench.csv")
    text = "\n".join(lines)
    assert "5,452,858,496" in text and "13,635,847,296" in text  # plain at 400, MV-Split at 1000: 5.45 and 13.64 billion (Table 3)
    assert f"{101_000 * 1024 * 512:,}" in text
    rows = {tuple(map(int, found.groups())): line for line in lines if (found := re.match(r" +(\d+) +(\d+)  (?:flat|sharded)", line))}
    assert sorted(rows) == [(depth, n) for depth in (400, 1000) for n in (1, 2, 4, 8, 16)]
    assert "no" in rows[400, 1].split() and "yes" in rows[400, 8].split() and "yes" in rows[1000, 16].split()
    assert "4.58 to" in rows[400, 8] and "128 to" in rows[400, 8]  # 101,000 steps of 4.58 s
    assert "estimated, measured nowhere here" in text and "none of it measured" in text
    hours = [re.search(r"(\d+) to (\d+) h", rows[depth, 8]).groups() for depth in (400, 1000)]
    page = " ".join((ROOT / "docs" / "paper_scale.md").read_text(encoding="utf-8").split())
    assert "it says {} to {} hours a run at 400 blocks and {} to {} at 1000".format(*hours[0], *hours[1]) in page


def test_data_of_ones_own_must_be_there_for_costs_too():
    with pytest.raises(DataError, match="no file other.parquet"):
        make_plan(Selection("paper", data="parquet:other.parquet"), for_costs=True)


def test_the_rows_said_are_those_that_the_sharded_loop_will_take():
    rows, state, activations = price.memory(paper(), 8)
    assert rows == micro_rows(paper(), 8, price.CARD - price.SPARE - state, *price.SHAPES["paper"]) and 128 % rows == 0
    assert state + activations <= price.CARD - price.SPARE < state + 2 * activations
    assert price.memory(paper(), 3) is None and not price.fits(None)
    assert not price.fits(price.memory(paper(), 1)) and price.memory(paper(1000), 2) is None  # 102 GiB of state a GPU


def test_quarter_fits_one_gpu_which_it_would_not_without_replays():
    runs = make_plan(Selection("quarter"))
    assert all(price.fits(price.memory(run, 1)) for run in runs)
    whole = [replace(run, protocol=replace(run.protocol, checkpoint_blocks=False)) for run in runs]
    assert not all(price.fits(price.memory(run, 1)) for run in whole)
    lines = price.describe(runs, (), NO_BENCH)
    assert sum("flat" in line for line in lines) == 1 and any("no utilisation is known at width 256" in line for line in lines)


def test_what_cannot_be_told_is_not(tmp_path):
    runs = make_plan(Selection("laptop", depths=(100,)))
    text = "\n".join(price.describe(runs, (), NO_BENCH))
    assert "time: none, as no step of this width" in text and "s a step" not in text and "1,344,292" in text
    (row,) = [row for row in read_rows(ROOT / "results" / "bench" / "bench.csv", TABLES["bench"])
              if tuple(row[name] for name in STEP) == ("step", "suite", "plain", "100", "cpu", "1")]
    write_rows(tmp_path / "bench.csv", TABLES["bench"], [row | {"device": "cuda", "hardware": "H100", "median_ms": "20"}])
    text = "\n".join(price.describe(runs, (), tmp_path / "bench.csv"))
    assert "time: measured (plain, 100 blocks" in text and "time: extrapolated from a measured step (plain" in text
    assert "0.15 min" in text and "1.5 min" in text  # 450 steps of 20 ms, and ten runs of them
    assert price.describe([], (), NO_BENCH)[0].startswith("no runs: no cost; a search")


def test_groups_share_a_gpu():
    runs = make_plan(Selection("laptop", schemes=("plain",), depths=(100,), lrs=(4.05e-3,), seeds=tuple(range(240))))
    rows, state, activations = price.memory(runs[0], 1, 120)
    assert (rows, state, activations) == (16, 120 * price.memory(runs[0], 1)[1], 120 * price.memory(runs[0], 1)[2])
    line = next(line for line in price.describe(runs, (1,), NO_BENCH) if " flat " in line)
    assert line.split()[3] == "120"  # 12,000 blocks as one model


def test_a_number_of_gpus_that_does_not_divide_the_batch_is_said():
    assert any("no: 1024 images do not divide" in line for line in price.describe([paper()], (3,), NO_BENCH))
