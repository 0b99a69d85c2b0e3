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
    ("Step 12,000, Loss 2.31, 1,234,567 tokens", {"step": "12000"}, {"Loss": "2.31"}),
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


@pytest.mark.parametrize("rest", ["lm loss: {} | ", ""])
def test_a_line_that_loses_its_loss_is_one_of_the_log(tmp_path, rest):
    """Megatron leaves the loss out where it was no number."""
    def line(i, loss):
        return f" iteration {i:8d}/  5000 | consumed samples: {i * 8} | learning rate: 1.0E-05 | {loss}loss scale: 1.0 | grad norm: 1.0 |"

    lines = [line(i, f"lm loss: {3 - i / 100:.6E} | " if i < 100 else rest.format("nan")) for i in range(140)]
    found = detect(printed(tmp_path, ["step 5: saving a checkpoint", *lines]))
    assert (found["outcome"], found["crash_step"], found["steps"]) == ("nonfinite", 100, 140)


def test_decimal_commas(tmp_path):
    (log,) = read_logs(printed(tmp_path, [f"step {i}, loss: {f'{3 - i / 100:.3f}'.replace('.', ',')}, lr 0,001" for i in range(60)]))
    assert len(log.loss) == 60 and log.loss[7] == 2.93
    with pytest.raises(LogError, match="line 1: the comma may stand between thousands or mark decimals: 'step 0, loss: 3,000'"):
        read_logs(printed(tmp_path, [f"step {i}, loss: {f'{3 - i / 100:.3f}'.replace('.', ',')}" for i in range(60)]))


@pytest.mark.parametrize(("line", "clocks", "losses"), [
    ("steps:   1%|▏         | 10/1000 [00:10<16:30,  1.00s/it, avr_loss=0.123]", {"batch": "10"}, {"avr_loss": "0.123"}),
    ("Steps:  10%|█         | 100/1000 [01:10<10:30,  1.40it/s, lr=1e-5, step_loss=0.123]", {"batch": "100"}, {"step_loss": "0.123"}),
    ("[host] 2020-01-01 12:00:00,1 (trainer:732) INFO: 1epoch:train:1-100batch: iter_time=0.1, loss=85.3", {"epoch": "1", "batch": "100"},
     {"loss": "85.3"}),
    ("[2020-01-01 12:00:00] Ep. 1 : Up. 1,000 : Sen. 100,000 : Cost 5.43 : Time 10.2s", {"epoch": "1", "up": "1000"}, {"Cost": "5.43"}),
    ("Train step of epoch 0:  10%|█ | 10/100 [00:10<01:00, 1.0s/it, gpt_loss=1.2]", {"epoch": "0"}, {"gpt_loss": "1.2"}),
    ("Iter 10: Train loss 2.345, It/sec 0.5, Tokens/sec 100, Trained Tokens 1000", {"iter": "10"}, {"Train loss": "2.345"}),
    ("Epoch[0] Batch [20]\tSpeed: 1000.00 samples/sec\taccuracy=0.1 loss=2.3", {"epoch": "0", "batch": "20"}, {"loss": "2.3"}),
])  # fmt: skip
def test_lines_of_more_trainers(line, clocks, losses):
    found = parse(line)
    assert clocks.items() <= found.clocks.items() and {name: found.values[name] for name in found.losses(None)} == losses
