"""The monitor where something is wrong, hidden or shared: it is said once, what can be measured is, and the training is not touched."""

import csv
import warnings

import pytest
import torch
import torch.nn.functional as F
from naive import T, draw
from test_any_model import ENCODER, encoder
from test_monitor_models import Block, build
from torch import nn
from torch.utils.checkpoint import checkpoint

from suite.audit import Monitor

pytestmark = pytest.mark.usefixtures("silent")


def texts(told):
    return [str(w.message) for w in told]


def train(model, steps=4, loss_of=lambda out: out.square().mean(), watch=True, between=lambda model: None, **kwargs):
    """(weights behind some steps, the monitor or None)."""
    torch.manual_seed(1)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    monitor = Monitor(model, **{"every": 1} | kwargs) if watch else None
    for _ in range(steps):
        loss = loss_of(model(torch.randn(4, 6, 16)))
        optimiser.zero_grad()
        loss.backward()
        between(model)
        if watch:
            monitor.step(loss)
        optimiser.step()
    return [p.detach().clone() for p in model.parameters()], monitor


def check(make, **kwargs):
    """The monitor of a training that is the same with and without it; make: the model."""
    bare, _ = train(make(), watch=False, **{name: kwargs[name] for name in ("steps", "loss_of", "between") if name in kwargs})
    watched, monitor = train(make(), **kwargs)
    torch.testing.assert_close(watched, bare, rtol=0, atol=0, equal_nan=True)
    assert not any(m._forward_hooks or m._forward_pre_hooks for name, m in monitor.model.named_modules() if name)
    return monitor


def measured(monitor):
    return [row["writer"] for row in monitor.by_writer]


# ---- compiled and checkpointed

class WithLoss(nn.Module):
    """nanoGPT's pattern: (logits, loss), of which the loop uses the loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        z = x + self.fc2(self.fc1(x).relu())
        return z, (z - x.roll(1, 1)).square().mean()


def in_place(model, **how):
    model.compile(backend="aot_eager", **how)
    return model


class ByFunction(WithLoss):
    """Its writers are called in a function that is compiled whole, and of which the module does not know."""

    def __init__(self):
        super().__init__()
        self.hidden = [torch.compile(WithLoss.forward, backend="aot_eager", fullgraph=True)]

    def forward(self, x):
        return self.hidden[0](self, x)


COMPILED = {
    "torch.compile": lambda: torch.compile(WithLoss(), backend="aot_eager"),
    "model.compile()": lambda: in_place(WithLoss()),
    "in one graph": lambda: in_place(WithLoss(), fullgraph=True),
    "by a function": ByFunction,
}


@pytest.mark.parametrize("how", COMPILED)
def test_a_compiled_model_that_returns_what_the_loss_does_not_use(how, told):
    monitor = check(COMPILED[how], loss_of=lambda out: out[1])
    assert monitor.by_writer == [] and len(told) == 1 and "second_pass=True" in texts(told)[0]


@pytest.mark.parametrize("how", ["torch.compile", "model.compile()"])
def test_a_compiled_model_by_a_second_pass(how, told):
    monitor = check(COMPILED[how], loss_of=lambda out: out[1], second_pass=True)
    eager = check(WithLoss, loss_of=lambda out: out[1])
    assert measured(monitor) == ["fc2"] and not told
    for one, other in zip(monitor.by_writer, eager.by_writer, strict=True):
        assert one.pop("writer") == other.pop("writer") and one == pytest.approx(other, rel=1e-4)


def test_a_compiled_part_hides_its_own_writers_alone(told):
    def make():
        net = build()
        net.blocks[0].compile(backend="aot_eager")
        return net

    assert measured(check(make)) == ["blocks.1.fc2"]
    assert len(told) == 1 and "blocks.0.fc2: is compiled" in texts(told)[0]


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.layers, self.reentrant = encoder(dtype=torch.float32)[0].layers, reentrant
        self.first = nn.Linear(16, 8)

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant, told):
    monitor = check(lambda: Checkpointed(reentrant))
    assert monitor.by_writer == [] and len(told) == 1 and "is checkpointed" in texts(told)[0]
    told.clear()
    monitor = check(lambda: Checkpointed(reentrant), second_pass=True)
    assert measured(monitor) == ENCODER and not told

    class Bare(Checkpointed):
        def forward(self, x):
            x = self.first(x)
            for layer in self.layers:
                x = layer(x)
            return x

    for one, other in zip(monitor.by_writer, check(lambda: Bare(False)).by_writer, strict=True):
        assert one.pop("writer") == other.pop("writer") and one == pytest.approx(other, rel=1e-4)


# ---- one writer alone

class Experts(nn.Module):
    """A mixture whose second expert is idle at first; none of its tokens come by sample in the third."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts, self.idle = nn.ModuleList(Block() for _ in range(3)), True

    def forward(self, x):
        out = x + self.experts[0](x)
        if not self.idle:
            out = out + self.experts[1](x)
        chosen = torch.arange(6) % 2 == 0
        tokens = self.experts[2](x[:, chosen].reshape(-1, 16))
        return torch.cat([out[:, chosen] + tokens.view(4, 3, 16), out[:, ~chosen]], 1)


