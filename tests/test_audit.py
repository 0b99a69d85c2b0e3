"""The paper's metrics against explicit loops in float64 and closed forms; Lemma 1; the audit of a foreign model."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from suite import audit
from suite.audit import AuditError
from suite.backbone import attention_matrix

B, T, D, WIDE, N = 2, 5, 4, 6, 3  # samples, tokens, width, writer's input width, heads


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def attention(seed=0, sharp=2.0, n=T):
    return torch.softmax(sharp * draw(B, N, n, n, seed=seed), -1)


def near(value, expected, rel=1e-9):
    assert float(value) == pytest.approx(float(expected), rel=rel, abs=1e-12)


# --- naive: Python loops over numbers ---------------------------------------------------------------------------------


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def size(a):
    return math.sqrt(sum(float(x) ** 2 for x in torch.as_tensor(a).flatten()))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def mean_token(x_TD):
    return [sum(float(x_TD[t][i]) for t in range(len(x_TD))) / len(x_TD) for i in range(len(x_TD[0]))]


def mean_part(x_BTD):
    return torch.tensor([[mean_token(x)] * len(x) for x in x_BTD], dtype=torch.float64)


def gradient_parts(d_BTD, y_BTF):
    """Mean, centered and whole gradient of a writer, and the cross terms of each sample."""
    mean = torch.zeros(d_BTD.shape[-1], y_BTF.shape[-1], dtype=torch.float64)
    centered, whole, cross = mean.clone(), mean.clone(), []
    for d, y in zip(d_BTD.double(), y_BTF.double(), strict=True):
        dbar, ybar = (torch.tensor(mean_token(x), dtype=torch.float64) for x in (d, y))
        mean += len(d) * torch.outer(dbar, ybar)
        cross.append(torch.zeros_like(mean))
        for d_t, y_t in zip(d, y, strict=True):
            cross[-1] += torch.outer(dbar, y_t - ybar) + torch.outer(d_t - dbar, ybar)
            centered += torch.outer(d_t - dbar, y_t - ybar)
            whole += torch.outer(d_t, y_t)
    return mean, centered, whole, cross


def naive_amplification(d_BTD, y_BTF):
    """w^T M w / ||w||^2 with w_t = ||d_t|| ||y_t|| and M_ts = cos(y_t, y_s) cos(d_t, d_s) (Eq. 25, 26)."""
    values = []
    for d, y in zip(d_BTD, y_BTF, strict=True):
        w = [size(a) * size(b) for a, b in zip(d, y, strict=True)]
        pairs = itertools.product(range(len(w)), repeat=2)
        values.append(sum(w[t] * w[s] * cosine(y[t], y[s]) * cosine(d[t], d[s]) for t, s in pairs) / dot(w, w))
    return sum(values) / len(values)


def naive_kappa_hat(d, y):
    return pair_mean(d, lambda b, s, t: abs(cosine(y[b, s], y[b, t])) * abs(cosine(d[b, s], d[b, t])))


def naive_tcs(x):
    return pair_mean(x, lambda b, s, t: cosine(x[b, s], x[b, t]))


def pair_mean(x_BTD, of):
    """Mean over samples of the mean of `of(b, s, t)` over s != t."""
    n = x_BTD.shape[1]
    pairs = [(s, t) for s in range(n) for t in range(n) if s != t]
    return sum(of(b, s, t) for b in range(len(x_BTD)) for s, t in pairs) / len(pairs) / len(x_BTD)


# --- each metric against its loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_writer_gradient_is_its_loops_and_its_cross_terms_vanish(seed):
    d, y = draw(B, T, D, seed=seed), draw(B, T, WIDE, seed=seed + 10) + 1
    mean, centered, whole, cross = gradient_parts(d, y)
    found_mean, found_centered = audit.writer_gradient(d, y)
    torch.testing.assert_close(found_mean, mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found_centered, centered, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found_mean + found_centered, whole, rtol=1e-9, atol=1e-12)
    assert all(size(c) < 1e-12 for c in cross)
    assert size(mean) > 0.1 and size(centered) > 0.1
    assert abs(size(whole) ** 2 - size(mean) ** 2 - size(centered) ** 2) > 1e-3  # the parts are not orthogonal


def test_means_are_taken_per_sample():
    """Two samples with opposite means: a mean over the batch would find none."""
    y = torch.ones(2, T, 1, dtype=torch.float64)
    y[1] *= -1
    mean, centered = audit.writer_gradient(y, y)
    near(mean, 2 * T)
    near(centered, 0)


@pytest.mark.parametrize("seed", range(3))
def test_amplification_and_kappa_hat_are_their_loops(seed):
    d, y = draw(B, T, D, seed=seed) + 0.5, draw(B, T, WIDE, seed=seed + 10) + 0.5
    near(audit.amplification(d, y), naive_amplification(d, y))
    near(audit.kappa_hat(d, y), naive_kappa_hat(d, y))


def test_trunk_metrics_are_their_loops():
    x, f = draw(B, T, D) + 0.7, draw(B, T, D, seed=1) - 0.2
    mean = mean_part(x)
    near(audit.rho(x), size(mean) / size(x - mean))
    near(audit.r_tr(x, f), size(f) / size(x))
    near(audit.var_gain(x, f), size(f - mean_part(f)) / size(x - mean))
    near(audit.tcs(x), naive_tcs(x))
    near(audit.rms(x), math.sqrt(sum(v**2 for v in x.flatten().tolist()) / x.numel()))
    found_mean, found_centered = audit.token_parts(x)
    torch.testing.assert_close(found_mean, mean)
    torch.testing.assert_close(found_centered, x - mean)


def test_attention_metrics_are_their_matrices():
    a, x = attention(), draw(B, T, D) + 0.7
    j = torch.full((T, T), 1 / T, dtype=torch.float64)
    p = torch.eye(T, dtype=torch.float64) - j
    heads = list(itertools.product(range(B), range(N)))
    near(audit.mu_eff(a), sum(torch.linalg.svdvals(p @ a[b, n] @ p)[0] for b, n in heads) / len(heads))
    near(audit.mu_eff(a.float()), audit.mu_eff(a), rel=1e-6)
    m = draw(1, 1, T, T)  # rows that do not add up to 1: here PA is not PAP
    near(audit.mu_eff(m), torch.linalg.svdvals(p @ m[0, 0] @ p)[0])
    near(audit.row_div(a), sum(size(a[b, n] - j @ a[b, n]) / size(a[b, n]) for b, n in heads) / len(heads))
    centered = x - mean_part(x)
    out = {(b, n): a[b, n] @ centered[b] for b, n in heads}
    kept = [math.sqrt(sum(size(p @ out[b, n]) ** 2 for b in range(B))) / size(centered) for n in range(N)]
    leaked = [math.sqrt(sum(size(j @ out[b, n]) ** 2 for b in range(B))) / size(centered) for n in range(N)]
    retention, leakage = audit.retention_leakage(a, x)
    near(retention, sum(kept) / N)
    near(leakage, sum(leaked) / N)


def test_writer_metrics_hold_what_the_functions_say_in_float64():
    d, y = draw(B, T, D, dtype=torch.float32), draw(B, T, WIDE, seed=1, dtype=torch.float32) + 1
    mean, centered, _, _ = gradient_parts(d, y)
    found = audit.writer_metrics(d, y)
    assert set(found) == {"g_mean", "g_ctr", "amplification", "kappa_hat"}
    near(found["g_mean"], size(mean))
    near(found["g_ctr"], size(centered))
    near(found["amplification"], naive_amplification(d, y))
    near(found["kappa_hat"], naive_kappa_hat(d, y))


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_equal_tokens_are_fully_coherent():
    x, d = draw(B, 1, D).expand(B, T, D), draw(B, 1, D, seed=1).expand(B, T, D)
    near(audit.tcs(x), 1)
    near(audit.amplification(d, x), T)
    near(audit.kappa_hat(d, x), 1)
    mean, centered = audit.writer_gradient(d, x)
    assert centered.norm() < 1e-12 * mean.norm()
    assert 1e9 < audit.rho(x) < math.inf  # the eps keeps it finite


def test_orthogonal_tokens_have_no_coherence():
    y = torch.eye(T, dtype=torch.float64).expand(B, T, T)
    near(audit.tcs(y), 0)
    near(audit.amplification(draw(B, T, D), y), 1)
    near(audit.kappa_hat(draw(B, T, D), y), 0)


def test_opposite_tokens_cancel_but_the_proxy_does_not_see_it():
    y = torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]]).double()
    d = draw(1, 1, D).expand(1, 2, D)
    near(audit.amplification(d, y), 0)
    near(audit.kappa_hat(d, y), 1)
    near(audit.tcs(y), -1)


@pytest.mark.parametrize("n", [2, 3, 8, 20])
def test_tokens_of_zero_mean(n):
    """Corners of a simplex: mean 0, and any two at a cosine of -1/(n-1)."""
    x = (torch.eye(n).double() - 1 / n)[None]
    near(audit.rho(x), 0)
    near(audit.tcs(x), -1 / (n - 1))


def test_rho_of_a_mean_with_a_ripple():
    x = torch.tensor([3.0, 4.0]).double() + torch.tensor([[0.5, 0.0], [-0.5, 0.0]]).double()
    near(audit.rho(x[None]), 5 / 0.5)


@pytest.mark.parametrize("a", [0.0, 0.25, 3.0])
def test_a_branch_that_is_a_multiple_of_the_trunk(a):
    x = draw(B, T, D) + 1
    near(audit.r_tr(x, a * x), a)
    near(audit.var_gain(x, a * x), a)
    near(audit.var_gain(x, draw(B, 1, D).expand(B, T, D)), 0)  # a pure mean brings no centered content


def test_uniform_attention_contracts_all():
    a, x = torch.full((B, N, T, T), 1 / T, dtype=torch.float64), draw(B, T, D)
    for value in (audit.row_div(a), audit.mu_eff(a), *audit.retention_leakage(a, x)):
        near(value, 0)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 0, 4, 1, 2]])
def test_attention_that_permutes_keeps_all(order):
    a, x = torch.eye(T).double()[order].expand(B, N, T, T), draw(B, T, D)
    near(audit.mu_eff(a), 1)
    near(audit.row_div(a), math.sqrt((T - 1) / T))
    retention, leakage = audit.retention_leakage(a, x)
    near(retention, 1)
    near(leakage, 0)


def test_mu_eff_is_pap_and_not_ap():
    """All rows alike: nothing centered comes out, so PAP = 0, while AP = 1 (a - 1/T)^T and all that is left leaks."""
    row = torch.softmax(3 * draw(T), -1)
    a, x = row.expand(B, N, T, T), draw(B, T, D)
    ap = a - a.mean(-1, keepdim=True)
    near(torch.linalg.svdvals(ap)[..., 0].mean(), math.sqrt(T) * size(row - 1 / T))
    assert torch.linalg.svdvals(ap)[..., 0].mean() > 0.5
    assert audit.mu_eff(a) < 1e-7
    centered = x - mean_part(x)
    retention, leakage = audit.retention_leakage(a, x)
    near(retention, 0)
    near(leakage, math.sqrt(T) * size(row @ centered) / size(centered))


def test_mu_eff_can_exceed_one_and_lies_below_the_norm_of_ap():
    a = attention(sharp=20.0)
    found = audit.mu_eff(a)
    ap = torch.linalg.svdvals(a - a.mean(-1, keepdim=True))[..., 0].mean()
    assert 1 < found < ap - 1e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_mu_eff_of_a_broken_matrix_is_nan(bad):
    a = attention()
    a[0, 0, 0, 0] = bad
    assert math.isnan(audit.mu_eff(a))


@pytest.mark.parametrize("seed", range(5))
def test_amplification_is_linear_in_signed_coherence_where_magnitudes_are_equal(seed):
    d = F.normalize(draw(B, T, D, seed=seed) + 0.5, dim=-1)
    y = F.normalize(draw(B, T, WIDE, seed=seed + 9) + 0.5, dim=-1)
    kappa = pair_mean(d, lambda b, s, t: dot(y[b, s], y[b, t]) * dot(d[b, s], d[b, t]))
    near(audit.amplification(3 * d, 0.1 * y) - 1, (T - 1) * kappa)
    assert audit.amplification(d, y) - 1 <= (T - 1) * audit.kappa_hat(d, y)


def test_the_proxy_bounds_nothing_where_a_few_tokens_dominate():
    """Two large aligned tokens among small orthogonal ones (the derived remark at Eq. 31)."""
    y = torch.eye(T, dtype=torch.float64)[None].clone()
    y[0, 1] = y[0, 0]
    y[0, :2] *= 100
    d = draw(1, 1, D).expand(1, T, D)
    near(audit.amplification(d, y), 2, rel=1e-3)
    assert audit.amplification(d, y) - 1 > 2 * (T - 1) * audit.kappa_hat(d, y)


@pytest.mark.parametrize("scale", [1e-13, 1e-60, 1e30])
def test_gradients_of_any_size_have_the_same_coherence(scale):
    d, y = draw(B, T, D) + 0.5, draw(B, T, WIDE, seed=1) + 0.5
    large, small = audit.writer_metrics(d, y), audit.writer_metrics(scale * d, y)
    for name in ("amplification", "kappa_hat"):
        near(small[name], large[name])
    for name in ("g_mean", "g_ctr"):
        assert small[name] == pytest.approx(scale * large[name], rel=1e-9)
    near(audit.tcs(scale * d), audit.tcs(d))


def test_a_zero_token_counts_as_no_direction():
    x = draw(B, T, D)
    x[:, 0] = 0
    rest = pair_mean(x[:, 1:], lambda b, s, t: cosine(x[b, s + 1], x[b, t + 1]))
    near(audit.tcs(x), rest * (T - 1) * (T - 2) / (T * (T - 1)))


def test_one_token_has_no_pairs():
    x = draw(B, 1, D)
    assert math.isnan(audit.tcs(x)) and math.isnan(audit.kappa_hat(x, x))
    near(audit.amplification(x, x), 1)


# --- a real backward pass ---------------------------------------------------------------------------------------------


def writer_traffic(model, call, *names):
    """Input and output gradient of the named weights, and the weights' own gradients, from one ordinary backward."""
    weights = {id(dict(model.named_parameters())[n]): n for n in names}
    seen, original = {}, F.linear

    def linear(x, weight, bias=None):
        out = original(x, weight, bias)
        if id(weight) in weights:
            out.retain_grad()
            seen[weights[id(weight)]] = (x.detach(), out)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", linear)
        call().backward()
    return {n: (out.grad, y, dict(model.named_parameters())[n].grad) for n, (y, out) in seen.items()}


