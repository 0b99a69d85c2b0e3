"""The null model and the parts of MV-Split: each against explicit projectors in float64, and against the scheme that it is a case of.

J is an explicit T x T matrix here (`cases.projector`).
"""

import pytest
import torch
from cases import SEGMENTS, build, context, normal, projector, shake

from suite.sweep.plan import Selection, SelectionError, make_plan


def case(name, params="", site="attn", seed=0):
    """(scheme with its gates moved to random places, x, f, J of the segments, J over all tokens), in float64."""
    x, f = normal(2, 7, 8, seed=seed, dtype=torch.float64), normal(2, 7, 8, seed=seed + 1, dtype=torch.float64)
    every = projector((sum(SEGMENTS),))
    return shake(build(name, params=params, site=site).double()), x, f, projector(SEGMENTS), every


def alone(scheme, x, f, site="attn"):
    return scheme.merge(x, f, context(site=site))


@pytest.mark.parametrize("g", [1.0, 0.1, 0.003])
def test_a_fixed_gain_scales_the_branch_and_has_nothing_to_learn(g):
    scheme, x, f, *_ = case("gain", f"g={g}")
    torch.testing.assert_close(alone(scheme, x, f), x + g * f, rtol=1e-6, atol=1e-6)
    assert not list(scheme.parameters())


def test_a_gain_of_one_is_plain():
    _, x, f, *_ = case("plain")
    assert torch.equal(alone(build("gain", params="g=1"), x.float(), f.float()), alone(build("plain"), x.float(), f.float()))


def test_split_as_it_stands_is_mvsplit():
    split, x, f, *_ = case("split")
    mvsplit = shake(build("mvsplit").double())
    mvsplit.load_state_dict(split.state_dict())
    torch.testing.assert_close(alone(split, x, f), alone(mvsplit, x, f), rtol=0, atol=1e-14)
    assert {name for name, _ in split.named_parameters()} == {name for name, _ in mvsplit.named_parameters()}


@pytest.mark.parametrize("over", ["segment", "all"])
@pytest.mark.parametrize("trunk", ["whole", "centered"])
@pytest.mark.parametrize("mean", ["leaky", "branch", "leak", "none"])
def test_each_part_of_split_is_what_its_formula_says(mean, trunk, over):
    scheme, x, f, j, every = case("split", f"mean={mean},trunk={trunk},over={over},alpha=0.3,beta=0.7")
    j = every if over == "all" else j
    mean_x, mean_f = j @ x, j @ f
    added = {"leaky": mean_f - mean_x, "branch": mean_f, "leak": -mean_x, "none": torch.zeros_like(x)}[mean]
    branch = f if mean == "leak" else f - mean_f
    alpha = scheme.gate_alpha if mean != "none" else 0.0
    want = (x - mean_x if trunk == "centered" else x) + scheme.gate_beta * branch + alpha * added
    torch.testing.assert_close(alone(scheme, x, f), want)


@pytest.mark.parametrize("learn", ["both", "alpha", "beta", "none"])
def test_what_split_does_not_learn_stays_as_it_starts(learn):
    scheme = build("split", params=f"learn={learn},alpha=0.25,beta=0.5")
    learned = {name for name, _ in scheme.named_parameters()}
    assert learned == {f"gate_{name}" for name in ("alpha", "beta") if learn in ("both", name)}
    assert torch.equal(scheme.gate_alpha.detach(), torch.full((8,), 0.25)) and torch.equal(scheme.gate_beta.detach(), torch.full((8,), 0.5))


def test_a_centred_branch_of_fixed_size_adds_nothing_to_the_mean_of_the_tokens():
    scheme, x, f, j, _ = case("split", "learn=none,mean=none,beta=0.1")
    torch.testing.assert_close(j @ alone(scheme, x, f), j @ x)
    assert not list(scheme.parameters())


@pytest.mark.parametrize("params", ["learn=all", "mean=no", "trunk=half", "over=batch"])
def test_a_part_that_split_does_not_know_is_refused(params):
    with pytest.raises(SelectionError, match=f"split: {params.replace('=', '=.')}.* is not one of"):
        make_plan(Selection(protocol="smoke", schemes=("split",), params=(params,)))


def test_featscale_scales_mean_and_rest_of_attention_alone_and_starts_as_plain():
    scheme, x, f, j, _ = case("featscale")
    want = x + f + scheme.gate_mean * (j @ f) + scheme.gate_centered * (f - j @ f)
    torch.testing.assert_close(alone(scheme, x, f), want)
    assert torch.equal(alone(build("featscale"), x, f), x + f)
    assert torch.equal(alone(build("featscale", site="ffn"), x, f, site="ffn"), x + f)


@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_similarity_is_removed_from_the_trunk_behind_attention(tau):
    scheme, x, f, j, _ = case("desimilar", f"tau={tau}")
    torch.testing.assert_close(alone(scheme, x, f), x + f - tau * (j @ (x + f)))
    assert torch.equal(alone(build("desimilar", site="ffn"), x, f, site="ffn"), x + f)


def test_rezero_from_a_start_is_rezero_from_there_and_may_have_zero_writers():
    scheme, x, f, *_ = case("rezero_start", "start=0.03")
    assert torch.equal(build("rezero_start", params="start=0.03").gate_alpha.detach(), torch.full((1,), 0.03))
    torch.testing.assert_close(alone(scheme, x, f), x + scheme.gate_alpha * f)
    runs = make_plan(Selection(protocol="smoke", schemes=("rezero_start",), params=("writers=zero",)))
    assert {run.writers for run in runs} == {"zero"}
