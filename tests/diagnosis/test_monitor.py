"""The monitor of a training run: right numbers, not a bit of the training changed, and a word when the run dies."""

import csv
import math
import warnings
from collections import OrderedDict

import pytest
import torch
from naive import T, draw, gradient_parts, mean_part, naive_tcs, size
from test_any_model import ENCODER, encoder, expected_of_encoder
from torch import nn

from suite.audit import AuditError, DyingWarning, Monitor
from suite.detect.judge import detect
from suite.diagnosis.watch import LossWatch

pytestmark = pytest.mark.usefixtures("silent")


class Wrapped(nn.Module):
    """A model that returns what `out` makes of (hidden, loss)."""

    def __init__(self, inner, target, out):
        super().__init__()
        self.inner, self.target, self.out = inner, target, out

    def forward(self, x, **_):
        hidden = self.inner(x)
        return self.out(hidden, (hidden - self.target).square().mean())


def measured(model, x, loss_of, **kwargs):
    """The rows of one step in which everything is measured."""
    model.zero_grad()
    with Monitor(model, [name for name, m in model.named_modules() if name.endswith(("self_attn.out_proj", "linear2"))], every=1,
                 **kwargs) as monitor:  # fmt: skip
        loss = loss_of(model(x))
        loss.backward()
        monitor.step(loss)
    return monitor


def reference(dropout=0.0):
    """Writer -> g_mean, g_ctr, tcs, rho of the encoder: an ordinary backward, and loops over numbers."""
    torch.manual_seed(5)
    model, loss = encoder(dropout)
    torch.manual_seed(6)
    found = {}
    for name, (delta, y, out, _) in expected_of_encoder(model, loss).items():
        mean, centered, _, _ = gradient_parts(delta, y)
        found[name] = [size(mean), size(centered), naive_tcs(out), size(mean_part(out)) / size(out - mean_part(out))]
    return found


OUTS = {
    "tensor": (lambda h, loss: h, None),
    "mapping with a loss": (lambda h, loss: OrderedDict(loss=loss, logits=h), "loss"),
    "loss, what it was made of, and more": (lambda h, loss: {"loss": loss, "hidden": (h, [h.detach()]), "more": {"n": 3}}, "loss"),
    "scalar": (lambda h, loss: loss, "it"),
}


@pytest.mark.parametrize("out", OUTS)
def test_the_numbers_are_those_of_an_ordinary_backward(out):
    make, where = OUTS[out]
    inner, _ = encoder()
    x, target = draw(3, T, 8, seed=1, dtype=torch.float64), draw(3, T, 8, seed=2, dtype=torch.float64)
    model = Wrapped(inner, target, make)
    monitor = measured(model, x, lambda o: (o - target).square().mean() if where is None else o if where == "it" else o[where])
    expected = reference()
    assert [row["writer"] for row in monitor.by_writer] == [f"inner.{name}" for name in ENCODER]
    for row in monitor.by_writer:
        assert [row[k] for k in ("g_mean", "g_ctr", "tcs", "rho")] == pytest.approx(expected[row["writer"][6:]], rel=2e-5)
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert monitor.row["grad_norm"] == pytest.approx(norm, rel=1e-6)
    q = [layer.self_attn.in_proj_weight.grad[:8].norm().item() for layer in inner.layers]
    assert monitor.row["q_grad"] == pytest.approx(min(q), rel=1e-6)  # torch's median of two is the lower


def test_dropout_is_drawn_as_it_was():
    inner, _ = encoder(0.3)
    x, target = draw(3, T, 8, seed=1, dtype=torch.float64), draw(3, T, 8, seed=2, dtype=torch.float64)
    torch.manual_seed(6)
    monitor = measured(inner, x, lambda o: (o - target).square().mean())
    expected = reference(0.3)
    for row in monitor.by_writer[1::2]:  # linear2; what out_proj reads is made by hand there, without dropout
        assert [row["g_mean"], row["g_ctr"]] == pytest.approx(expected[row["writer"]][:2], rel=2e-5)


def test_a_gradient_far_below_float32s_squares_is_measured():
    inner, _ = encoder()
    x, target = (draw(3, T, 8, seed=i, dtype=torch.float32) for i in (1, 2))
    rows = [measured(inner.float(), x, lambda o, scale=scale: scale * (o - target).square().mean()).by_writer for scale in (1.0, 1e-25)]
    for one, small in zip(*rows, strict=True):
        assert small["g_ctr"] == pytest.approx(1e-25 * one["g_ctr"], rel=1e-4)


