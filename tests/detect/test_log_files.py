"""Logs as people have them: formats, names of columns, and values in disguise. Each is judged as the plain CSV of the same run is."""

import gzip
import io
import json
import math
import sys

import numpy as np
import pytest

from suite.detect import log_columns, log_file
from suite.detect.judge import detect, detect_runs
from suite.detect.log_columns import LogError, read_logs

STEPS = np.arange(10, 1010, 10)
LOSS = np.where(STEPS < 700, 0.8, 2.0) + 0.02 * np.random.default_rng(0).normal(size=len(STEPS))
ALIVE = 0.8 + np.exp(-STEPS / 100) + 0.02 * np.random.default_rng(1).normal(size=len(STEPS))
NAN_FROM = 600


def plain(loss=LOSS, steps=STEPS, head="step,loss"):
    return head + "\n" + "".join(f"{s},{x:.4f}\n" for s, x in zip(steps, loss, strict=True))


@pytest.fixture
def log(tmp_path):
    def write(content, name="log.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def same(path, steps=STEPS, loss=LOSS):
    (found,) = read_logs(path)
    return np.array_equal(found.steps, steps) and np.allclose(found.loss, loss, atol=5e-5, equal_nan=True)


@pytest.mark.parametrize("head", ["Step,train_loss", "global_step,train/loss", "iteration,Loss", "trainer/global_step,training_loss",
                                  "step,lm loss", "_step,my_fancy_loss"])  # fmt: skip
def test_usual_names_are_known(log, head):
    assert same(log(plain(head=head)))


def test_the_surer_name_wins_and_an_evaluation_loss_is_never_taken(log):
    rows = "".join(f"{s},9,{x:.4f},7\n" for s, x in zip(STEPS, LOSS, strict=True))
    assert same(log("step,train_loss,loss,eval_loss\n" + rows))
    assert same(log("step,val_loss,inner_loss,test/loss\n" + rows))
    with pytest.raises(LogError, match=r"several columns may be the loss \(a_loss, b_loss\).*--column"):
        read_logs(log("step,a_loss,b_loss,n\n" + rows))
    (found,) = read_logs(log("step,a_loss,b_loss,n\n" + rows), column="b_loss")
    assert np.allclose(found.loss, LOSS, atol=5e-5)
    with pytest.raises(LogError, match="--column c: no such column; it has step"):
        read_logs(log("step,a_loss,b_loss,n\n" + rows), column="c")


@pytest.mark.parametrize("text", [
    plain().encode("utf-16"), plain().encode("utf-8-sig"), gzip.compress(plain().encode()), plain().replace("\n", "\r\n").encode(),
    plain().replace(",", "\t").encode(), plain().replace(",", ";").replace(".", ",").encode(), plain().replace("\n", "\n\n").encode(),
    (plain(head="step,loss,note").replace("\n", ",a\u2028b\n").replace("note,a\u2028b", "note")).encode(),
])  # fmt: skip
def test_encodings_packings_and_delimiters(log, text):
    assert same(log(text))


def test_a_pipe(log, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(plain().encode()))))
    assert same("-")


def test_json_of_trainers(log):
    points = [{"step": int(s), "loss": round(float(x), 4), "learning_rate": 1e-3, "epoch": s / 500}
              for s, x in zip(STEPS, LOSS, strict=True)]  # fmt: skip
    evals = [{"step": 500, "eval_loss": 0.9, "eval_runtime": 3.0, "epoch": 1.0}]
    last = [{"step": 1000, "train_loss": 1.1, "train_runtime": 99.0, "epoch": 2.0}]
    history = points[:50] + evals + points[50:] + last
    assert same(log(json.dumps({"global_step": 1000, "log_history": history, "best_metric": None}, indent=2), "trainer_state.json"))
    assert same(log(json.dumps(history)))
    assert same(log("\n".join(json.dumps(point) for point in history) + "\n", "log.jsonl"))
    nested = "\n".join(json.dumps({"step": point["step"], "train": {"loss": point["loss"]}}) for point in points)
    assert same(log(nested, "log.jsonl"))
    broken = [point | {"loss": math.nan} if point["step"] >= NAN_FROM else point for point in points]
    assert detect(log(json.dumps(broken)))["crash_step"] == NAN_FROM
    with pytest.raises(LogError, match="line 2: not JSON"):
        read_logs(log('{"step": 1, "loss": 2}\n{"step": 2, "lo', "log.jsonl"))
    for text in ("[]", "[1, 2]", '{"log_history": 3}'):
        with pytest.raises(LogError, match="no points"):
            read_logs(log(text))


