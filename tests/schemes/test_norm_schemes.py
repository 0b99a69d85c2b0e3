"""What each paper says of schemes that move, add or replace norms: naive references in float64, special settings that are others'."""

import math

import pytest
import torch
from cases import SEGMENTS, build, context, inputs, norm, normal, shake

from suite import registry
from suite.presets import NEWCOMERS
from suite.residual import Residual
from suite.sweep.plan import Selection, SelectionError, make_plan

DEPTH = 4


@pytest.fixture
def given():
    """(x, W): a trunk away from unit size, and the matrix of a branch."""
    return 2 * normal(2, sum(SEGMENTS), 8) + 0.5, normal(8, 8, seed=1)


def run(scheme, x, w, site="attn"):
    return scheme(x, lambda h: h @ w, context(site=site)).double()


def close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


# ---- pre-norm and what scales it

def test_prenorm(given):
    x, w = given
    scheme = build("prenorm")
    close(run(scheme, x, w), x.double() + norm(x) @ w.double())
    close(scheme.fold(x).double(), norm(x))


def test_a_prenorm_network_with_zero_writers_is_the_norm_of_its_tokens(tiny_model):
    model, seen = tiny_model("prenorm", depth=3, writers="zero"), []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.final.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(*inputs(model))
    first, last = seen
    close(last.double(), norm(first)[:, : last.shape[1]])


def test_gpt2s_writers_are_smaller_by_the_root_of_the_branches(tiny_model):
    scaled, plain = (tiny_model(name, depth=8, writers="std") for name in ("prenorm_scaled", "prenorm"))
    for ours, theirs in zip(scaled.blocks, plain.blocks, strict=True):
        for site in ("attn", "ffn"):
            for name, weight in ours.weights(site).items():
                factor = 0.25 if name in ("o", "w2") else 1.0  # 1 / sqrt(2 * 8)
                torch.testing.assert_close(weight, factor * theirs.weights(site)[name])


def test_completep(given):
    x, w = given
    for a in (0.0, 0.5, 1.0):
        scheme = build("completep", params=f"a={a:g}", depth=32)
        close(run(scheme, x, w), x.double() + 16**-a * norm(x) @ w.double())
        factors = scheme.factors("ffn")
        assert factors.keys() == {"w1", "w3", "w2"}
        assert all(one.rate == pytest.approx(16 ** (a - 1)) and one.eps == pytest.approx(16**-a) for one in factors.values())
    assert torch.equal(run(build("completep", params="a=0"), x, w), run(build("prenorm"), x, w))
    at_base = build("completep", depth=2)
    assert torch.equal(run(at_base, x, w), run(build("prenorm"), x, w)) and set(at_base.factors("attn").values()) == {(1.0, 1.0)}


def test_peri_ln_does_not_see_the_size_of_a_branch(given):
    x, w = given
    scheme = build("peri_ln")
    close(run(scheme, x, w), x.double() + norm(norm(x) @ w.double()))
    close(run(scheme, x, 100 * w), run(scheme, x, w))
    close(scheme.open(x, context()).double(), norm(x))


def test_lns_shrinks_what_both_branches_of_a_block_read(given):
    x, w = given
    for site in ("attn", "ffn"):
        close(run(build("lns", block=3, site=site), x, w, site), x.double() + norm(x) / 2 @ w.double())
        assert torch.equal(run(build("lns", block=0, site=site), x, w, site), run(build("prenorm", site=site), x, w, site))


