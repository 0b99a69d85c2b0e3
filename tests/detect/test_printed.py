"""What trainers print, as they print it: every format healthy and dying, with the oddities of each. `cases/printed` has the files."""

import csv
from pathlib import Path

import pytest

from suite.detect.judge import LogError, detect
from suite.detect.log_columns import read_logs
from suite.detect.stdout_log import label, parse

FOLDER = Path(__file__).parent / "cases" / "printed"
EXPECTED = list(csv.DictReader((FOLDER / "expected.csv").read_text().splitlines()))


@pytest.mark.parametrize("case", EXPECTED, ids=[case["file"] for case in EXPECTED])
def test_printed_logs(case):
    found = detect(FOLDER / case["file"])
    assert (found["outcome"], str(found["crash_step"] or "")) == (case["outcome"], case["step"])
    assert any(note.startswith("read as printed output") for note in found["notes"])
    assert any(case["note"] in note for note in found["notes"])


def test_every_printed_log_is_judged():
    assert {path.name for path in FOLDER.glob("*.log")} == {case["file"] for case in EXPECTED}


@pytest.mark.parametrize(("line", "clocks", "values"), [
    ("{'loss': 1.6239, 'learning_rate': 2e-05, 'epoch': 0.01}", {"epoch": "0.01"}, {"loss": "1.6239"}),
    ("{'loss': tensor(nan, device='cuda:0'), 'epoch': '0.5'}", {"epoch": "0.5"}, {"loss": "nan"}),
    ("2021-08-18 19:03:00,257 - mmdet - INFO - Epoch [1][150/5808]\tlr: 1.000e-02, eta: 5:02:49, loss_bbox: nan, loss: nan",
     {"epoch": "1", "batch": "150"}, {"loss": "nan", "loss_bbox": "nan"}),
    ("| epoch 001 | loss 10.436 | num_updates 378 | gnorm 0.390 | loss_scale 0.500", {"epoch": "001", "num_updates": "378"},
     {"loss": "10.436", "gnorm": "0.390"}),
    (" iteration      100/  500000 | lm loss: 9.123456E+00 | loss scale: 4096.0 | number of nan iterations:   0 |", {"iteration": "100"},
     {"lm loss": "9.123456E+00"}),
    ("\x1b[36mstep: 10  \x1b[32mloss:  7.2731  \x1b[0mtps: 1,234", {"step": "10"}, {"loss": "7.2731", "tps": "1234"}),
    ("[Epoch 1 12800/60000][Iteration 100][Wall Clock 25.3s] Throughput is 1280.0 records/second. Loss is 2.3026. ",
     {"epoch": "1", "batch": "12800", "iteration": "100"}, {"Loss": "2.3026"}),
    ("step 1,000 | loss: 2.310E+00", {"step": "1000"}, {"loss": "2.310E+00"}),
    ("Average loss at step 100: 2.31", {"step": "100"}, {"Average loss": "2.31"}),
    ("steps: 3 loss: -1.#IND iter time (s): 3.1", {"step": "3"}, {"loss": "-1.#IND"}),
    ("300: loss 2.31", {"step": "300"}, {"loss": "2.31"}),
    ("01/02/2024 12:00:00 - INFO - __main__ -   Step 5, Loss: Infinity", {"step": "5"}, {"Loss": "Infinity"}),
    ("Train: [0/300][10/1251]\tloss 6.9422 (6.9480)", {"epoch": "0", "batch": "10"}, {"loss": "6.9422"}),
])  # fmt: skip
def test_one_line(line, clocks, values):
    found = parse(line)
    assert found.clocks == clocks and values.items() <= found.values.items() and not found.evaluates


@pytest.mark.parametrize("line", ["Epoch(val) [1][5/50]  loss: 0.3", "Test: [ 10/100]\tLoss 6.9 (7.0)", "validation | step 5 | loss 2.0"])
def test_a_line_of_an_evaluation(line):
    assert parse(line).evaluates


def test_the_words_before_a_number_are_its_name():
    assert [label(text) for text in (" | lm loss: ", ", time ", "elapsed (ms): ", "INFO - loss=", "'grad_norm': '", "████  | ", "s) ")] == [
        "lm loss", "time", "elapsed", "loss", "grad_norm", "", ""]  # fmt: skip


def printed(tmp_path, lines, end="\n"):
    path = tmp_path / "out.log"
    path.write_text(end.join(lines) + "\n")
    return path


def test_what_is_not_understood_is_quoted(tmp_path):
    with pytest.raises(LogError, match="line 2: not understood: 'the loss of 3 is our gain'"):
        detect(printed(tmp_path, ["hello", "the loss of 3 is our gain", "bye"]))
    with pytest.raises(LogError, match="line 1: not understood: 'hello'"):
        detect(printed(tmp_path, ["hello", "bye"]))


def test_other_lines_are_told(tmp_path):
    lines = [line for i in range(30) for line in (f"step {i * 10} loss {2 - i / 30:.3f}", *(["aux_loss: 3.0"] if i % 10 == 0 else []))]
    (log,) = read_logs(printed(tmp_path, lines))
    assert len(log.loss) == 30
    assert "30 lines such as line 1: 'step 0 loss 2.000'" in log.notes[0]
    assert "3 lines name other losses, or another clock, and are left out, the first on line 2: 'aux_loss: 3.0'" in log.notes[1]


def test_the_user_names_loss_and_clock(tmp_path):
    path = printed(tmp_path, [f"tick {i * 5}: objective {3 - i / 20:.3f} (aux loss 1.0)" for i in range(40)])
    (log,) = read_logs(path, "objective", "tick")
    assert log.loss[0] == 3.0 and log.steps.tolist() == list(range(0, 200, 5)) and not log.notes[1:]


def test_a_run_called_test_is_no_evaluation(tmp_path):
    (log,) = read_logs(printed(tmp_path, [f"[my_test] step {i} loss {3 - i / 20:.3f}" for i in range(40)]))
    assert len(log.loss) == 40


def test_json_that_is_cut_off_is_not_read_as_printed(tmp_path):
    path = tmp_path / "trainer_state.json"
    path.write_text('{\n "log_history": [\n  {\n   "loss": 2.0,\n   "step": 10\n  },\n  {\n   "loss": 1.0,\n   "step"')
    with pytest.raises(LogError, match="line 1: not JSON"):
        detect(path)