def dit_loss(model, seed=0):
    image, caption = draw(B, 2, 4, 4, seed=seed), draw(B, 3, 16, seed=seed + 1)
    target = draw(B, 2, 4, 4, seed=seed + 2)
    return lambda: (model(image, caption) - target).square().mean()


WRITERS = ("blocks.0.wo", "blocks.0.w2", "blocks.1.wo", "blocks.1.w2")


@pytest.mark.parametrize("scheme, params", [("plain", ""), ("mvsplit", "alpha=0.3"), ("layerscale", "init=0.5")])
def test_the_two_parts_add_up_to_the_gradient_of_a_real_backward(tiny_model, scheme, params):
    model = tiny_model(scheme, params=params).double()
    traffic = writer_traffic(model, dit_loss(model), *WRITERS)
    assert set(traffic) == set(WRITERS)
    for d, y, grad in traffic.values():
        mean, centered = audit.writer_gradient(d, y)
        assert (mean + centered - grad).norm() < 1e-12 * grad.norm()
        assert mean.norm() > 1e-3 * grad.norm() and centered.norm() > 1e-3 * grad.norm()
        for d_TD, y_TF in zip(d, y, strict=True):
            cross = sum(torch.outer(d_TD.mean(0), y_t - y_TF.mean(0)) for y_t in y_TF)
            assert cross.norm() < 1e-12 * grad.norm()