# ---- nothing of it reaches the training

def train(steps, wrap=lambda model: model, autocast=False, accumulate=1, measured=4, **kwargs):
    """(weights, random state) after some steps with dropout and AdamW; kwargs: of the monitor, none without one."""
    torch.manual_seed(0)
    inner, _ = encoder(0.2, dtype=torch.float32)
    model = wrap(inner)
    optimiser = torch.optim.AdamW(inner.parameters(), 1e-2)
    monitor = Monitor(model, **kwargs) if kwargs else None
    for _ in range(steps):
        for _ in range(accumulate):
            x = torch.randn(3, T, 8)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = (model(x).float() - x.roll(1, 1)).square().mean() / accumulate
            loss.backward()
        if monitor:
            monitor.step(loss)
        nn.utils.clip_grad_norm_(inner.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            model.eval()
            model(x)
            model.train()
    if monitor:
        monitor.close()
        assert len(monitor.by_writer) == measured and not monitor.alarms
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return [p.detach().clone() for p in inner.parameters()] + [torch.get_rng_state()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("second_pass, measured", [(True, 4), (False, 0)])
@pytest.mark.parametrize("wrap", [torch.compile, lambda model: (model.compile(), model)[1]], ids=["torch.compile", "model.compile()"])
@pytest.mark.filterwarnings("ignore:Monitor. not measured")
def test_not_a_bit_of_a_compiled_training_changes(wrap, second_pass, measured):
    assert same(train(12, wrap), train(12, wrap, every=4, second_pass=second_pass, measured=measured))


@pytest.mark.parametrize("how", [{}, {"autocast": True}, {"accumulate": 3}])
def test_not_a_bit_of_the_training_changes(how):
    assert same(train(25, **how), train(25, every=4, csv=None, **how))


def test_not_a_bit_of_a_ddp_training_changes(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        def wrap(model):
            return nn.parallel.DistributedDataParallel(model)

        assert same(train(10, wrap), train(10, wrap, every=2))
    finally:
        torch.distributed.destroy_process_group()


# ---- what it says and leaves

def test_a_step_that_is_not_finite_is_told_once_and_costs_nothing(tmp_path):
    inner, _ = encoder(dtype=torch.float32)
    monitor = Monitor(inner, every=2, csv=tmp_path / "watch.csv")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for i in range(1, 9):
            inner.zero_grad()
            loss = inner(draw(3, T, 8, seed=i, dtype=torch.float32)).square().mean() * (math.nan if i in (4, 5) else 1.0)
            loss.backward()
            monitor.step(loss)
    monitor.close()
    assert [(w.category, "step 4: nonfinite" in str(w.message)) for w in told] == [(DyingWarning, True)]
    rows = list(csv.DictReader(open(tmp_path / "watch.csv")))
    assert [row["step"] for row in rows] == [str(i) for i in range(1, 9)]
    assert [bool(row["g_mean"]) for row in rows] == [True, True] + [False, True] * 3 and rows[5]["g_mean"] != "nan"
    assert [bool(row["update_rms"]) for row in rows] == [False, True] + [True, False] * 3
    assert (found := detect(tmp_path / "watch.csv"))["outcome"] == "nonfinite" and found["crash_step"] == 4


def test_a_file_goes_on_after_a_resume(tmp_path):
    inner, _ = encoder(dtype=torch.float32)
    for start in (0, 3):
        with Monitor(inner, every=None, csv=tmp_path / "watch.csv", start=start) as monitor:
            for _ in range(3):
                monitor.step(1.0, 2.0)
    assert [row["step"] for row in csv.DictReader(open(tmp_path / "watch.csv"))] == list("123456")


def test_alarms_go_to_a_callback_and_numbers_to_a_board():
    class Board(list):
        def add_scalar(self, *args):
            self.append(args)

    inner, _ = encoder(dtype=torch.float32)
    told, board = [], Board()
    monitor = Monitor(inner, every=None, told=lambda *args: told.append(args), board=board)
    for i in range(200):
        monitor.step(0.8 + 0.01 * (i % 7) + (1.2 if i >= 150 else 0.0), 1.0)
    assert [(kind, at) for at, kind, _ in told] == [("loss jumped", 160)] and told == monitor.alarms
    assert ("monitor/loss", 0.8, 1) in board


def test_the_growth_of_the_gradient_norm_is_that_of_five_steps_over_twenty(tmp_path):
    inner, _ = encoder(dtype=torch.float32)
    with Monitor(inner, every=None, csv=tmp_path / "watch.csv") as monitor:
        for i in range(40):
            monitor.step(1.0, 2.0 if i < 30 else 6.0)
    grown = [row["norm_growth"] for row in csv.DictReader(open(tmp_path / "watch.csv"))]
    assert grown == [""] * 24 + ["1"] * 8 + ["3"] * 8  # the 33rd is the first whose last five are mostly new


def test_equal_tokens_are_told():
    class Equal(nn.Module):
        def __init__(self):
            super().__init__()
            self.w2 = nn.Linear(8, 8)

        def forward(self, x):
            return self.w2(x.mean(1, keepdim=True).expand_as(x) + 1e-4 * x)

    model = Equal()
    monitor = Monitor(model, every=1)
    with pytest.warns(DyingWarning, match="tokens equal"):
        for i in range(3):
            loss = (model(draw(3, T, 8, seed=i, dtype=torch.float32)) - 1).square().mean()
            loss.backward()
            monitor.step(loss)
    assert len(monitor.alarms) == 1


@pytest.mark.parametrize("how, said", [("another module", "no forward of the model was seen"), ("shared", "more than once"),
                                       ("no backward", "got no gradient")])  # fmt: skip
def test_what_cannot_be_measured_is_said_once_and_the_training_goes_on(how, said):
    inner, _ = encoder(dtype=torch.float32)
    model = inner
    if how == "shared":
        model = nn.Sequential(inner, inner)
    monitor = Monitor(model, every=1)
    x = draw(3, T, 8, seed=1, dtype=torch.float32)
    with pytest.warns(UserWarning, match=said) as told:
        for _ in range(3):
            loss = (inner.layers[0] if how == "another module" else model)(x).square().mean()
            if how != "no backward":
                loss.backward()
            monitor.step(loss)
    assert len(told) == 1 and told[0].filename == __file__ and monitor.at == 3 and monitor.by_writer == []


def test_writers_are_guessed_or_named_or_refused(capsys):
    inner, _ = encoder()
    assert Monitor(inner).writers == ENCODER
    assert ENCODER[0] in capsys.readouterr().out
    with pytest.raises(AuditError, match="nowhere"):
        Monitor(inner, ["nowhere"])
    assert Monitor(nn.Sequential(nn.Linear(4, 4))).writers == [] and "no writers" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["white", "falling", "spikes"])
def test_the_watch_does_not_cry_wolf(kind):
    """200 runs of 1,000 steps; a spike here lasts six steps."""
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(20):
        loss = 1 + 0.1 * torch.randn(1000, generator=generator)
        if kind == "falling":
            loss += 3 * (1 + torch.arange(1000) / 20) ** -0.5
        if kind == "spikes":
            for at in (200, 500, 800):
                loss[at : at + 6] += 2
        watch = LossWatch()
        alarms += sum(bool(watch.see(value)) for value in loss.tolist())
    assert alarms == 0


# ---- a network that nobody has tuned the monitor on

def encoder_on_noise(seed, steps, hot_from=None):
    """(losses, alarms) of a TransformerEncoder that learns random data at 1e-3, and from a step on at a hundred times that."""
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), nn.Linear(32, 32))
    data = torch.randn(256, 12, 32)
    target = data.roll(1, 1).tanh()
    optimiser, told, losses = torch.optim.AdamW(model.parameters(), 1e-3), [], []
    with Monitor(model, told=lambda *alarm: told.append(alarm)) as monitor:
        for step in range(steps):
            if step == hot_from:
                optimiser.param_groups[0]["lr"] = 0.1
            rows = torch.randint(0, 256, (16,))
            loss = (model(data[rows]) - target[rows]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            monitor.step(loss)
            optimiser.step()
            losses.append(loss.item())
    return losses, told


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_network_driven_into_collapse_is_called_dying_within_20_steps(seed):
    losses, told = encoder_on_noise(seed, 420, hot_from=300)
    healthy = max(losses[250:300])
    jumped = next(i for i in range(300, 400) if min(losses[i : i + 20]) > 1.2 * healthy)
    assert "loss jumped" in [kind for at, kind, _ in told if jumped <= at <= jumped + 20], (jumped, told)
    assert not [alarm for alarm in told if alarm[0] <= 300]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(5))
def test_a_network_that_lives_raises_nothing_in_2000_steps(seed):
    assert encoder_on_noise(seed, 2000)[1] == []
