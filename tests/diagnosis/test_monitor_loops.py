"""The monitor in loops that are not as it expects: wrong settings, other calls in between, exceptions, files that are there."""

import csv
import gc

import pytest
import torch
from test_monitor_models import Block, build
from torch import nn

from suite.audit import AuditError, Monitor
from suite.detect.judge import detect

pytestmark = pytest.mark.usefixtures("silent")


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def backward(model, seed=0):
    loss = model(torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(seed))).square().mean()
    loss.backward()
    return loss


# ---- settings

@pytest.mark.parametrize("settings, words", [
    ({"every": -1}, "every: a whole number of steps from 1 on is needed, not -1"),
    ({"every": 0}, "every: .* not 0; None measures nothing"),
    ({"every": 1.5}, "every: .* not 1.5"),
    ({"every": True}, "every: .* not True"),
    ({"start": -1}, "start: .* not -1"),
    ({"start": 2.0}, "start: .* not 2.0"),
    ({"batch_dim": 2}, "batch_dim: 0 or 1"),
    ({"told": "me"}, "told: a function"),
    ({"board": object()}, "board: something with add_scalar"),
    ({"writers": "blocks.0.fc2"}, r"writers: a list of names is needed, .* write \['blocks.0.fc2'\]"),
    ({"writers": []}, "writers: no name is given"),
    ({"writers": [0]}, "writers: a list of names"),
    ({"writers": ["blocks.0.ln"]}, "'blocks.0.ln' is not an nn.Linear"),
])  # fmt: skip
def test_a_setting_that_means_nothing_is_one_line(settings, words):
    net = build()
    with pytest.raises(ValueError, match=words) as caught:
        Monitor(net, **settings)
    assert isinstance(caught.value, AuditError) and "\n" not in str(caught.value) and not hooks(net)


def test_a_model_that_is_none_and_counts_of_numpy():
    with pytest.raises(ValueError, match="a torch.nn.Module is needed, not a function"):
        Monitor(lambda x: x)
    import numpy as np

    assert Monitor(build(), every=np.int64(2)).every == 2 and Monitor(build(), every=None)._due() is False


# ---- between backward and step

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.drop = nn.Sequential(Block(), Block()), nn.Dropout(0.3)

    def forward(self, x):
        return self.net(self.drop(x))


def measured(between, second_pass, model=Noisy, optimiser=None):
    net = model()
    monitor = Monitor(net, every=1, second_pass=second_pass)
    torch.manual_seed(1)
    loss = backward(net)
    between(net)
    monitor.step(loss)
    monitor.close()
    return monitor


@pytest.mark.parametrize("second_pass", [False, True])
def test_eval_between_backward_and_step_changes_no_number(second_pass, told):
    def evaluate(net):
        net.eval()

    one, other = measured(lambda net: None, second_pass), measured(evaluate, second_pass)
    assert len(one.by_writer) == 2 and one.by_writer == other.by_writer and one.row == other.row and not told
    assert not other.model.training and not other.model.drop.training, "the mode is the loop's"


@pytest.mark.parametrize("second_pass", [False, True])
def test_an_optimiser_before_step_is_said_and_what_it_spoils_is_left_out(second_pass, told):
    def optimise(net):
        torch.optim.AdamW(net.parameters(), 1e-2).step()
        net.zero_grad()

    one, other = measured(lambda net: None, second_pass), measured(optimise, second_pass)
    assert "grad_norm" in one.row and not {"grad_norm", "q_grad"} & other.row.keys()
    assert other.by_writer == ([] if second_pass else one.by_writer), "hooks saw it in the backward"
    assert len(told) == 1 and "the weights have been changed between the forward and step" in str(told[0].message)


def test_gradients_set_to_zero_before_step_are_said(told):
    one = measured(lambda net: net.zero_grad(), False)
    assert "grad_norm" not in one.row and len(one.by_writer) == 2
    assert len(told) == 1 and "no gradient is left" in str(told[0].message)


def test_a_second_pass_that_gives_other_numbers_is_not_taken(told):
    def move(net):  # as an optimiser that writes to .data, which no version counter sees
        for p in net.parameters():
            p.data.add_(0.3)

    assert measured(move, True).by_writer == [] and "returned other numbers" in str(told[0].message)
    assert len(measured(move, False).by_writer) == 2