def mean_shares(model):
    """g_mean / g_ctr by writer and segment of a model (4 image and 3 caption tokens).

    The last block's captions reach no output: their gradient is 0.
    """
    shares = {}
    for name, (d, y, _) in writer_traffic(model, dit_loss(model), *WRITERS).items():
        for cut in (slice(None), slice(4), slice(4, None))[: 3 if name.startswith("blocks.0") else 2]:
            found = audit.writer_metrics(d[:, cut], y[:, cut])
            shares[name, cut.start, cut.stop] = found["g_mean"] / found["g_ctr"]
    return shares


def test_mvsplit_at_alpha_0_has_no_mean_gradient_in_any_segment(tiny_model):
    assert max(mean_shares(tiny_model("mvsplit").double()).values()) < 1e-12


@pytest.mark.parametrize("scheme, params", [("plain", ""), ("layerscale", "init=1.0"), ("mvsplit", "alpha=0.1")])
def test_others_have_a_mean_gradient(tiny_model, scheme, params):
    assert min(mean_shares(tiny_model(scheme, params=params).double()).values()) > 1e-3


def test_mvsplit_on_attention_alone_leaves_the_ffn_its_mean_gradient(tiny_model):
    for (name, *_), share in mean_shares(tiny_model("mvsplit", params="sites=attn").double()).items():
        assert share < 1e-12 if name.endswith("wo") else share > 1e-3


