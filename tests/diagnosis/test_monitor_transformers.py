"""`Monitor` on models of transformers, as they come: their GPT-2, and their Llama with LoRA around its writers."""

import math

import pytest
import torch
from torch import nn

from suite.audit import Monitor

VOCABULARY, TOKENS, LAYERS = 50, 12, 2


class Lora(nn.Module):
    """What peft puts around a layer: the layer, frozen, as `base_layer`, and a low-rank update."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, base.out_features, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + 2.0 * self.lora_B["default"](self.lora_A["default"](x))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=TOKENS, n_embd=16, n_layer=LAYERS, n_head=2))


def lora_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=LAYERS,
                                         num_attention_heads=2, num_key_value_heads=2))  # fmt: skip
    for layer in model.model.layers:
        layer.self_attn.o_proj, layer.mlp.down_proj = Lora(layer.self_attn.o_proj), Lora(layer.mlp.down_proj)
    return model


@pytest.mark.parametrize(("make", "writers"), [(gpt2, ("attn.c_proj", "mlp.c_proj")), (lora_llama, ("self_attn.o_proj", "mlp.down_proj"))])
def test_it_finds_their_writers_measures_them_and_changes_no_bit(make, writers, capsys):
    trained = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = make().train()
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        monitor = Monitor(model, every=2) if watched else None
        for _ in range(4):
            ids = torch.randint(VOCABULARY, (4, TOKENS))
            loss = model(input_ids=ids, labels=ids).loss
            optimiser.zero_grad()
            loss.backward()
            if monitor:
                monitor.step(loss)
            optimiser.step()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    said = capsys.readouterr().out
    assert torch.equal(*trained)
    assert all(said.count(f"{layer}.{name}") == 1 for layer in range(LAYERS) for name in writers)
    assert all(math.isfinite(monitor.row[name]) for name in ("loss", "tcs", "g_mean", "g_ctr"))
    assert -1 <= monitor.row["tcs"] <= 1 and monitor.row["g_ctr"] > 0
