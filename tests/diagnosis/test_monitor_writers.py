"""Writers that are no nn.Linear, or whose names nobody knows: found, measured right, or named by advice that can be followed."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from suite.audit import Monitor, audit
from suite.diagnosis.metrics import rho, tcs, writer_gradient

pytestmark = pytest.mark.usefixtures("silent")


class Conv1D(nn.Module):
    """transformers' layer, GPT-2's: the weight is (in, out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(0.2 * torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Lora(nn.Module):
    """peft's wrapper of a linear layer."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base_layer, self.scaling = base.requires_grad_(False), {"default": 2.0}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})

    def forward(self, x, *args, **kwargs):
        return self.base_layer(x) + self.scaling["default"] * self.lora_B["default"](self.lora_A["default"](x))


class Tuple(nn.Linear):
    """Megatron's: the bias is returned beside what is written."""

    def forward(self, x):
        return F.linear(x, self.weight), self.bias


class Quantised(nn.Module):
    """A linear layer of a package that has no names in common with torch's but `weight`."""

    def __init__(self, into, out):
        super().__init__()
        self.weight = nn.Parameter(0.2 * torch.randn(out, into))

    def forward(self, hidden_states):
        return hidden_states @ self.weight.mT


class Block(nn.Module):
    def __init__(self, names, make):
        super().__init__()
        (self.q, self.up, self.down), width = names, 16
        self.ln = nn.LayerNorm(width)
        for name, into, out in ((self.q, width, 3 * width), (self.up, width, 24), (self.down, 24, width)):
            setattr(self, name, make(into, out))

    def forward(self, x):
        q, k, v = getattr(self, self.q)(self.ln(x)).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = getattr(self, self.down)(F.gelu(getattr(self, self.up)(x)))
        return x + (out[0] + out[1] if isinstance(out, tuple) else out)


class Language(nn.Module):
    """Embedding, blocks, head: names and layers as they are given."""

    def __init__(self, make, names=("c_attn", "c_fc", "c_proj")):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.h, self.lm_head = nn.Embedding(20, 16), nn.ModuleList(Block(names, make) for _ in range(2)), nn.Linear(16, 20)

    def forward(self, tokens):
        x = self.wte(tokens)
        for block in self.h:
            x = block(x)
        return self.lm_head(x)


def llama(into, out):
    return Lora(nn.Linear(into, out, bias=False)) if out == 16 else nn.Linear(into, out, bias=False)


LIKE = {
    "Conv1D": (lambda: Language(lambda into, out: Conv1D(out, into)), "c_proj"),
    "LoRA": (lambda: Language(llama, ("qkv", "up_proj", "down_proj")), "down_proj"),
    "a tuple": (lambda: Language(lambda into, out: Tuple(into, out) if out == 16 else nn.Linear(into, out)), "c_proj"),
    "another package's": (lambda: Language(Quantised), "c_proj"),
}


def step(model, monitor=None, tokens=None):
    tokens = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(1)) if tokens is None else tokens
    model.zero_grad()
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())
    loss.backward()
    if monitor is not None:
        monitor.step(loss)
    return loss


@pytest.mark.parametrize("second_pass", [False, True])
@pytest.mark.parametrize("kind", LIKE)
def test_writers_like_linear_are_found_and_measured(kind, second_pass):
    make, last = LIKE[kind]
    model, real = make(), {}

    def keep(name):
        def hook(module, args, result):
            result = result[0] if isinstance(result, tuple) else result
            result.retain_grad()
            real[name] = args[0].detach(), result

        return hook

    names = [f"h.{i}.{last}" for i in range(2)]
    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    step(model)
    for handle in handles:
        handle.remove()
    monitor = Monitor(model, every=1, second_pass=second_pass)
    assert monitor.writers == names
    step(model, monitor)
    assert [row["writer"] for row in monitor.by_writer] == names
    for row in monitor.by_writer:
        y, out = real[row["writer"]]
        mean, centered = writer_gradient(out.grad, y)
        right = [float(v) for v in (mean.norm(), centered.norm(), tcs(out.detach()), rho(out.detach()))]
        assert [row[k] for k in ("g_mean", "g_ctr", "tcs", "rho")] == pytest.approx(right, rel=1e-4)
    rows = audit(model, names, lambda: step_loss(model), batch=4)
    assert [row["g_mean"] for row in rows] == pytest.approx([row["g_mean"] for row in monitor.by_writer], rel=1e-4)