# --- Lemma 1 ----------------------------------------------------------------------------------------------------------


def test_lemma_1_on_the_logits():
    """All value rows equal: the gradient with respect to the logits is 0; V off by eps makes it linear in eps."""
    v_NK, g = draw(N, 1, D), draw(N, T, D, seed=1)
    noise = draw(N, T, D, seed=2)

    def logit_gradient(eps):
        s = draw(N, T, T, seed=3).requires_grad_()
        (torch.softmax(s, -1) @ (v_NK.expand(N, T, D) + eps * noise)).mul(g).sum().backward()
        return s.grad

    assert logit_gradient(0.0).norm() < 1e-14
    one = logit_gradient(1.0)
    assert one.norm() > 0.1
    torch.testing.assert_close(logit_gradient(1e-4), 1e-4 * one, rtol=1e-8, atol=1e-15)


def qkv_gradients(block, rope, x_BTD):
    """Norms of the gradients of W_Q, W_K, W_V and W_O of a real attention layer under a loss that is not linear."""
    block.zero_grad()
    target = draw(*x_BTD.shape, seed=5)
    (block.attention(x_BTD, rope) - target).square().mean().backward()
    return [part.norm().item() for part in (*block.wqkv.grad.chunk(3), block.wo.grad)]


def test_lemma_1_on_a_real_attention_layer(tiny_model):
    model = tiny_model().double()
    block, rope = model.blocks[0], model.rope
    same, noise = draw(B, 1, 16).expand(B, 7, 16), draw(B, 7, 16, seed=1)
    q, k, v = block.qkv(same, rope)
    a = attention_matrix(q, k)
    assert audit.row_div(a) > 1e-3  # RoPE keeps the rows of A apart: the zero below is the values' doing
    assert (v - v[:, :, :1]).abs().max() < 1e-12
    q0, k0, v0, o0 = qkv_gradients(block, rope, same)
    assert q0 < 1e-15 and k0 < 1e-15 and v0 > 1e-3 and o0 > 1e-3  # the writer's gradient is not zeroed (Eq. 39)
    small, smaller = (qkv_gradients(block, rope, same + eps * noise) for eps in (1e-4, 1e-5))
    for i in (0, 1):
        assert small[i] / smaller[i] == pytest.approx(10, rel=0.01)
        assert small[i] > 1e-9


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
    rows = audit.audit(model, ENCODER, loss, batch=3)
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
    rows = audit.audit(model, ENCODER, loss, batch=3)
    assert audit.audit(model, ENCODER[::-1], loss, batch=3) == rows[::-1]
    assert audit.audit(model, iter(ENCODER[:1]), loss, batch=3) == rows[:1]