def test_exports_of_dashboards(log):
    board = "Wall time,Step,Value\n" + "".join(f"17.5,{s},{x:.4f}\n" for s, x in zip(STEPS, LOSS, strict=True))
    assert same(log(board))
    bands = "".join(f'"{s}","{x:.4f}","{x - 1:.4f}","{x + 1:.4f}"\n' for s, x in zip(STEPS, LOSS, strict=True))
    assert same(log('"Step","swift-1 - train/loss","swift-1 - train/loss__MIN","swift-1 - train/loss__MAX"\n' + bands))
    two = "".join(f'"{s}","{x:.4f}","0.8{i % 7}"\n' for i, (s, x) in enumerate(zip(STEPS, LOSS, strict=True)))
    found = detect_runs(log('"Step","swift-1 - train/loss","calm-2 - train/loss"\n' + two))
    assert [(run["run"], run["crash_step"]) for run in found] == [("swift-1", 700), ("calm-2", None)]


def test_a_file_of_several_runs_gives_a_verdict_a_run(log):
    rows = "".join(f"{run},{s},{x:.4f}\n" for run, loss in (("a", LOSS), ("b", ALIVE))
                   for s, x in zip(STEPS, loss, strict=True))  # fmt: skip
    path = log("run_id,step,loss\n" + rows)
    found = [(run["run"], run["outcome"], run["crash_step"]) for run in detect_runs(path)]
    assert found == [("a", "collapsed", 700), ("b", "survived", None)]
    with pytest.raises(LogError, match="holds 2 runs"):
        detect(path)


@pytest.mark.parametrize("word", ["nan", "NaN", "-nan", "nan (ind)", "-nan(ind)", "1.#QNAN", "-1.#IND", "inf", "-inf", "Infinity",
                                  "1.#INF", ""])  # fmt: skip
def test_every_spelling_of_a_value_that_is_no_number(log, word):
    text = "step,loss\n" + "".join(f"{s},{word if s >= NAN_FROM else f'{x:.4f}'}\n" for s, x in zip(STEPS, LOSS, strict=True))
    found = detect(log(text))
    assert (found["outcome"], found["crash_step"]) == ("nonfinite", NAN_FROM)
    assert any("taken as nan" in note for note in found["notes"]) == (word == "")


def test_a_loss_of_exactly_0_to_the_end_is_nan_but_not_where_losses_are_that_small(log):
    text = plain(np.where(STEPS >= NAN_FROM, 0.0, LOSS))
    found = detect(log(text))
    assert (found["outcome"], found["crash_step"]) == ("nonfinite", NAN_FROM)
    assert any(f"exactly 0 from step {NAN_FROM}" in note for note in found["notes"])
    (small,) = read_logs(log(plain(np.where(STEPS >= NAN_FROM, 0.0, 1e-3))))
    assert np.isfinite(small.loss).all() and not small.notes
    (end,) = read_logs(log(plain(np.where(STEPS >= 990, 0.0, LOSS))))  # two rows: a loss may be 0 once
    assert np.isfinite(end.loss).all()


def test_rows_without_a_loss_are_evaluations_where_losses_follow_or_the_step_has_one(log):
    rows = [f"{s},{x:.4f},\n" + (f"{s},,0.9\n" if s % 100 == 0 else "") for s, x in zip(STEPS, LOSS, strict=True)]
    path = log("step,loss,accuracy\n" + "".join(rows))
    assert same(path) and "10 rows have no loss" in read_logs(path)[0].notes[0]
    sparse = ["step,loss\n"] + [f"{s},{f'{x:.4f}' if s % 20 == 0 else ''}\n" for s, x in zip(STEPS, LOSS, strict=True)]
    assert same(log("".join(sparse)), STEPS[1::2], LOSS[1::2])


