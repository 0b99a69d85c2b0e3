"""The monitor on models that count, collect, draw, share and return in every way: training unchanged, numbers those of the real pass."""

import copy
import io
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from suite.audit import AuditError, Monitor
from suite.diagnosis.metrics import rho, tcs, writer_gradient

pytestmark = pytest.mark.usefixtures("silent")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        return x + self.fc2(F.gelu(self.fc1(self.ln(x))))


class Net(nn.Module):
    """Two blocks; what a test does before (`at(self, x)`) and after (`out(self, h)`) is given."""

    forwards = 0

    def __init__(self, at=lambda self, x: x, out=lambda self, h: h):
        super().__init__()
        self.blocks, self.at, self.out = nn.ModuleList([Block(), Block()]), at, out
        self.norm, self.count, self.seen, self.generator = nn.BatchNorm1d(16), 0, [], torch.Generator()
        self.kept, self.plain, self.array, self.numbers = {}, torch.zeros(()), np.zeros(3), np.random.default_rng(0)
        self.draws = iter(np.random.default_rng(1).random(1000))
        self.ema = nn.Parameter(torch.zeros(16), requires_grad=False)
        Net.forwards = 0
        self.register_buffer("moving", torch.zeros(16))
        self.register_buffer("mask", torch.ones(1, 6, 1).expand(4, 6, 16))

    def forward(self, x, **_):
        x = self.at(self, x)
        for block in self.blocks:
            x = block(x)
        return self.out(self, x)


def norm(self, x):
    return self.norm(x.flatten(0, 1)).view_as(x)


def counted(self, x):
    self.count += 1
    return x + 0.1 * self.count


def collected(self, x):
    self.seen.append(x.mean())
    return x + 0.1 * len(self.seen)


def moved(self, x):
    self.moving = 0.9 * self.moving + 0.1 * x.mean((0, 1)).detach()
    return x + self.moving


def in_a_dict(self, x):
    generator = self.kept.setdefault("generators", {}).setdefault("noise", torch.Generator())
    return x + torch.rand(1, generator=generator)


def in_place(self, x):
    self.plain += x.detach().mean()
    self.array += 1
    return x + 0.1 * self.plain + 0.01 * float(self.array.sum())


def averaged(self, x):
    self.ema.data.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
    return x + self.ema


def of_the_class(self, x):
    type(self).forwards += 1
    return x + 0.1 * (type(self).forwards % 7)


def on_its_own(self, x):
    return x + float(next(self.draws))


def named(self, x):
    return F.linear(input=x, weight=torch.eye(16))


STATES = {
    "batch norm and an expanded buffer": norm, "a counter": counted, "a list": collected, "a buffer that is replaced": moved,
    "numpy": lambda self, x: x + np.random.rand(), "random": lambda self, x: x + random.random(),
    "torch": lambda self, x: x + torch.rand(1), "named arguments": named,
    "a generator": lambda self, x: x + torch.rand(1, generator=self.generator), "a generator in a dict": in_a_dict,
    "a numpy generator": lambda self, x: x + self.numbers.random(), "an iterator": on_its_own,
    "a tensor and an array changed in place": in_place, "an average in a frozen parameter": averaged, "the class": of_the_class,
}  # fmt: skip


