"""The audit of a model that is not ours: right numbers, nothing left behind, mistakes in one line."""

import math

import pytest
import torch
import torch.nn.functional as F
from naive import T, draw, gradient_parts, naive_amplification, naive_kappa_hat, naive_tcs, near, size
from torch import nn
from torch.utils.checkpoint import checkpoint

from suite.audit import AuditError, audit

# --- a foreign model --------------------------------------------------------------------------------------------------

ENCODER = [f"layers.{i}.{w}" for i in range(2) for w in ("self_attn.out_proj", "linear2")]


def encoder(dropout=0.0, dtype=torch.float64, seed=0, **changes):
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=dropout, batch_first=True, dtype=dtype, **changes)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x, target = draw(3, T, 8, seed=1, dtype=dtype), draw(3, T, 8, seed=2, dtype=dtype)
    return model, lambda: (model(x) - target).square().mean()


def attention_by_hand(module, x_BTD):
    """What out_proj reads: softmax(Q K^T / sqrt(K)) V, head by head."""
    q, k, v = F.linear(x_BTD, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
    width = q.shape[-1] // module.num_heads
    heads = []
    for n in range(module.num_heads):
        cut = slice(n * width, (n + 1) * width)
        heads.append(torch.softmax(q[..., cut] @ k[..., cut].mT / math.sqrt(width), -1) @ v[..., cut])
    return torch.cat(heads, -1)


def expected_of_encoder(model, loss):
    """(gradient, input, output, weight gradient) per writer from forward hooks and an ordinary backward."""
    seen, handles = {}, []

    def record(name):
        def hook(module, args, out):
            value = out[0] if isinstance(out, tuple) else out
            value.retain_grad()
            seen[name] = (args[0].detach(), value)

        return hook

    for i, layer in enumerate(model.layers):
        handles.append(layer.self_attn.register_forward_hook(record(f"layers.{i}.self_attn.out_proj")))
        handles.append(layer.linear2.register_forward_hook(record(f"layers.{i}.linear2")))
    loss().backward()
    modules = dict(model.named_modules())
    found = {}
    for name, (x, out) in seen.items():
        y = attention_by_hand(modules[name.rpartition(".")[0]], x) if name.endswith("out_proj") else x
        found[name] = (out.grad, y.detach(), out.detach(), modules[name].weight.grad.clone())
    for handle in handles:
        handle.remove()
    model.zero_grad(set_to_none=True)
    return found


def test_a_plain_transformer_encoder():
    model, loss = encoder()
    rows = audit(model, ENCODER, loss, batch=3)
    assert [row["writer"] for row in rows] == ENCODER
    expected = expected_of_encoder(model, loss)
    for row in rows:
        d, y, out, grad = expected[row["writer"]]
        mean, centered, whole, _ = gradient_parts(d, y)
        near(size(whole - grad), 0)
        near(row["g_mean"], size(mean))
        near(row["g_ctr"], size(centered))
        near(row["grad"], size(grad))
        near(row["amplification"], naive_amplification(d, y))
        near(row["kappa_hat"], naive_kappa_hat(d, y))
        near(row["tcs"], naive_tcs(out))
        assert row["tokens"] == T
        assert row["g_mean"] > 0 and all(isinstance(v, float) for k, v in row.items() if k not in ("writer", "tokens"))


def test_rows_follow_the_order_asked_for():
    model, loss = encoder()
    rows = audit(model, ENCODER, loss, batch=3)
    assert audit(model, ENCODER[::-1], loss, batch=3) == rows[::-1]
    assert audit(model, iter(ENCODER[:1]), loss, batch=3) == rows[:1]


def test_when_samples_are_as_many_as_tokens():
    """The rows that nn.MultiheadAttention lays out token by token must not be read sample by sample."""
    model, _ = encoder()
    x = draw(T, T, 8)

    def loss():
        return model(x)[0].square().mean()  # only the first sample counts

    row = audit(model, ENCODER, loss, batch=T)[0]
    d, y, _, grad = expected_of_encoder(model, loss)[ENCODER[0]]
    assert d[0].norm() > 0 and d[1:].norm() == 0
    near(row["g_mean"], size(gradient_parts(d, y)[0]))


def untouched(model):
    """A description of all that an audit might leave behind."""
    hooks = [len(h) for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
    values = [v.clone() for v in (*model.parameters(), *model.buffers())]
    return F.linear, hooks, [p.grad for p in model.parameters()], torch.get_rng_state(), values, torch.is_grad_enabled()


def same(before, after):
    return (
        before[:3] == after[:3] and torch.equal(before[3], after[3]) and before[5] == after[5]
        and all(torch.equal(a, b) for a, b in zip(before[4], after[4], strict=True))
    )  # fmt: skip


def test_nothing_is_left_behind():
    model, loss = encoder(dropout=0.5)
    before = untouched(model)
    assert before[2] == [None] * len(before[2])
    with torch.no_grad():
        rows = audit(model, ENCODER, loss, batch=3)
        assert not torch.is_grad_enabled()
    assert same(before, untouched(model))
    assert audit(model, ENCODER, loss, batch=3) == rows  # the same dropout, for the random state did not move


def test_gradients_that_are_there_stay_as_they_are():
    model, loss = encoder()
    loss().backward()
    before = [p.grad.clone() for p in model.parameters()]
    audit(model, ENCODER, loss, batch=3)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


def test_nothing_is_left_behind_by_a_failure():
    model, _ = encoder(dropout=0.5)
    x = draw(3, T, 8)
    before = untouched(model)

    def breaks():
        model(x)
        raise KeyError("inside the user's loss")

    with pytest.raises(KeyError):
        audit(model, ENCODER, breaks, batch=3)
    assert same(before, untouched(model))
    with pytest.raises(AuditError):
        audit(model, ENCODER, lambda: model(x), batch=3)
    assert same(before, untouched(model))


def test_running_statistics_are_put_back():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(T))
    x, before = draw(3, T, 4, dtype=torch.float32), untouched(model)
    assert audit(model, ["0"], lambda: model(x).square().sum(), batch=3)[0]["g_mean"] >= 0
    assert same(before, untouched(model))


def test_what_a_model_does_in_place_to_a_writers_output_is_not_the_writers():
    class InPlace(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.writer, self.in_place = nn.Linear(4, 4).double(), in_place

        def forward(self, x):
            f = self.writer(x)
            return x + (f.mul_(5) if self.in_place else f * 5)

    torch.manual_seed(0)
    model, x = InPlace(False), draw(3, T, 4)
    rows = []
    for model.in_place in (False, True):
        rows += audit(model, ["writer"], lambda: model(x).square().mean(), batch=3)
    assert rows[0] == rows[1]


def test_bfloat16_autocast():
    model, loss = encoder(dtype=torch.float32)

    def half():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss()

    exact, rough = (audit(model, ENCODER[1:2], call, batch=3)[0] for call in (loss, half))
    assert rough["g_mean"] == pytest.approx(exact["g_mean"], rel=0.1)


def no_grad(call):
    with torch.no_grad():
        return call()


@pytest.mark.parametrize("names, change, words", [
    (["layers.0.nothing"], None, "'layers.0.nothing' is not an nn.Linear"),
    (["layers.0"], None, "'layers.0' is not an nn.Linear"),
    ([], None, "no writers"),
    (ENCODER, lambda model, call: call().item(), "the loss must be a scalar tensor, not float"),
    (ENCODER, lambda model, call: call()[None], r"the loss must be a scalar tensor, not \(1,\)"),
    (ENCODER, lambda model, call: call().detach(), "the loss carries no gradient"),
    (ENCODER, lambda model, call: no_grad(call), "the loss carries no gradient"),
    (ENCODER, lambda model, call: draw(3, T, 8).requires_grad_().sum(), "layers.0.self_attn.*: was not called"),
    (ENCODER, lambda model, call: (call(), model.layers[0].linear1.weight.sum())[1], "the loss does not depend on it"),
    (ENCODER, lambda model, call: call() + call(), "called more than once"),
    (ENCODER, lambda model, call: model(draw(2, T, 8)).sum(), r"sees \((10|2), .*expected \(3, tokens, width\)"),
])  # fmt: skip
def test_a_mistake_is_one_line(names, change, words):
    model, loss = encoder()
    with pytest.raises(AuditError, match=words) as caught:
        audit(model, names, (lambda: change(model, loss)) if change else loss, batch=3)
    assert "\n" not in str(caught.value)


def test_a_writer_that_cannot_be_measured_is_left_out_alone():
    model, _ = encoder()
    x = draw(3, T, 8)

    def loss():
        return model.layers[0](x).square().mean()

    with pytest.warns(UserWarning, match=r"left out: layers.1.self_attn.out_proj, layers.1.linear2: was not called") as told:
        rows = audit(model, ENCODER, loss, batch=3)
    assert rows == audit(model, ENCODER[:2], loss, batch=3) and len(rows) == 2 and len(told) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_and_a_compiled_model(reentrant):
    model, loss = encoder()
    expected = audit(model, ENCODER, loss, batch=3)
    x, target = draw(3, T, 8, seed=1), draw(3, T, 8, seed=2)

    def checkpointed():
        h = x
        for layer in model.layers:
            h = checkpoint(layer, h, use_reentrant=reentrant)
        return (h - target).square().mean()

    assert audit(model, ENCODER, checkpointed, batch=3) == expected
    compiled = torch.compile(model, backend="aot_eager")
    loss = (compiled(x) - target).square().mean()
    assert audit(model, ENCODER, lambda: (compiled(x) - target).square().mean(), batch=3) == expected
    loss.backward()  # through the graph of before