def test_subln_norms_what_the_writer_reads(tiny_model):
    scheme = build("subln", site="ffn")
    h = 3 * normal(2, 7, 24) + 1
    expected = h.double() - h.double().mean(-1, keepdim=True)
    close(scheme.inner(h, context(site="ffn")).double(), expected / (expected.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    ours, theirs = (tiny_model(name, depth=8, writers="std") for name in ("subln", "prenorm"))
    for site, larger in (("attn", ("v", "o")), ("ffn", ("w1", "w3", "w2"))):
        for name, weight in ours.blocks[0].weights(site).items():
            factor = math.log(16) ** 0.5 if name in larger else 1.0
            torch.testing.assert_close(weight, factor * theirs.blocks[0].weights(site)[name])


@pytest.mark.parametrize(("depth", "expected"), [(100, 2.302), (400, 2.585), (1000, 2.757)])
def test_sublns_gain_as_its_authors_print_it(depth, expected):
    assert build("subln", depth=depth).scale.item() == pytest.approx(expected, abs=5e-4)


# ---- post-norm

def test_keel(given):
    x, w = given
    affine = 1 + normal(8, seed=3).abs(), 1 + normal(8, seed=4).abs()
    for block, site, a in ((0, "ffn", 1.0), (1, "attn", 2 * DEPTH), (DEPTH - 1, "ffn", 2 * DEPTH)):
        scheme = build("keel", block=block, site=site)
        scheme.norm_in.weight.data, scheme.norm_out.weight.data = affine
        inner, outer = (each.double() for each in affine)
        close(run(scheme, x, w, site), norm(a * x.double() + (norm(x) * inner) @ w.double()) * outer)
    first = build("keel", block=0)
    close(run(first, x, w), x.double() + norm(x) @ w.double())


def test_with_its_inner_norm_at_the_start_keel_is_post_norm_with_a_weighted_trunk():
    """On a trunk that a norm without scale has made, as the scheme's page says of norms that are not affine."""
    x, w = norm(normal(2, 7, 8)).float(), normal(8, 8, seed=1)
    ours = run(build("keel", block=2, params="a=1.5"), x, w)
    close(ours, run(build("deepnorm", block=2, params="alpha=1.5,beta=1"), x, w))


@pytest.mark.parametrize(("depth", "expected"), [(100, 6.075), (400, 10.900), (1000, 16.194)])
def test_admin_starts_at_the_closed_form_of_its_authors(depth, expected):
    gate = build("admin", depth=depth).gate_omega
    assert gate.shape == (8,) and gate.unique().item() == pytest.approx(expected, abs=5e-4)


def test_admin_of_one_is_plain_and_of_deepnorms_constant_deepnorm(given):
    x, w = given
    assert torch.equal(run(build("admin", params="init=1"), x, w), run(build("plain"), x, w))
    close(run(build("admin", params="init=1.7"), x, w), run(build("deepnorm", params="alpha=1.7,beta=1"), x, w))
    scheme = shake(build("admin"))
    close(run(scheme, x, w), norm(scheme.gate_omega.detach().double() * x.double() + x.double() @ w.double()))


# ---- no norm, and several trunks

def test_skipinit_is_the_identity_at_the_start_and_has_a_scalar_a_branch(given, tiny_model):
    x, w = given
    scheme = build("skipinit")
    assert torch.equal(run(scheme, x, w), x.double())
    shake(scheme)
    close(run(scheme, x, w), x.double() + scheme.gate_alpha.item() * (x.double() @ w.double()))
    model = tiny_model("skipinit", depth=3, writers="std")
    assert [p.shape for n, p in model.named_parameters() if "gate_" in n] == [(1,)] * 6


def test_siamese_norm(given):
    x, w = given
    scheme, y = build("siamese", block=2, site="ffn"), 3 * normal(2, 7, 8, seed=5)
    out = scheme(torch.stack([x, y], 2), lambda h: h @ w, context(site="ffn")).double()
    o = norm(x.double() + norm(y)) @ w.double()  # the sixth branch
    close(out[:, :, 0], norm(x.double() + o / math.sqrt(7)))
    close(out[:, :, 1], y.double() + o)
    close(scheme.fold(torch.stack([x, y], 2)).double(), x.double() + norm(y))


def test_the_two_trunks_of_siamese_norm_alone_are_post_norm_and_pre_norm(given):
    x, w = given
    scheme, none = build("siamese"), torch.zeros_like(x)
    scheme.shrink.fill_(1.0)
    post = scheme(torch.stack([norm(x).float(), none], 2), lambda h: h @ w, context())[:, :, 0]
    close(post.double(), run(build("plain"), norm(x).float(), w))
    pre = scheme(torch.stack([none, x], 2), lambda h: h @ w, context())[:, :, 1]
    close(pre.double(), run(build("prenorm"), x, w))


def test_streams_of_identity_hyper_connections_by_hand(given):
    x, w = given
    scheme = shake(build("ihc", params="streams=3"))
    streams = torch.stack([x, normal(2, 7, 8, seed=6), normal(2, 7, 8, seed=7)], 2)
    out = scheme(streams, lambda h: h @ w, context()).double()
    x64, gates = streams.double(), {name: p.detach().double() for name, p in scheme.named_parameters()}
    logits = torch.einsum("btk,gk->btg", norm(x64.flatten(2)), gates["gate_map"])
    pre = torch.sigmoid(gates["gate_alpha"][0] * logits[..., :3] + gates["gate_bias"][0]) + 1e-6
    post = 2 * torch.sigmoid(gates["gate_alpha"][1] * logits[..., 3:] + gates["gate_bias"][1]) + 1e-6
    f = norm(sum(pre[..., [j]] * x64[:, :, j] for j in range(3))) @ w.double()
    close(out, torch.stack([x64[:, :, j] + post[..., [j]] * f for j in range(3)], 2))


def test_identity_hyper_connections_without_their_map_are_pre_norm(given):
    x, w = given
    scheme = build("ihc", params="alpha=0")
    out = scheme(scheme.open(x, context()), lambda h: h @ w, context())
    close(out.double(), run(build("prenorm"), x, w).unsqueeze(2).expand(-1, -1, 4, -1))
    close(scheme.fold(out).double(), norm(run(build("prenorm"), x, w)))


# ---- writers, and papers

@pytest.mark.parametrize("name", ["prenorm_scaled", "peri_ln", "skipinit", "mhc", "attn_residuals", "deepscalelm", "adaln"])
def test_schemes_that_zero_writers_would_spoil_refuse_them(name):
    with pytest.raises(SelectionError, match=f"{name} refuses zero writers"):
        make_plan(Selection(protocol="smoke", schemes=(name,), params=(f"{name}:writers=zero",), depths=(2,)))


@pytest.mark.parametrize("name", NEWCOMERS)
def test_each_names_its_paper(name):
    entry = registry.get(name)
    assert entry.paper and issubclass(entry.cls, Residual)