class Returns(nn.Module):
    """A model that returns its loss, as transformers' do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block = Block()

    def forward(self, x):
        return {"loss": self.block(x).square().mean()}


@pytest.mark.parametrize("how", ["no backward", "evaluation with gradients", "accumulated"])
def test_the_loss_is_of_forwards_that_went_backward(how):
    net = Returns()
    x, monitor = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0)), Monitor(net, every=None)
    (loss := net(x)["loss"]).backward()
    seen = [loss]
    if how == "no backward":
        net(10 * x)
    elif how == "evaluation with gradients":
        net.eval()
        torch.autograd.grad(net(10 * x)["loss"], net.block.fc1.weight)
        net.train()
    else:
        (loss := net(3 * x)["loss"]).backward()
        seen.append(loss)
    monitor.step()
    assert monitor.row["loss"] == pytest.approx(sum(loss.item() for loss in seen) / len(seen))


def test_a_loop_that_never_steps_fills_no_memory():
    net = Returns()
    monitor = Monitor(net, every=50)
    for _ in range(3):
        net(torch.randn(4, 6, 16))
    assert sum(seen.kept is not None for seen in monitor._watched._seen) <= 1 and monitor._watched._seen.maxlen


# ---- exceptions

@pytest.mark.parametrize("where", ["forward", "backward", "between"])
def test_hooks_are_gone_after_an_exception(where, told):
    net = build(at=lambda self, x: 1 / 0 if where == "forward" else x)
    if where == "backward":
        net.blocks[0].fc1.weight.register_hook(lambda grad: 1 / 0)

    def training():
        monitor = Monitor(net, every=1)  # closed by nobody
        assert hooks(net)
        loss = backward(net)
        if where == "between":
            raise ZeroDivisionError
        monitor.step(loss)

    with pytest.raises(ZeroDivisionError):
        training()
    gc.collect()
    assert not hooks(net) and not told


@pytest.mark.parametrize("second_pass", [False, True])
def test_hooks_go_with_the_monitor(second_pass, tmp_path):
    net = build()
    monitor = Monitor(net, every=1, csv=tmp_path / "watch.csv", second_pass=second_pass)
    backward(net)
    monitor.step(1.0)
    backward(net)
    monitor = Monitor(net, every=1, second_pass=second_pass)  # a cell of a notebook that is run again
    gc.collect()
    assert len(net._forward_hooks) == 1 and len(net._forward_pre_hooks) == 1
    assert len((tmp_path / "watch.csv").read_text().splitlines()) == 2
    del monitor
    gc.collect()
    assert not hooks(net)


# ---- the csv

def write(path, steps=3, start=0, **kwargs):
    with Monitor(build(), every=None, csv=path, start=start, **kwargs) as monitor:
        for i in range(steps):
            monitor.step(1.0 + i, 2.0)


@pytest.mark.parametrize("content", ["step,loss\n1,0.5\n", "name;value\n", "step,loss,grad_norm,g_mean\n", "\x00\xff binary", "\n"])
def test_a_csv_that_is_no_monitors_is_refused_and_left_alone(content, tmp_path):
    path = tmp_path / "watch.csv"
    path.write_text(content)
    net = build()
    with pytest.raises(ValueError, match="no Monitor of this version wrote it .*; give another name") as caught:
        Monitor(net, csv=path)
    assert path.read_text() == content and not hooks(net) and "\n" not in str(caught.value)


def test_a_csv_of_another_run_is_refused_and_of_the_same_gone_on_with(tmp_path):
    path = tmp_path / "watch.csv"
    write(path)
    before = path.read_text()
    with pytest.raises(ValueError, match="holds a run up to step 3, and this one begins at 0; give another name, or start=N"):
        Monitor(build(), csv=path)
    assert path.read_text() == before
    write(path, start=2)
    assert [row["step"] for row in csv.DictReader(open(path))] == list("123345")
    assert detect(path)["outcome"] == "too_short", "a resume from an earlier checkpoint is one run to it"


@pytest.mark.parametrize("torn", ["4,1.9", "4,", "\n4"])
def test_a_last_row_that_was_cut_off_is_taken_away(torn, tmp_path):
    path = tmp_path / "watch.csv"
    write(path)
    whole = path.read_text()
    path.write_text(whole + torn.lstrip("\n"))
    write(path, start=3)
    assert path.read_text().startswith(whole) and [row["step"] for row in csv.DictReader(open(path))] == list("123456")


def test_a_file_that_holds_nothing_yet(tmp_path):
    for content in ("", "step,loss,grad_norm,norm_growth,g_mean,g_ctr,tcs,rho,q_grad,k_grad,update_rms"):
        (path := tmp_path / "watch.csv").write_text(content)
        write(path)
        assert [row["loss"] for row in csv.DictReader(open(path))] == ["1", "2", "3"]
        path.unlink()
