"""The monitor inside transformers' Trainer and Lightning's, the real ones: what they train stays the same to the bit."""

import csv
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from suite.audit import AuditError, hugging_face_monitor, lightning_monitor

STEPS = 6


def llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16))  # fmt: skip


def by_trainer(folder, callbacks):
    from transformers import Trainer, TrainingArguments

    model = llama()
    tokens = torch.randint(0, 50, (32, 12), generator=torch.Generator().manual_seed(1))
    arguments = TrainingArguments(str(folder), max_steps=STEPS, per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True,
                                  report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1, learning_rate=1e-2)  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in tokens], callbacks=callbacks)
    trainer.train()
    return [p.detach() for p in model.parameters()], [line["loss"] for line in trainer.state.log_history if "loss" in line]


def read(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_transformers(tmp_path, capsys):
    weights, losses = by_trainer(tmp_path / "bare", [])
    watch = hugging_face_monitor(csv=tmp_path / "watch.csv", every=2)
    watched, _ = by_trainer(tmp_path / "watched", [watch])
    assert all(torch.equal(a, b) for a, b in zip(weights, watched, strict=True))
    assert "model.layers.1.mlp.down_proj" in capsys.readouterr().out
    rows = read(tmp_path / "watch.csv")
    assert [row["step"] for row in rows] == [str(i) for i in range(1, STEPS + 1)]
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses, rel=0.05)
    measured = [all(row[name] for name in ("g_mean", "g_ctr", "tcs", "rho", "q_grad", "k_grad")) for row in rows]
    assert measured == [True, True] + [False, True] * 2
    assert float(rows[2]["update_rms"]) > 0 and not watch.monitor.alarms


@pytest.mark.slow
@pytest.mark.parametrize("forward", [True, False])
def test_lightning(tmp_path, forward, capsys):
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
            self.net, self.seen = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), []

        def training_step(self, batch, _):
            loss = ((self if forward else self.net)(batch) - batch.roll(1, 1)).square().mean()
            self.seen.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-2)

    class Callable(Module):
        def forward(self, x):
            return self.net(x)

    def train(callbacks):
        torch.manual_seed(0)
        module = (Callable if forward else Module)()
        data = torch.utils.data.DataLoader(torch.randn(4 * STEPS, 5, 8), batch_size=4)
        silent = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", gradient_clip_val=0.1, callbacks=callbacks, logger=False,
                                    default_root_dir=tmp_path, **silent)  # fmt: skip
        trainer.fit(module, data)
        return [p.detach() for p in module.parameters()], module.seen

    weights, losses = train([])
    watched, _ = train([lightning_monitor(csv=tmp_path / "watch.csv", every=3)])
    assert all(torch.equal(a, b) for a, b in zip(weights, watched, strict=True))
    rows = read(tmp_path / "watch.csv")
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses, rel=1e-5)
    assert [bool(row["g_mean"]) for row in rows] == [True, False, True, False, False, True]
    assert max(float(row["grad_norm"]) for row in rows) > 0.1, "the norm before clipping"


# ---- several optimisers, and trainings that break off; the loop by hand, as Lightning calls it

class Pair(nn.Module):
    """A generator and the network that judges it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.generator, self.judge = (nn.TransformerEncoder(layer, 1, enable_nested_tensor=False) for _ in range(2))


@pytest.fixture
def lightning(monkeypatch):
    """What the callback imports of Lightning, whose import takes longer than the tests."""
    package, inner = ModuleType("lightning"), ModuleType("lightning.pytorch")
    inner.Callback = object
    monkeypatch.setitem(sys.modules, "lightning", package)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", inner)


def optimisers(pair):
    return [torch.optim.SGD(part.parameters(), 0.1) for part in (pair.generator, pair.judge)]


def alternate(watch, pair, trainer, steps=3, both_first=False):
    """Two optimisers in turn; the losses of each by step. both_first: both backwards before either step."""
    x, losses = torch.randn(4, 5, 8), []
    for _ in range(steps):
        parts = [(pair.generator(x).square().mean(), trainer.optimizers[0]), (pair.judge(x).abs().mean(), trainer.optimizers[1])]
        losses.append([loss.item() for loss, _ in parts])
        for group in [parts] if both_first else [[part] for part in parts]:
            for loss, _ in group:
                watch.on_before_backward(trainer, pair, loss)
                loss.backward()
            for _, optimiser in group:
                watch.on_before_optimizer_step(trainer, pair, optimiser)
                optimiser.step()
                optimiser.zero_grad()
                trainer.global_step += 1
    return losses


@pytest.mark.parametrize("name, which", [("generator", 0), ("judge", 1)])
def test_of_two_optimisers_the_one_of_the_network_counts(lightning, name, which, tmp_path, capsys):
    pair, watch = Pair(), lightning_monitor(model=name, csv=tmp_path / "watch.csv", every=1)
    trainer = SimpleNamespace(optimizers=optimisers(pair), global_step=0)
    watch.on_train_start(trainer, pair)
    losses = alternate(watch, pair, trainer)
    assert watch.monitor.at == 3 and trainer.global_step == 6 and len(watch.monitor.by_writer) == 2
    state = watch.state_dict()
    watch.on_exception(trainer, pair, RuntimeError())
    assert [float(row["loss"]) for row in read(tmp_path / "watch.csv")] == pytest.approx([row[which] for row in losses], rel=1e-5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pair.modules())
    watch = lightning_monitor(model=name, csv=tmp_path / "watch.csv")
    watch.load_state_dict(state)
    watch.on_train_start(trainer, pair)
    assert watch.monitor.at == 3, "a checkpoint keeps the count; the trainer's is of all optimisers"
    watch.on_train_end(trainer, pair)


def test_of_two_backwards_before_a_step_no_loss_is_taken(lightning, capsys):
    pair, watch = Pair(), lightning_monitor(model="generator", every=None)
    trainer = SimpleNamespace(optimizers=optimisers(pair), global_step=0)
    watch.on_train_start(trainer, pair)
    with pytest.warns(UserWarning, match="no loss can be told"):
        alternate(watch, pair, trainer, both_first=True)
    assert watch.monitor.at == 3 and "loss" not in watch.monitor.row and "grad_norm" in watch.monitor.row


def test_a_training_that_begins_again_goes_on_in_its_csv(lightning, tmp_path, capsys):
    """As transformers' auto_find_batch_size and a second fit do."""
    pair, watch = Pair(), lightning_monitor(model="generator", csv=tmp_path / "watch.csv", every=None)
    trainer = SimpleNamespace(optimizers=optimisers(pair)[:1], global_step=0)
    for _ in range(2):
        watch.on_train_start(trainer, pair)
        watch.on_before_optimizer_step(trainer, pair, trainer.optimizers[0])
    assert sum(len(m._forward_hooks) for m in pair.modules()) == 1
    watch.on_train_end(trainer, pair)
    assert [row["step"] for row in read(tmp_path / "watch.csv")] == ["1", "1"]


def test_a_wrong_setting_is_refused_before_the_training(lightning):
    for settings in ({"every": 0}, {"stride": 50}):
        with pytest.raises(AuditError, match="every"):
            lightning_monitor(**settings)
