"""The paper's metrics against explicit loops in float64 and closed forms."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from naive import (
    WIDE,
    B,
    D,
    N,
    T,
    attention,
    cosine,
    dot,
    draw,
    gradient_parts,
    mean_part,
    naive_amplification,
    naive_kappa_hat,
    naive_tcs,
    near,
    pair_mean,
    size,
)

from suite.diagnosis import metrics

# --- each metric against its loops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_writer_gradient_is_its_loops_and_its_cross_terms_vanish(seed):
    d, y = draw(B, T, D, seed=seed), draw(B, T, WIDE, seed=seed + 10) + 1
    mean, centered, whole, cross = gradient_parts(d, y)
    found_mean, found_centered = metrics.writer_gradient(d, y)
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
    mean, centered = metrics.writer_gradient(y, y)
    near(mean, 2 * T)
    near(centered, 0)


@pytest.mark.parametrize("seed", range(3))
def test_amplification_and_kappa_hat_are_their_loops(seed):
    d, y = draw(B, T, D, seed=seed) + 0.5, draw(B, T, WIDE, seed=seed + 10) + 0.5
    near(metrics.amplification(d, y), naive_amplification(d, y))
    near(metrics.kappa_hat(d, y), naive_kappa_hat(d, y))


def test_trunk_metrics_are_their_loops():
    x, f = draw(B, T, D) + 0.7, draw(B, T, D, seed=1) - 0.2
    mean = mean_part(x)
    near(metrics.rho(x), size(mean) / size(x - mean))
    near(metrics.r_tr(x, f), size(f) / size(x))
    near(metrics.var_gain(x, f), size(f - mean_part(f)) / size(x - mean))
    near(metrics.tcs(x), naive_tcs(x))
    near(metrics.rms(x), math.sqrt(sum(v**2 for v in x.flatten().tolist()) / x.numel()))
    found_mean, found_centered = metrics.token_parts(x)
    torch.testing.assert_close(found_mean, mean)
    torch.testing.assert_close(found_centered, x - mean)


def test_attention_metrics_are_their_matrices():
    a, x = attention(), draw(B, T, D) + 0.7
    j = torch.full((T, T), 1 / T, dtype=torch.float64)
    p = torch.eye(T, dtype=torch.float64) - j
    heads = list(itertools.product(range(B), range(N)))
    near(metrics.mu_eff(a), sum(torch.linalg.svdvals(p @ a[b, n] @ p)[0] for b, n in heads) / len(heads))
    near(metrics.mu_eff(a.float()), metrics.mu_eff(a), rel=1e-6)
    m = draw(1, 1, T, T)  # rows that do not add up to 1: here PA is not PAP
    near(metrics.mu_eff(m), torch.linalg.svdvals(p @ m[0, 0] @ p)[0])
    near(metrics.row_div(a), sum(size(a[b, n] - j @ a[b, n]) / size(a[b, n]) for b, n in heads) / len(heads))
    centered = x - mean_part(x)
    out = {(b, n): a[b, n] @ centered[b] for b, n in heads}
    kept = [math.sqrt(sum(size(p @ out[b, n]) ** 2 for b in range(B))) / size(centered) for n in range(N)]
    leaked = [math.sqrt(sum(size(j @ out[b, n]) ** 2 for b in range(B))) / size(centered) for n in range(N)]
    retention, leakage = metrics.retention_leakage(a, x)
    near(retention, sum(kept) / N)
    near(leakage, sum(leaked) / N)


def test_writer_metrics_hold_what_the_functions_say_in_float64():
    d, y = draw(B, T, D, dtype=torch.float32), draw(B, T, WIDE, seed=1, dtype=torch.float32) + 1
    mean, centered, _, _ = gradient_parts(d, y)
    found = metrics.writer_metrics(d, y)
    assert set(found) == {"g_mean", "g_ctr", "amplification", "kappa_hat"}
    near(found["g_mean"], size(mean))
    near(found["g_ctr"], size(centered))
    near(found["amplification"], naive_amplification(d, y))
    near(found["kappa_hat"], naive_kappa_hat(d, y))


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_equal_tokens_are_fully_coherent():
    x, d = draw(B, 1, D).expand(B, T, D), draw(B, 1, D, seed=1).expand(B, T, D)
    near(metrics.tcs(x), 1)
    near(metrics.amplification(d, x), T)
    near(metrics.kappa_hat(d, x), 1)
    mean, centered = metrics.writer_gradient(d, x)
    assert centered.norm() < 1e-12 * mean.norm()
    assert 1e9 < metrics.rho(x) < math.inf  # the eps keeps it finite


def test_orthogonal_tokens_have_no_coherence():
    y = torch.eye(T, dtype=torch.float64).expand(B, T, T)
    near(metrics.tcs(y), 0)
    near(metrics.amplification(draw(B, T, D), y), 1)
    near(metrics.kappa_hat(draw(B, T, D), y), 0)


def test_opposite_tokens_cancel_but_the_proxy_does_not_see_it():
    y = torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]]).double()
    d = draw(1, 1, D).expand(1, 2, D)
    near(metrics.amplification(d, y), 0)
    near(metrics.kappa_hat(d, y), 1)
    near(metrics.tcs(y), -1)


@pytest.mark.parametrize("n", [2, 3, 8, 20])
def test_tokens_of_zero_mean(n):
    """Corners of a simplex: mean 0, and any two at a cosine of -1/(n-1)."""
    x = (torch.eye(n).double() - 1 / n)[None]
    near(metrics.rho(x), 0)
    near(metrics.tcs(x), -1 / (n - 1))


def test_rho_of_a_mean_with_a_ripple():
    x = torch.tensor([3.0, 4.0]).double() + torch.tensor([[0.5, 0.0], [-0.5, 0.0]]).double()
    near(metrics.rho(x[None]), 5 / 0.5)


@pytest.mark.parametrize("a", [0.0, 0.25, 3.0])
def test_a_branch_that_is_a_multiple_of_the_trunk(a):
    x = draw(B, T, D) + 1
    near(metrics.r_tr(x, a * x), a)
    near(metrics.var_gain(x, a * x), a)
    near(metrics.var_gain(x, draw(B, 1, D).expand(B, T, D)), 0)  # a pure mean brings no centered content


def test_uniform_attention_contracts_all():
    a, x = torch.full((B, N, T, T), 1 / T, dtype=torch.float64), draw(B, T, D)
    for value in (metrics.row_div(a), metrics.mu_eff(a), *metrics.retention_leakage(a, x)):
        near(value, 0)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 0, 4, 1, 2]])
def test_attention_that_permutes_keeps_all(order):
    a, x = torch.eye(T).double()[order].expand(B, N, T, T), draw(B, T, D)
    near(metrics.mu_eff(a), 1)
    near(metrics.row_div(a), math.sqrt((T - 1) / T))
    retention, leakage = metrics.retention_leakage(a, x)
    near(retention, 1)
    near(leakage, 0)


def test_mu_eff_is_pap_and_not_ap():
    """All rows alike: nothing centered comes out, so PAP = 0, while AP = 1 (a - 1/T)^T and all that is left leaks."""
    row = torch.softmax(3 * draw(T), -1)
    a, x = row.expand(B, N, T, T), draw(B, T, D)
    ap = a - a.mean(-1, keepdim=True)
    near(torch.linalg.svdvals(ap)[..., 0].mean(), math.sqrt(T) * size(row - 1 / T))
    assert torch.linalg.svdvals(ap)[..., 0].mean() > 0.5
    assert metrics.mu_eff(a) < 1e-7
    centered = x - mean_part(x)
    retention, leakage = metrics.retention_leakage(a, x)
    near(retention, 0)
    near(leakage, math.sqrt(T) * size(row @ centered) / size(centered))


def test_mu_eff_can_exceed_one_and_lies_below_the_norm_of_ap():
    a = attention(sharp=20.0)
    found = metrics.mu_eff(a)
    ap = torch.linalg.svdvals(a - a.mean(-1, keepdim=True))[..., 0].mean()
    assert 1 < found < ap - 1e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_mu_eff_of_a_broken_matrix_is_nan(bad):
    a = attention()
    a[0, 0, 0, 0] = bad
    assert math.isnan(metrics.mu_eff(a))


@pytest.mark.parametrize("seed", range(5))
def test_amplification_is_linear_in_signed_coherence_where_magnitudes_are_equal(seed):
    d = F.normalize(draw(B, T, D, seed=seed) + 0.5, dim=-1)
    y = F.normalize(draw(B, T, WIDE, seed=seed + 9) + 0.5, dim=-1)
    kappa = pair_mean(d, lambda b, s, t: dot(y[b, s], y[b, t]) * dot(d[b, s], d[b, t]))
    near(metrics.amplification(3 * d, 0.1 * y) - 1, (T - 1) * kappa)
    assert metrics.amplification(d, y) - 1 <= (T - 1) * metrics.kappa_hat(d, y)


def test_the_proxy_bounds_nothing_where_a_few_tokens_dominate():
    """Two large aligned tokens among small orthogonal ones (the derived remark at Eq. 31)."""
    y = torch.eye(T, dtype=torch.float64)[None].clone()
    y[0, 1] = y[0, 0]
    y[0, :2] *= 100
    d = draw(1, 1, D).expand(1, T, D)
    near(metrics.amplification(d, y), 2, rel=1e-3)
    assert metrics.amplification(d, y) - 1 > 2 * (T - 1) * metrics.kappa_hat(d, y)


@pytest.mark.parametrize("scale", [1e-13, 1e-60, 1e30])
def test_gradients_of_any_size_have_the_same_coherence(scale):
    d, y = draw(B, T, D) + 0.5, draw(B, T, WIDE, seed=1) + 0.5
    large, small = metrics.writer_metrics(d, y), metrics.writer_metrics(scale * d, y)
    for name in ("amplification", "kappa_hat"):
        near(small[name], large[name])
    for name in ("g_mean", "g_ctr"):
        assert small[name] == pytest.approx(scale * large[name], rel=1e-9)
    near(metrics.tcs(scale * d), metrics.tcs(d))


def test_a_zero_token_counts_as_no_direction():
    x = draw(B, T, D)
    x[:, 0] = 0
    rest = pair_mean(x[:, 1:], lambda b, s, t: cosine(x[b, s + 1], x[b, t + 1]))
    near(metrics.tcs(x), rest * (T - 1) * (T - 2) / (T * (T - 1)))


def test_one_token_has_no_pairs():
    x = draw(B, 1, D)
    assert math.isnan(metrics.tcs(x)) and math.isnan(metrics.kappa_hat(x, x))
    near(metrics.amplification(x, x), 1)
