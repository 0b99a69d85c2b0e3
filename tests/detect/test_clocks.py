"""Clocks of logs: counters that restart, epochs, rows, resumes, ranks. And columns: which is the loss."""

import numpy as np
import pytest

from suite.detect.clocks import place
from suite.detect.judge import LogError, detect
from suite.detect.log_columns import read_logs

N = 200
_SOUND = np.random.default_rng(0).standard_normal(N)
ALIVE = 0.7 + 1.9 * np.exp(-np.arange(N) / 15) + 0.03 * _SOUND
DEAD = np.where(np.arange(N) < 60, ALIVE, 2.4 + 0.03 * _SOUND)


def write(tmp_path, head, rows):
    path = tmp_path / "log.csv"
    path.write_text(head + "\n" + "".join(",".join(str(cell) for cell in row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("head", "row", "at"), [
    ("step,loss", lambda i: (i % 50 * 10, DEAD[i]), 600),
    ("batch,loss", lambda i: (i % 50 + 1, DEAD[i]), 61),
    ("epoch,batch,loss", lambda i: (i // 50, i % 50, DEAD[i]), 60),
    ("epoch,iter,loss", lambda i: (i // 50 + 7, i % 50 * 20 + 20, DEAD[i]), 1220),
    ("iter,loss", lambda i: (i % 100, DEAD[i]), 60),
])  # fmt: skip
def test_a_counter_that_restarts_is_no_resume(tmp_path, head, row, at):
    """The run is dead since its second epoch; today's last epoch alone looks alive."""
    found = detect(write(tmp_path, head, map(row, range(N))))
    assert (found["outcome"], found["crash_step"], found["steps"]) == ("collapsed", at, N)
    assert any("are put end to end" in note for note in found["notes"])
    assert any(f"step {at} is at epoch" in note for note in found["notes"])


def test_a_run_that_was_begun_anew_is_a_resume(tmp_path):
    rows = [*((i, DEAD[i]) for i in range(100)), *((i, ALIVE[i]) for i in range(N))]
    (log,) = read_logs(write(tmp_path, "step,loss", rows))
    assert len(log.loss) == N and "from 99 to 0: taken as a resume" in log.notes[0]


def test_a_resume_within_an_epoch(tmp_path):
    places = [*((i // 50, i % 50) for i in range(100)), *((i // 50, i % 50) for i in range(80, N))]
    (log,) = read_logs(write(tmp_path, "epoch,iter,loss", ((*place, 1.0) for place in places)))
    assert log.steps.tolist() == list(range(N))
    assert any("taken as a resume" in note and "20 rows" in note for note in log.notes)


@pytest.mark.parametrize(("head", "row", "at", "said"), [
    ("epoch,loss", lambda i: (i + 1, DEAD[i]), 61, "steps are epochs"),
    ("epoch,loss", lambda i: (round(i * 0.013, 2), DEAD[i]), 61, "row 61 is at epoch 0.78"),
    ("epoch,loss", lambda i: (i // 10, DEAD[i]), 61, "row 61 is at epoch 6"),
    ("step,loss", lambda i: (0, DEAD[i]), 61, "what counts steps stays at 0"),
    ("step,epoch,loss", lambda i: (500, i, DEAD[i]), 60, "steps are epochs"),
])  # fmt: skip
def test_epochs_and_rows_count_where_no_step_does(tmp_path, head, row, at, said):
    found = detect(write(tmp_path, head, map(row, range(N))))
    assert (found["outcome"], found["crash_step"]) == ("collapsed", at)
    assert any(said in note for note in found["notes"])


def test_few_epochs_are_judged_as_points(tmp_path):
    assert detect(write(tmp_path, "epoch,loss", ((i + 1, ALIVE[i]) for i in range(40))))["outcome"] == "survived"
    assert detect(write(tmp_path, "epoch,loss", ((i + 1, ALIVE[i]) for i in range(19))))["outcome"] == "too_short"


def test_the_user_names_what_counts(tmp_path):
    path = write(tmp_path, "tokens,n,loss", ((i * 0.37, i, DEAD[i]) for i in range(N)))
    assert detect(path, step="n")["crash_step"] == 60
    found = detect(path, step="tokens")
    assert found["crash_step"] == 61 and any("row 61 is where the clock shows 22.2" in note for note in found["notes"])
    with pytest.raises(LogError, match="--step x: no such column; it has tokens, n, loss"):
        detect(path, step="x")
    with pytest.raises(LogError, match="'step' is not in the header.*--step NAME"):
        detect(path)


def test_one_of_several_ranks_that_breaks_is_seen(tmp_path):
    rows = [(i, r, "nan" if r == 1 and i >= 150 else ALIVE[i]) for i in range(N) for r in (0, 1, 2)]
    found = detect(write(tmp_path, "step,rank,loss", rows))
    assert (found["outcome"], found["crash_step"]) == ("nonfinite", 150)


def test_rows_of_one_step():
    t, loss, lines = [1, 2, 2, 3, 3, 3], np.array([1.0, 2.0, 3.0, np.nan, 4.0, 5.0]), range(2, 8)
    placed = place(t, None, loss, lines)
    assert placed.kept.tolist() == [0, 2, 3] and len(placed.notes) == 1


@pytest.mark.parametrize(("head", "cells", "column"), [
    ("step,loss_scale,my_loss", (65536, None), "my_loss"),
    ("step,loss scale,train/cls_loss", (1.0, None), "train/cls_loss"),
    ("step,best_loss,cls_loss", (0.1, None), "cls_loss"),
    ("step,loss,reduced_train_loss", ("nan", None), "reduced_train_loss"),
    ("step,loss,other_loss", ("", None), "other_loss"),
    ("iteration,val_loss,Train Loss", (1.0, None), "Train Loss"),
])  # fmt: skip
def test_the_column_of_the_loss_is_found_and_named(tmp_path, head, cells, column):
    path = write(tmp_path, head, ((i, cells[0], DEAD[i]) for i in range(N)))
    found = detect(path)
    assert found["crash_step"] == 60 and f"loss: column {column!r}" in found["notes"]
    assert ("steps: column 'iteration'" in found["notes"]) == head.startswith("iteration")
    assert not any("column" in note for note in detect(path, column=column, step=head.split(",")[0])["notes"] if note.startswith("loss"))


@pytest.mark.parametrize(("head", "words"), [
    ("step,loss_weight,acc", "no other of a loss .step, loss_weight, acc."),
    ("step,loss,a_loss,b_loss", "'loss' is nan from its first row on, and several others may be the loss .a_loss, b_loss."),
])  # fmt: skip
def test_a_loss_that_cannot_be_told_is_asked_for(tmp_path, head, words):
    with pytest.raises(LogError, match=words + ".*--column NAME"):
        detect(write(tmp_path, head, ((i, "nan", 1.0, 1.0)[: head.count(",") + 1] for i in range(N))))


def test_all_losses_that_are_nan_are(tmp_path):
    assert detect(write(tmp_path, "step,loss,part_loss", ((i, "nan", "nan") for i in range(N))))["outcome"] == "nonfinite"
