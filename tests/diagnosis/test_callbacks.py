"""The monitor inside transformers' Trainer and Lightning's, the real ones: what they train stays the same to the bit."""

import csv

import pytest
import torch
from torch import nn

from suite.audit import hugging_face_monitor, lightning_monitor

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
    assert [all(row[name] for name in ("g_mean", "g_ctr", "tcs", "rho", "q_grad", "k_grad")) for row in rows] == [False, True] * 3
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
    assert [bool(row["g_mean"]) for row in rows] == [False, False, True] * 2
    assert max(float(row["grad_norm"]) for row in rows) > 0.1, "the norm before clipping"