def test_an_idle_expert_is_left_out_alone_and_comes_back(told):
    monitor = check(Experts)
    assert measured(monitor) == ["experts.0.fc2"]
    assert len(told) == 2 and any("experts.1.fc2: was not called" in text for text in texts(told))
    assert any("experts.2.fc2: sees (12, 16); expected (4, tokens, width)" in text for text in texts(told))
    monitor.model.idle = False
    loss = monitor.model(torch.randn(4, 6, 16)).square().mean()
    loss.backward()
    monitor.step(loss)
    assert measured(monitor) == ["experts.0.fc2", "experts.1.fc2"] and len(told) == 2


def test_a_shared_block_is_left_out_alone(told):
    def make():
        torch.manual_seed(0)
        one, other = Block(), Block()
        return nn.Sequential(one, other, one)

    assert measured(check(make)) == ["1.fc2"]
    assert len(told) == 1 and "0.fc2: is called more than once" in texts(told)[0]


def test_a_gradient_that_is_differentiated_again_is_not_measured(told):
    def loss_of(out):
        (slope,) = torch.autograd.grad(out.square().mean(), last["h"], create_graph=True)
        return slope.square().sum()

    last = {}

    def at(self, x):
        last["h"] = x.requires_grad_()
        return x

    monitor = check(lambda: build(at=at), loss_of=loss_of)
    assert monitor.by_writer == [] and "differentiated again" in texts(told)[0]


@pytest.mark.parametrize("make", [lambda f, x: f.mul_(3).add_(x), lambda f, x: f.relu_() + x], ids=["add", "relu"])
def test_what_a_model_does_in_place_behind_a_writer_is_not_the_writers(make, told):
    class Writer(Block):
        def __init__(self, in_place):
            super().__init__()
            self.in_place = in_place

        def forward(self, x):
            f = self.fc2(self.fc1(x))
            return make(f if self.in_place else f.clone(), x)

    def build(in_place):
        torch.manual_seed(0)
        return nn.Sequential(Writer(in_place), Writer(in_place))

    one, other = (check(lambda in_place=in_place: build(in_place)) for in_place in (True, False))
    assert one.by_writer == other.by_writer and measured(one) == ["0.fc2", "1.fc2"] and not told


def test_a_frozen_encoder_stays_on_its_fast_path(told):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval().requires_grad_(False)
            self.block = Block()

        def forward(self, x):
            return self.block(self.layer(x))

    assert measured(check(Frozen)) == ["block.fc2"] and "is frozen" in texts(told)[0]


# ---- what goes wrong beside the training

class Board:
    def __init__(self, error):
        self.error, self.calls = error, 0

    def add_scalar(self, *args):
        self.calls += 1
        raise self.error


def test_a_board_that_raises_is_said_once(told):
    monitor = check(build, board=(board := Board(ConnectionError("lost"))))
    assert board.calls == 4 and measured(monitor) == ["blocks.0.fc2", "blocks.1.fc2"]
    assert texts(told) == ["Monitor: the board failed, and the training goes on without it (lost)"]


def test_ctrl_c_passes():
    with pytest.raises(KeyboardInterrupt):
        train(build(), board=Board(KeyboardInterrupt()))


