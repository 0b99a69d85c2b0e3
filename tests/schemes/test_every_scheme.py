"""What every residual scheme in the registry must do."""

import pytest
import torch
from cases import build, context, every_scheme, inputs, normal, shake

from suite import registry
from suite.residual import Residual
from suite.sweep.plan import Selection, make_plan
from suite.training.optim import FlatParameters


@every_scheme
@pytest.mark.parametrize("site", ["attn", "ffn"])
def test_merge_is_finite_keeps_its_shape_and_passes_gradients_to_trunk_branch_and_gates(name, arm, site):
    scheme = shake(build(name, arm, site=site))
    x, f = normal(2, 7, 8).requires_grad_(), normal(2, 7, 8, seed=1).requires_grad_()
    trunk = shake(build(name, arm, block=0)).open(x, context())  # by the first of all
    if trunk.ndim > x.ndim:  # streams as they are further on: all different
        trunk = trunk + normal(*trunk.shape, seed=3)
    out = scheme(trunk, lambda h: f + 0.1 * h, context(site=site))
    assert out.shape == trunk.shape and out.dtype == x.dtype and out.isfinite().all()
    folded = shake(build(name, arm, site="ffn", block=3)).fold(out)  # the last of all
    assert folded.shape == x.shape and folded.isfinite().all()
    (folded * normal(*folded.shape, seed=2)).sum().backward()
    for tensor in (x, f):
        assert tensor.grad.isfinite().all() and (tensor.grad.norm(dim=-1) > 1e-7).all()  # every token; gates of sigmoids may all but close
    for key, gate in scheme.named_parameters():
        if key.startswith("gate_"):
            assert gate.grad.isfinite().all() and gate.grad.abs().max() > 1e-6, key


@every_scheme
def test_scheme_parameters_are_gates_and_never_decay(name, arm, tiny_model):
    model = shake(tiny_model(name, arm))
    owned = {id(p) for r in model.modules() if isinstance(r, Residual) for p in r.parameters()}
    names = [n for n, p in model.named_parameters() if id(p) in owned]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    flat = FlatParameters(model)
    optimizer = flat.adamw(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, gate_lr=1.0)
    assert bool(names) == ("gates" in flat.leaves)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()  # all gradients are zero: only decay moves anything
    for n, p in model.named_parameters():
        if n in names or p.ndim < 2:
            assert torch.equal(p, before[n]), n
        else:
            torch.testing.assert_close(p.detach(), before[n] * (1 - 0.5 * 0.1), msg=n)


@every_scheme
def test_weights_shared_with_plain_at_the_same_seed_up_to_the_factor_of_the_scheme(name, arm, tiny_model):
    cls = registry.get(name, arm).cls
    ours, plain = tiny_model(name, arm, seed=3), tiny_model("plain", seed=3)
    for part in ("embed", "final"):
        assert torch.equal(getattr(ours, part).weight, getattr(plain, part).weight)
        assert torch.equal(getattr(ours, part).bias, getattr(plain, part).bias)
    for mine, theirs in zip(ours.blocks, plain.blocks, strict=True):
        for site in ("attn", "ffn"):
            for key, w in mine.weights(site).items():
                reference = theirs.weights(site)[key]
                if cls.init_weights is Residual.init_weights:
                    assert torch.equal(w, reference), key
                else:  # one number per matrix, so the random direction is shared
                    factor = (w * reference).sum() / reference.square().sum()
                    torch.testing.assert_close(w, factor * reference)


@every_scheme
def test_state_dict_holds_every_tensor_once_and_restores_the_model(name, arm, tiny_model):
    model = shake(tiny_model(name, arm, depth=3))
    state = model.state_dict()
    places = [t.untyped_storage().data_ptr() for t in state.values()]
    assert len(places) == len(set(places))
    assert len(state) == len(list(model.parameters())) + sum(1 for _ in model.buffers()) - 2  # rope and step are not saved
    other = tiny_model(name, arm, depth=3, seed=8)
    given = inputs(model)
    with torch.no_grad():
        assert not torch.equal(other(*given), model(*given))
        other.load_state_dict(state, strict=True)
        assert torch.equal(other(*given), model(*given))


@every_scheme
def test_a_block_merges_twice_attention_first(name, arm, tiny_model):
    model, calls = tiny_model(name, arm, depth=3), []
    for index, block in enumerate(model.blocks):
        for residual in block.residuals:
            residual.register_forward_pre_hook(lambda _, args, i=index: calls.append((i, args[2])))
    model(*inputs(model))
    assert [(i, c.site) for i, c in calls] == [(i, s) for i in range(3) for s in ("attn", "ffn")]
    assert all(c.segments == (4, 3) and isinstance(c.step, torch.Tensor) for _, c in calls)


@every_scheme
def test_plan_gives_each_scheme_its_legal_default_writers(name, arm):
    (run,) = make_plan(Selection(protocol="smoke", schemes=(name,), arms=(arm,), depths=(2,)))
    assert run.writers == ("std" if arm == "native" or registry.get(name, arm).cls.zero_writers else "zero")
