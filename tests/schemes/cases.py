"""Schemes, contexts and batches for the scheme tests.

T tokens, D width. Projectors are explicit T x T matrices here, so nothing is checked against `token_mean` itself.
"""


import pytest
import torch
from entries import ENTRIES

from suite import registry
from suite.residual import Context, Residual, Site

every_scheme = pytest.mark.parametrize(("name", "arm"), ENTRIES, ids=["-".join(e) for e in ENTRIES])
SEGMENTS = (4, 3)


def build(name, arm="controlled", *, site="attn", width=8, depth=4, block=1, params=""):
    entry = registry.get(name, arm)
    return entry.cls(Site(width, depth, block, site, 3 * width if site == "ffn" else width, 2), **registry.parse_params(entry, params))


def context(segments=SEGMENTS, site="attn"):
    return Context(segments, site, torch.tensor(100.0), torch.tensor([0.25, 0.75]))


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def norm(x):
    """RMSNorm in float64, by its definition."""
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def close(ours, by_hand):
    torch.testing.assert_close(ours.detach().double(), by_hand.detach().double(), rtol=2e-5, atol=2e-5)


def shake(module, seed=0):
    """Move every gate to a random place, so that no test passes because a gate is 0 or 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if isinstance(module, Residual) or ".residuals." in name:
                p.copy_(0.5 + torch.rand(p.shape, generator=draw))
    return module


def projector(segments):
    """J of Eq. 3 and 43 as a (T, T) float64 matrix: block-diagonal, each block 1/t everywhere."""
    return torch.block_diag(*[torch.full((t, t), 1 / t, dtype=torch.float64) for t in segments if t])


def inputs(model, batch=2, seed=5):
    """An image, captions and times for a model, in the type of its weights."""
    c = model.embed.in_features // model.patch**2
    size = model.patch * int(model.segments[0] ** 0.5)
    d = model.embed.out_features
    image = normal(batch, c, size, size, seed=seed)
    caption = normal(batch, model.segments[1], d, seed=seed + 1)
    dtype = model.final.weight.dtype
    return image.to(dtype), caption.to(dtype), torch.linspace(0.2, 0.9, batch, dtype=dtype)


def backward(model, seed=5):
    """Gradients of a squared error against a random target."""
    out = model(*inputs(model, seed=seed))
    (out - normal(*out.shape, seed=9, dtype=out.dtype)).square().mean().backward()
    return out.detach()