def test_a_callback_that_raises_and_warnings_that_are_errors(capsys):
    def told(*args):
        raise RuntimeError("in the callback")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = check(build, loss_of=lambda out: out.square().mean() * float("nan"), told=told)
        check(build, loss_of=lambda out: out.square().mean() * float("nan"))
    assert [kind for _, kind, _ in monitor.alarms] == ["nonfinite"]
    assert "told failed" in (said := capsys.readouterr().err) and "step 1: nonfinite" in said


def test_gradients_of_exactly_0(tmp_path, told):
    """A network whose last ReLU is dead: 40 steps, of which 25 are needed for the growth of the norm."""
    monitor = check(build, steps=40, loss_of=lambda out: (-out.abs() - 1).relu().mean(), csv=tmp_path / "watch.csv", every=10)
    rows = list(csv.DictReader((tmp_path / "watch.csv").read_text().splitlines()))
    assert len(rows) == 40 and rows[-1]["grad_norm"] == "0" and rows[-1]["norm_growth"] == "" and rows[-1]["g_mean"] == "0"
    assert not texts(told) and not monitor.alarms


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
def test_a_forward_that_breaks_off_leaves_nothing_behind(error):
    model, _ = encoder(dtype=torch.float32)
    original, whole = F.linear, model.layers[1].self_attn.forward
    monitor = Monitor(model, every=1)

    def breaks(*args, **kwargs):
        whole(*args, **kwargs)
        raise error

    model.layers[1].self_attn.forward = breaks
    with pytest.raises(type(error)):
        model(draw(3, T, 8, seed=1, dtype=torch.float32))
    del model.layers[1].self_attn.forward
    if isinstance(error, KeyboardInterrupt):
        monitor.step(1.0)
    assert F.linear is original and not any(m._forward_hooks or m._forward_pre_hooks for name, m in model.named_modules() if name)
    loss = model(draw(3, T, 8, seed=1, dtype=torch.float32)).square().mean()
    loss.backward()
    monitor.step(loss)
    assert measured(monitor) == ENCODER


@pytest.mark.parametrize("mode", ["no_grad", "eval with gradients", "another training forward"])
def test_a_forward_between_backward_and_step_does_not_count(mode):
    def validate(model):
        model.train(mode == "another training forward")
        with torch.set_grad_enabled(mode != "no_grad"):
            loss = model(torch.ones(2, 6, 16)).square().mean()
            if mode == "eval with gradients":
                torch.autograd.grad(loss, model.blocks[0].fc1.weight)
        model.train()

    assert check(build, between=validate).by_writer == check(build).by_writer


def test_of_accumulated_forwards_the_last_counts_and_the_others_are_let_go():
    net = build()
    monitor = Monitor(net, every=1)
    for i in range(4):
        loss = net(draw(4, 6, 16, seed=i, dtype=torch.float32)).square().mean()
        loss.backward()
        assert sum(seen.kept is not None for seen in monitor._watched._seen) <= 2
    monitor.step(loss)
    monitor.close()
    other = Monitor(net, every=1)
    net(draw(4, 6, 16, seed=3, dtype=torch.float32)).square().mean().backward()
    other.step(loss)
    assert monitor.by_writer == other.by_writer and len(monitor.by_writer) == 2 and monitor._watched.last() is None


# ---- a second pass that fails

@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), StopIteration("x"), ZeroDivisionError("x")])
def test_whatever_a_second_pass_raises_is_said_once(error, told):
    calls = []

    def at(self, x):
        calls.append(1)
        if len(calls) % 2 == 0:  # the second pass of each step
            raise error
        return x

    _, monitor = train(build(at=at), second_pass=True)
    assert monitor.at == 4 and len(calls) == 8 and monitor.by_writer == []
    assert len(told) == 1 and "a measurement of the writers failed" in texts(told)[0]


@pytest.mark.parametrize("second_pass", [False, True])
def test_inputs_changed_in_place_behind_the_forward(second_pass, told):
    net, x = build(), torch.randn(4, 6, 16)
    monitor = Monitor(net, every=1, second_pass=second_pass)
    loss = net(x).square().mean()
    loss.backward()
    x.mul_(2)
    monitor.step(loss)
    assert len(monitor.by_writer) == (0 if second_pass else 2) and len(told) == second_pass