def step_loss(model):
    tokens = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(1))
    return F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())


@pytest.mark.parametrize("kind", ["Conv1D", "LoRA"])
def test_queries_are_cut_in_three_and_a_frozen_weight_has_no_update(kind):
    model = LIKE[kind][0]()
    monitor, optimiser = Monitor(model, every=1), torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    step(model, monitor)
    parts = []
    for block in model.h:
        grad = (block.c_attn if kind == "Conv1D" else block.qkv).weight.grad
        parts.append(float(grad.chunk(3, 1 if kind == "Conv1D" else 0)[0].norm()))
    assert monitor.row["q_grad"] == pytest.approx(min(parts), rel=1e-6)
    optimiser.step()
    step(model, monitor)
    assert ("update_rms" in monitor.row) == (kind == "Conv1D"), "of LoRA the weight that is wrapped is frozen"


def test_embeddings_and_norms_are_no_writers():
    model = Language(nn.Linear)
    for name in ("wte", "h.0.ln"):
        with pytest.raises(ValueError, match="is not an nn.Linear"):
            Monitor(model, [name])


@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile, nn.DataParallel], ids=["bare", "compiled", "DataParallel"])
def test_advice_where_none_is_found_can_be_followed(wrap, capsys):
    model = wrap(Language(Quantised, ("mix", "lift", "land")))
    assert Monitor(model).writers == []
    said = capsys.readouterr().out
    assert "land (2 x)" in said and "wte" not in said and "lift" not in said and "mix" not in said
    expression = re.search(r"writers=(\[.*\])", said)[1]
    monitor = Monitor(model, eval(expression, {"model": model}))
    assert monitor.writers == ["h.0.land", "h.1.land"]


def test_advice_for_a_network_without_linear_layers(capsys):
    assert Monitor(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Embedding(3, 4))).writers == []
    assert "loss and gradient norm alone" in capsys.readouterr().out


class Views(nn.Module):
    """BYOL with two crops of one picture and six small ones of another, in one forward; each branch has its encoder here."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.large, self.small, self.slow = (Language(nn.Linear).h for _ in range(3))
        self.slow.requires_grad_(False)

    def forward(self, large, small):
        one, other = large, small
        for blocks in (self.large, self.small):
            for block in blocks:
                if blocks is self.large:
                    one = block(one)
                else:
                    other = block(other)
        with torch.no_grad():
            aim = large
            for block in self.slow:
                aim = block(aim)
        aim = aim.mean(1)
        return 2 - F.cosine_similarity(one.mean(1), aim).mean() - F.cosine_similarity(other.mean(1).view(3, -1, 16).mean(0), aim).mean()


def test_two_views_of_other_batch_sizes():
    model = Views()
    monitor = Monitor(model, every=1)
    with pytest.warns(UserWarning, match=r"small.0.c_proj.*sees \(12, 3, 16\); expected \(4, tokens, width\)") as told:
        for _ in range(2):
            model.zero_grad()
            loss = model(torch.randn(4, 6, 16), torch.randn(12, 3, 16))
            loss.backward()
            monitor.step(loss)
    assert [row["writer"] for row in monitor.by_writer] == ["large.0.c_proj", "large.1.c_proj"]
    assert all(row["g_mean"] > 0 and row["tcs"] == row["tcs"] for row in monitor.by_writer)
    assert len([w for w in told if "slow" not in str(w.message)]) == 1 and "Not measured: 4 of the writers" in monitor.report()
