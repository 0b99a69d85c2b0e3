"""The paper's metrics as Python loops over numbers in float64, and what the audit's tests draw from."""

import itertools
import math

import pytest
import torch

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
