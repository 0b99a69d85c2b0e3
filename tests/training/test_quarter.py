"""Protocol `quarter`: Table 3 at a quarter of its width, and that a small one of it trains in bf16, is scored and goes on after a stop."""

from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch

from suite.data.load import cached
from suite.presets import PROTOCOLS
from suite.sweep.execute import execute
from suite.sweep.plan import Selection, make_plan
from suite.training.state import build_model

QUARTER, PAPER = PROTOCOLS["quarter"], PROTOCOLS["paper"]


def small(scheme, **changes):
    """A run of `quarter` of one block and two images a step (bf16 is slow on a CPU), 2 steps to the horizon, 5 beyond it, eager."""
    (run,) = make_plan(Selection("quarter", schemes=(scheme,), depths=(1,), lrs=QUARTER.lrs[:1]))
    own = {"horizon": 2, "window": 5, "batch": 2, "heldout_every": 9, "checkpoint_every": 1, "fid_samples": 16, "nfe": 2}
    return replace(run, protocol=replace(run.protocol, **own | changes), compiled=False)


def test_it_is_table_3_at_a_quarter_of_its_width():
    assert QUARTER.width == PAPER.width // 4 and QUARTER.width // QUARTER.heads == PAPER.width // PAPER.heads == 128
    assert QUARTER.ffn == PAPER.ffn // 4 == 3 * QUARTER.width and QUARTER.depths == (400,) and 400 in PAPER.depths
    same = ("init", "final", "beta1", "beta2", "adam_eps", "weight_decay", "clip", "dtype", "nfe", "guidance")
    assert [getattr(QUARTER, name) for name in same] == [getattr(PAPER, name) for name in same]
    assert QUARTER.init == "0.02" and QUARTER.compiled
    assert QUARTER.lrs[0] == pytest.approx(1e-3 / (0.2 * QUARTER.width**0.5))  # App. G's rule, which gives `paper` its rate
    assert PAPER.lrs[0] == pytest.approx(1e-3 / (0.2 * PAPER.width**0.5))


def test_its_plan_is_the_papers_three_schemes_with_their_gates_and_writers():
    runs = make_plan(Selection("quarter"))
    assert {(run.scheme, run.params, run.writers) for run in runs} == {
        ("plain", "-", "zero"), ("mvsplit", "alpha=0,beta=1,sites=both", "zero"), ("layerscale", "init=0.01", "std")}  # fmt: skip
    assert len(runs) == 9 and {run.depth for run in runs} == {400} and {run.data for run in runs} == {"mnist"}


def test_its_model_has_196_image_tokens_and_a_sixteenth_of_the_papers_block():
    (run,) = make_plan(Selection("quarter", schemes=("plain",), lrs=QUARTER.lrs[:1]))
    with torch.device("meta"):
        model = build_model(run, (1, 28, 28))
    assert model.segments == (196, 4) and model.segment == 20
    blocks = sum(p.numel() for p in model.blocks.parameters())
    assert blocks == 400 * (4 * 256**2 + 3 * 256 * 768) == 400 * (4 * 1024**2 + 3 * 1024 * 3072) // 16


@contextmanager
def few_held_out():
    """Sixteen of the 826 held-out images, and forwards of eight: they are most of the time here."""
    data = cached("mnist")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("suite.sweep.execute.cached", lambda source: replace(data, heldout=data.heldout[::52]))
        patch.setattr("suite.training.evaluation.EVAL_ROWS", 8)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(scheme): the record of a small run, which was made once."""

    @cache
    def made(scheme):
        with few_held_out():
            return execute(small(scheme), tmp_path_factory.mktemp(scheme), "digits")

    return made


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["plain", "mvsplit", "layerscale"])
def test_a_small_one_trains_in_bf16_and_is_scored_by_the_mnist_features(trained, scheme):
    record = trained(scheme)
    row = record["run"]
    assert (row["status"], row["dtype"], row["image_tokens"], row["caption_tokens"], row["last_step"]) == ("done", "bf16", 196, 4, 7)
    assert [line["step"] for line in record["curve"]] == list(range(1, 8)) and all(0.5 < line["loss"] < 4 for line in record["curve"])
    scored = {line.get("fid_features") for line in record["quality"] if line["fid_status"] == "ok"}
    assert scored == {"mnist16"} and all(line["fid_status"] == "ok" for line in record["quality"])


@pytest.mark.slow
def test_a_small_one_that_was_stopped_goes_on_to_the_same_bytes(trained, tmp_path, monkeypatch):
    from suite.training.trainer import Trainer

    whole, advance = trained("mvsplit"), Trainer.advance

    def killed(self, *words):
        if self.state.step == 2:
            raise KeyboardInterrupt
        return advance(self, *words)

    with few_held_out():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Trainer, "advance", killed)
            execute(small("mvsplit", fid_samples=0), tmp_path / "cut", "digits")
        again = execute(small("mvsplit", fid_samples=0), tmp_path / "cut", "digits")
    assert again["curve"] == whole["curve"] and again["evals"] == whole["evals"]