def test_when_samples_are_as_many_as_tokens():
    """The rows that nn.MultiheadAttention lays out token by token must not be read sample by sample."""
    model, _ = encoder()
    x = draw(T, T, 8)

    def loss():
        return model(x)[0].square().mean()  # only the first sample counts

    row = audit.audit(model, ENCODER, loss, batch=T)[0]
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
        rows = audit.audit(model, ENCODER, loss, batch=3)
        assert not torch.is_grad_enabled()
    assert same(before, untouched(model))
    assert audit.audit(model, ENCODER, loss, batch=3) == rows  # the same dropout, for the random state did not move


def test_gradients_that_are_there_stay_as_they_are():
    model, loss = encoder()
    loss().backward()
    before = [p.grad.clone() for p in model.parameters()]
    audit.audit(model, ENCODER, loss, batch=3)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


def test_nothing_is_left_behind_by_a_failure():
    model, _ = encoder(dropout=0.5)
    x = draw(3, T, 8)
    before = untouched(model)

    def breaks():
        model(x)
        raise KeyError("inside the user's loss")

    with pytest.raises(KeyError):
        audit.audit(model, ENCODER, breaks, batch=3)
    assert same(before, untouched(model))
    with pytest.raises(AuditError):
        audit.audit(model, ENCODER, lambda: model(x), batch=3)
    assert same(before, untouched(model))


def test_running_statistics_are_put_back():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(T))
    x, before = draw(3, T, 4, dtype=torch.float32), untouched(model)
    assert audit.audit(model, ["0"], lambda: model(x).square().sum(), batch=3)[0]["g_mean"] >= 0
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
        rows += audit.audit(model, ["writer"], lambda: model(x).square().mean(), batch=3)
    assert rows[0] == rows[1]


def test_bfloat16_autocast():
    model, loss = encoder(dtype=torch.float32)

    def half():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss()

    exact, rough = (audit.audit(model, ENCODER[1:2], call, batch=3)[0] for call in (loss, half))
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
    (ENCODER, lambda model, call: model.layers[0](draw(3, T, 8)).sum(), "writer layers.1.self_attn.* was not called"),
    (ENCODER, lambda model, call: (call(), model.layers[0].linear1.weight.sum())[1], "does not depend on writer"),
    (ENCODER, lambda model, call: call() + call(), "is called twice"),
    (ENCODER, lambda model, call: model(draw(2, T, 8)).sum(), r"sees \((10|2), .*expected \(3, tokens, width\)"),
])  # fmt: skip
def test_a_mistake_is_one_line(names, change, words):
    model, loss = encoder()
    with pytest.raises(AuditError, match=words) as caught:
        audit.audit(model, names, (lambda: change(model, loss)) if change else loss, batch=3)
    assert "\n" not in str(caught.value)