def test_a_gradient_norm_that_ends_while_the_loss_goes_on_is_nan(log):
    text = "step,loss,grad_norm\n" + "".join(f"{s},{0.8 + 0.01 * (s % 7):.4f},{'' if s >= NAN_FROM else 1.5}\n" for s in STEPS)
    assert detect(log(text))["crash_step"] == NAN_FROM
    some = "step,loss,grad_norm\n" + "".join(f"{s},{x:.4f},{'' if s % 50 else 1.5}\n" for s, x in zip(STEPS, ALIVE, strict=True))
    assert detect(log(some))["outcome"] == "survived"  # measured now and then


def test_a_resume_takes_the_place_of_what_it_left(log):
    left = [(s, 9.0) for s in range(510, 560, 10)]
    points = [*zip(STEPS[:50], LOSS[:50], strict=True), *left, *zip(STEPS[50:], LOSS[50:], strict=True)]
    path = log("step,loss\n" + "".join(f"{s},{x:.4f}\n" for s, x in points))
    assert same(path)
    (note,) = read_logs(path)[0].notes
    assert "from 550 to 510" in note and "resume" in note and "5 rows, the last loss 9" in note
    order = np.random.default_rng(1).permutation(len(STEPS))
    path = log(plain(LOSS[order], STEPS[order]))
    assert same(path) and "disorder" in read_logs(path)[0].notes[0]


def test_a_step_twice_counts_once(log):
    double = "step,loss\n" + "".join(f"{s},{x:.4f}\n{s},{x:.4f}\n" for s, x in zip(STEPS, LOSS, strict=True))
    assert same(log(double)) and not read_logs(log(double))[0].notes
    assert "step 30 has a second loss; the last counts" in read_logs(log(plain() .replace("30,", "20,0.5\n30,9\n30,", 1)))[0].notes[-1]


def test_what_is_packed_badly_or_empty(log):
    with pytest.raises(LogError, match="cannot be read .not a whole gzip file"):
        read_logs(log(gzip.compress(plain().encode())[:-20]))
    with pytest.raises(LogError, match="no row has a loss"):
        read_logs(log("step,loss,eval_loss\n1,,2\n2,,2\n"))


def test_quotes_that_swallow_rows_are_refused(log):
    rows = [f"{s},{x:.4f},fine\n" for s, x in zip(STEPS, LOSS, strict=True)]
    opened = f'{STEPS[40]},{LOSS[40]:.4f},"fine\n'
    for closed in (None, 'fine"', '"fine"'):
        text = [*rows[:40], opened, *rows[41:]]
        if closed:
            text[60] = f"{STEPS[60]},{LOSS[60]:.4f},{closed}\n"
        with pytest.raises(LogError, match="line 42: (a quote that is opened here|not CSV)"):
            read_logs(log("step,loss,note\n" + "".join(text)))
    two_lines = [*rows[:40], f'{STEPS[40]},{LOSS[40]:.4f},"fine,\nand so on"\n', *rows[41:]]
    assert same(log("step,loss,note\n" + "".join(two_lines)))


def test_a_byte_that_is_no_text_is_named_with_its_line(log):
    data = plain().encode()
    with pytest.raises(LogError, match="line 2 holds the byte 0xb5; mend that line"):
        read_logs(log(data[:18] + bytes([data[18] ^ 0x80]) + data[19:]))


