"""Tables as programs print them, each judged as the plain CSV of the same run is; and lines whose step has no name."""

import numpy as np
import pandas as pd
import pytest

from suite.detect.log_columns import LogError, read_logs

STEPS = np.arange(500, 20500, 500)
LOSS = np.round(0.4 + 2 * np.exp(-STEPS / 4000) + 0.02 * np.random.default_rng(0).normal(size=len(STEPS)), 4)
NONE = np.full(len(STEPS), 9.0)


def rows(form, steps=STEPS, loss=LOSS):
    return "".join(form.format(s=s, x=x, n=n) + "\n" for n, (s, x) in enumerate(zip(steps, loss, strict=True)))


def same(tmp_path, text, steps=STEPS, loss=LOSS):
    path = tmp_path / "log.txt"
    path.write_text(text)
    (found,) = read_logs(path)
    return np.array_equal(found.steps, steps) and np.allclose(found.loss, loss, equal_nan=True)


EPOCHS = np.arange(1, len(STEPS) + 1)


@pytest.mark.parametrize("text", [
    "Step Training Loss\n" + rows("{s} {x}"),
    "Step\tTraining Loss\tValidation Loss\n" + rows("{s}\t{x}\t9.0"),
    "Step  Training Loss  Validation Loss  Accuracy\n" + rows("{s}  {x}  No log  0.5"),
    " [ 400/20000 05:02 < 20:11]\nStep Training Loss Validation Loss\n" + rows("{s} {x} 9.0") + "saved\n",
    "| step | train_loss | lr |\n|------|:----------:|----|\n" + rows("| {s} | {x} | 1e-4 |"),
    "+------+--------+\n| step | loss   |\n+------+--------+\n" + rows("| {s} | {x} |") + "+------+--------+\n",
    "      step      loss  valid_loss\n" + rows("{n}  {s}  {x}  9.0"),
    pd.DataFrame({"step": STEPS, "train_loss": LOSS, "val_loss": NONE}).to_string(index=False) + "\n",
    "starting\nepochs follow\nstep   loss   time\n" + rows("{s} {x} 00:09") + "Better model found at step 3\n",
])  # fmt: skip
def test_a_printed_table(tmp_path, text):
    assert same(tmp_path, text)


def test_fastais_tables_old_and_new(tmp_path):
    old = "Total time: 06:39\nepoch train_loss valid_loss error_rate\n" + rows("{s} {x} 1.04 0.5 (00:13)", EPOCHS)
    new = "epoch     train_loss  valid_loss  accuracy  time\n" + rows("{s}         {x}    1.04        0.5       00:13", EPOCHS)
    for text in (old, new):
        assert same(tmp_path, text, EPOCHS)


def test_a_value_that_is_no_number_is_kept_and_a_broken_row_is_passed_over(tmp_path):
    loss = np.where(STEPS < 10000, LOSS, np.nan)
    assert same(tmp_path, "step train_loss\n" + rows("{s} {x}", loss=loss), loss=loss)
    text = "step train_loss\n" + rows("{s} {x}").replace("\n", "\nwarning: slow loader 3\n", 1)
    assert same(tmp_path, text)


def test_a_second_table_does_not_mix_with_the_first(tmp_path):
    assert same(tmp_path, "step valid_loss train_loss\n1 2 3\n2 3 4\nstep train_loss\n" + rows("{s} {x}"))


@pytest.mark.parametrize("form", [
    "{s} Loss : {x}", "[{s}]\ttrain-logloss:{x}\tvalid-logloss:9", "train_batch_loss[ {s} ]:  {x}", "loss({s}) = {x}", "{s}: loss {x}",
    "loss[{s}]: {x}, acc: 0.5", "  {s}   train_loss={x} lr=0.1",
])  # fmt: skip
def test_a_step_without_a_name(tmp_path, form):
    loss = np.where(STEPS < 15000, LOSS, np.nan)
    assert same(tmp_path, "start\n" + rows(form), loss=LOSS) and same(tmp_path, "start\n" + rows(form, loss=loss), loss=loss)


def test_a_bare_number_before_a_named_step_is_no_rank(tmp_path):
    assert same(tmp_path, rows("{n} step {s} loss {x}"))


@pytest.mark.parametrize("text", ["Epoch  2,   550/  725; acc:   0.00; ppl:  11.85;\n" * 9, "[10]\ttraining's mae: 22.5328\n" * 9])
def test_a_text_without_a_loss_says_so(tmp_path, text):
    path = tmp_path / "log.txt"
    path.write_text(text)
    with pytest.raises(LogError, match=r"line 1: no loss is named in it: .*--column NAME"):
        read_logs(path)