def train(net, loss_of=lambda out: out.square().mean(), watch=None, steps=4, x=None, **kwargs):
    """Weights, buffers, random states behind a few steps; watch: the monitor's every."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    monitor = Monitor(net, every=watch, **kwargs) if watch else None
    for i in range(steps):
        out = net(torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(i)) if x is None else x)
        loss = loss_of(out)
        optimiser.zero_grad()
        loss.backward()
        if monitor:
            monitor.step(loss)
        optimiser.step()
    if monitor:
        monitor.close()
        assert monitor.writers and len(monitor.by_writer) == 2, "it did measure"
    kept = [t.clone() for t in (*net.parameters(), *net.buffers())]
    return [*kept, torch.get_rng_state(), torch.tensor([
        random.random(), np.random.rand(), net.count, len(net.seen), net.plain, net.array[0], net.forwards])]


def build(**kwargs):
    torch.manual_seed(0)
    return Net(**kwargs)


@pytest.mark.parametrize("state", STATES)
def test_what_a_model_keeps_and_draws_is_as_without_the_monitor(state):
    at = STATES[state]
    one, other = train(build(at=at)), train(build(at=at), watch=1)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("state", ["batch norm and an expanded buffer", "a buffer that is replaced", "numpy", "random", "torch"])
def test_what_a_second_pass_promises_to_leave_it_leaves(state):
    at = STATES[state]
    one, other = train(build(at=at)), train(build(at=at), watch=1, second_pass=True)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_second_pass_advances_the_rest_twice():
    def a_little(self, x):
        self.count += 1
        return x + 0.001 * self.count

    net = build(at=a_little)
    train(net, watch=2, steps=4, second_pass=True)
    assert net.count == 7, "as the docstring says; measured at steps 1, 2 and 4"


@dataclass
class Out:
    hidden: torch.Tensor
    other: object


def with_loss(self, h):
    return {"loss": h.square().mean(), "logits": h, "again": h, "hidden": (h, None)}


RETURNS = {  # what the model returns, and the loss that is made of it
    "twice the same": (lambda self, h: (h, {"h": h}), lambda out: out[0].square().mean()),
    "a loss and what it is made of, both used": (with_loss, lambda out: out["loss"] + 3 * out["logits"].abs().mean()),
    "a loss that is not used": (with_loss, lambda out: out["hidden"][0].abs().mean()),
    "a chain": (lambda self, h: (h, h.tanh(), h.tanh().exp()), lambda out: (out[2] + out[1] * 2 + out[0] ** 2).mean()),
    "a dataclass": (lambda self, h: Out(h, [h * 2]), lambda out: (out.hidden + out.other[0]).square().mean()),
}


@pytest.mark.parametrize("how", RETURNS)
@pytest.mark.parametrize("backwards", [1, 2])
@pytest.mark.parametrize("second_pass", [False, True])
def test_the_gradient_of_every_kind_of_output_is_counted_once(how, backwards, second_pass):
    out, loss_of = RETURNS[how]
    net, real = build(out=out), {}

    def keep(name):
        def hook(module, args, result):
            result.retain_grad()
            real[name] = (args[0].detach(), result)

        return hook

    x = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(3))
    monitor = Monitor(net, every=1, second_pass=second_pass)
    handles = [net.blocks[i].fc2.register_forward_hook(keep(f"blocks.{i}.fc2")) for i in range(2)]
    loss = loss_of(net(x))
    expected = dict(real)
    for handle in handles:
        handle.remove()
    for i in range(backwards):
        loss.backward(retain_graph=i + 1 < backwards)
    monitor.step(loss)
    assert [row["writer"] for row in monitor.by_writer] == ["blocks.0.fc2", "blocks.1.fc2"]
    for row in monitor.by_writer:
        y, result = expected[row["writer"]]
        mean, centered = writer_gradient(result.grad, y)
        right = [mean.norm(), centered.norm(), tcs(result.detach()), rho(result.detach())]
        assert [row[k] for k in ("g_mean", "g_ctr", "tcs", "rho")] == pytest.approx([float(v) for v in right], rel=1e-4)
    assert monitor.row["q_grad"] != monitor.row["q_grad"], "no queries here"


def step(monitor, net):
    """The writers that were measured in one step."""
    monitor.by_writer = []
    loss = net(torch.randn(4, 6, 16)).square().mean()
    loss.backward()
    monitor.step(loss)
    return [row["writer"] for row in monitor.by_writer]


def test_frozen_and_dropped_writers_are_left_out():
    net = build()
    net.blocks[0].requires_grad_(False)
    assert step(Monitor(net, every=1), net) == ["blocks.1.fc2"]
    net = build()
    monitor = Monitor(net, every=1)
    net.blocks = net.blocks[:1]
    assert step(monitor, net) == ["blocks.0.fc2"]


def test_a_writer_whose_weight_is_made_anew_at_each_use_is_refused():
    net = build()
    nn.utils.parametrizations.spectral_norm(net.blocks[1].fc2)
    with pytest.raises(AuditError, match="weight of its own"):
        Monitor(net, ["blocks.1.fc2"])


def test_a_loss_that_nobody_told_is_not_measured_and_no_alarm(tmp_path):
    net = build()
    with Monitor(net, every=1, csv=tmp_path / "watch.csv") as monitor:
        net(torch.randn(4, 6, 16)).square().mean().backward()
        monitor.step()
    assert "loss" not in monitor.row and monitor.alarms == [] and len(monitor.by_writer) == 2
    assert (tmp_path / "watch.csv").read_text().splitlines()[1].startswith("1,,")


def test_token_first_inputs_must_be_said_and_are_then_read_right():
    def encoder(batch_first):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=batch_first)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    x, rows = torch.randn(3, 5, 8), []
    with pytest.raises(AuditError, match="batch_dim"):
        Monitor(encoder(False))
    for batch_first in (True, False):
        model = encoder(batch_first)
        monitor = Monitor(model, every=1, batch_dim=int(not batch_first))
        out = model(x if batch_first else x.transpose(0, 1))
        loss = (out if batch_first else out.transpose(0, 1)).cumsum(1).square().mean()
        loss.backward()
        monitor.step(loss)
        rows.append(monitor.by_writer)
    for one, other in zip(*rows, strict=True):
        assert one.pop("writer") == other.pop("writer") and one == pytest.approx(other, rel=1e-4)


def test_a_watched_model_can_be_saved_and_copied():
    net = nn.Sequential(Block(), Block())
    monitor = Monitor(net, every=1)
    torch.save(net, io.BytesIO())
    other = copy.deepcopy(net)
    for model in (other, net):
        loss = model(torch.randn(4, 6, 16)).square().mean()
        loss.backward()
    monitor.step(loss)
    assert len(monitor.by_writer) == 2 and monitor._watched.last() is None


def test_sparse_gradients_a_full_disk_and_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(AuditError, match="cannot be written"):
        Monitor(net := build(), csv=tmp_path / "no" / "watch.csv")
    assert not net._forward_hooks and not net._forward_pre_hooks
    table = nn.Embedding(10, 16, sparse=True)
    monitor = Monitor(nn.Sequential(table, Block()), every=1, csv="/dev/full")
    with pytest.warns(UserWarning, match="the csv failed.*No space left"):
        loss = monitor.model(torch.randint(0, 10, (4, 6))).square().mean()
        loss.backward()
        monitor.step(loss)
    grads = [table.weight.grad.to_dense(), *(p.grad for p in monitor.model[1].parameters())]
    assert monitor.row["grad_norm"] == pytest.approx(torch.cat([g.flatten() for g in grads]).norm().item(), rel=1e-5)
    monitor.close()


def test_an_overflow_of_a_gradient_scaler_is_no_death():
    net = nn.Sequential(Block())
    with Monitor(net, every=None) as monitor:
        for i in range(30):
            monitor.step(1.0, float("inf") if i < 5 else 1.0)
        assert monitor.alarms == []
        with pytest.warns(UserWarning, match="nonfinite"):
            for _ in range(12):
                monitor.step(1.0, float("inf"))