@pytest.mark.parametrize(("text", "words"), [
    ("[" * 100_000, "nested too deeply"),
    ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
    ('{"step": 1, "loss": 2}\n' + '{"a":' * 50_000, "line 2 is nested too deeply"),
    ("[[1, 2], [3, 4]]", "a list of a list of int"),
    ('{"a": {"b": [1, 2]}}', "none has a number; the first is an object with a"),
    ('{"step": ' + "9" * 5000 + ', "loss": 1}', "line 1: not JSON"),
    ('[{"step": 1, "loss": 2}, {"step": 2', "line 1: not JSON"),
])  # fmt: skip
def test_json_without_points_is_one_line(log, text, words):
    with pytest.raises(LogError, match=words) as caught:
        read_logs(log(text, "log.json"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_json_of_other_shapes(log):
    assert same(log(json.dumps({"step": STEPS.tolist(), "loss": LOSS.round(4).tolist()})))
    points = [{"step": int(s), "loss": round(float(x), 4)} for s, x in zip(STEPS, LOSS, strict=True)]
    assert same(log(json.dumps({"history": points, "config": {"lr": 1}})))
    lines = [json.dumps(point) for point in points]
    (found,) = read_logs(log("\n".join([*lines[:50], "WARNING: slow", *lines[50:]]), "log.jsonl"))
    assert len(found.loss) == len(LOSS)
    assert found.notes == ["1 lines between the objects are no JSON and are left out, the first on line 51: 'WARNING: slow'"]


def test_keys_that_end_before_the_log_does_are_no_crash(log):
    points = [{"step": int(s), "loss": float(x), "grad_norm": 1.0, "lr": 1e-3} for s, x in zip(STEPS, ALIVE, strict=True)]
    for last in ([{"step": 1010 + i, "lr": 0.0} for i in range(30)], [{"step": 1010 + i, "loss": 0.8, "lr": 0.0} for i in range(30)]):
        found = detect(log("\n".join(json.dumps(point) for point in points + last), "log.jsonl"))
        assert found["outcome"] == "survived"
        assert any("the losses end before the log does: 30 rows" in note for note in found["notes"]) == ("loss" not in last[0])
    rows = [f"{s},{x:.4f},1e-3,{s / 100}\n" for s, x in zip(STEPS, ALIVE, strict=True)]
    ends = {"survived": [f"{1010 + i},,,{10 + i}\n" for i in range(30)], "nonfinite": [f"{1010 + i},,1e-3,{10 + i}\n" for i in range(30)]}
    for outcome, last in ends.items():
        assert detect(log("step,loss,lr,hours\n" + "".join(rows + last)))["outcome"] == outcome


@pytest.mark.parametrize("first", [0, 5000])
@pytest.mark.parametrize("digits", [2, 3, 4])
def test_marks_between_thousands(log, first, digits):
    steps = first + 100 * np.arange(len(LOSS))
    swap = str.maketrans(",.", ".,")
    dots = [(f"{s:,}".translate(swap), f"{x:.{digits}f}".translate(swap)) for s, x in zip(steps, LOSS, strict=True)]
    for delimiter in ";\t":
        (found,) = read_logs(log(f"step{delimiter}loss\n" + "".join(f"{s}{delimiter}{x}\n" for s, x in dots)))
        assert found.steps.tolist() == steps.tolist() and np.allclose(found.loss, LOSS, atol=0.6 * 10**-digits)
    quoted = "".join(f'"{s:,}",{x:.{digits}f}\n' for s, x in zip(steps, LOSS, strict=True))
    assert read_logs(log("step,loss\n" + quoted))[0].steps.tolist() == steps.tolist()


@pytest.mark.parametrize("text", ["step;loss\n1.000;1.950\n2.000;1.900\n", "step;loss\n1.000;5\n2.000;4\n",
                                  'step,loss\n1,"1,950"\n2,"1,900"\n'])  # fmt: skip
def test_a_mark_that_may_mean_both_is_asked_about(log, text):
    with pytest.raises(LogError, match="may be .* or .*; write numbers without a mark between thousands"):
        read_logs(log(text))


def test_closed_input_and_folders_are_one_line(log, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(LogError, match="standard input is closed; pipe a log"):
        read_logs("-")
    (tmp_path / "log.csv.gz").mkdir()
    (tmp_path / "log.csv.gz" / "a.csv").write_text(plain())
    with pytest.raises(LogError, match="a folder without event files.*such as .*a.csv"):
        read_logs(tmp_path / "log.csv.gz")


def test_one_note_a_kind(log):
    rows = "".join(f"{s},{x:.4f}\n{s},{x + 0.1:.4f}\n" for s, x in zip(STEPS, LOSS, strict=True))
    (found,) = read_logs(log("step,loss\n" + rows))
    assert len(found.notes) == 1 and "100 such rows, the first on line 3" in found.notes[0]
    steps = [again for i, s in enumerate(STEPS) for again in ((s, s - 20, s - 10, s) if i in (20, 40, 60) else (s,))]
    resumed = "".join(f"{s},{LOSS[s // 10 - 1]:.4f}\n" for s in steps)
    (found,) = read_logs(log("step,loss\n" + resumed))
    assert len(found.notes) == 1 and "3 resumes in all" in found.notes[0]


def test_event_files(log, tmp_path):
    writer = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed").SummaryWriter
    for run, loss in (("a", LOSS), ("b", ALIVE)):
        with writer(str(tmp_path / "tb" / run)) as out:
            for step, value in zip(STEPS, loss, strict=True):
                out.add_scalar("train/loss", value, step)
    assert [(run["run"], run["crash_step"]) for run in detect_runs(tmp_path / "tb")] == [("a", 700), ("b", None)]
    (file,) = (tmp_path / "tb" / "a").iterdir()
    whole, half = file.read_bytes(), file.stat().st_size // 2
    packed = tmp_path / f"{file.name}.gz"
    packed.write_bytes(gzip.compress(whole))
    assert detect(packed)["crash_step"] == 700
    for at in range(half, half + 40, 7):  # in a length, a checksum, the data
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        found = detect(file)
        assert (found["crash_step"], found["steps"] >= len(STEPS) - 1) == (700, True)
        assert any("damaged in 1 places" in note for note in found["notes"])
    file.write_bytes(whole[:half])
    assert any("ends within a record" in note for note in detect(file)["notes"])


@pytest.mark.parametrize("spoil", [None, "nan", "", "1,2", "x", '"2"'])
def test_a_large_file_is_read_at_once_as_it_is_row_by_row(log, monkeypatch, spoil):
    rows = [f"{s},0.5,{x:.4f},note\n" for s, x in zip(STEPS, LOSS, strict=True)]
    if spoil is not None:
        rows[40] = f"{STEPS[40]},0.5,{spoil},note\n"
    path, found = log("step,grad_norm,loss,text\n" + "".join(rows)), []
    for large in (10**9, 0):
        monkeypatch.setattr(log_file, "LARGE", large)
        try:
            found.append(repr([(run.steps.tolist(), run.loss.tolist(), run.grad_norm.tolist(), run.notes) for run in read_logs(path)]))
        except LogError as error:
            found.append(str(error))
    assert found[0] == found[1]
    quick = log_file.plain_numbers(path, lambda names: {"step": 0, "loss": 2})
    assert (quick is not None) == (spoil in (None, "nan"))


@pytest.mark.parametrize("head", ["run,step,loss", "epoch,iter,loss"])
def test_a_large_file_of_runs_or_epochs_is_read_at_once_too(log, monkeypatch, head):
    rows = "".join(f"{part},{s},{x:.4f}\n" for part, loss in ((2, LOSS), (1, ALIVE)) for s, x in zip(STEPS, loss, strict=True))
    path, found = log(f"{head}\n{rows}2,1010,nan\n"), []
    for large in (10**9, 0):
        monkeypatch.setattr(log_file, "LARGE", large)
        found.append(repr([(run.run, run.steps.tolist(), run.loss.tolist(), run.notes) for run in read_logs(path)]))
    assert found[0] == found[1]
    assert log_columns._large(path, None, None) is not None


@pytest.mark.parametrize(("blank", "outcome"), [(9, "survived"), (10, "nonfinite")])
def test_a_loss_that_is_logged_at_every_tenth_row_may_end_between_two(log, blank, outcome):
    rows = [f"{i},{0.8 + 0.01 * (i % 7) - i / 1000:.4f}" if i % 10 == 0 and i <= 400 else f"{i}," for i in range(401 + blank)]
    assert detect(log("step,loss\n" + "\n".join(rows) + "\n"))["outcome"] == outcome
