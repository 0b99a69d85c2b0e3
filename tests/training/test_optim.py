"""One flat buffer under AdamW against the same optimiser over single tensors, and its layout."""

import pytest
import torch
from torch import nn

from suite.training.optim import ALIGN, GROUPS, FlatParameters, group_of

BETAS, EPS, DECAY = (0.9, 0.999), 1e-8, 0.1


class Odd(nn.Module):
    """Sizes that fill no vector register, gates of one and of two axes, names in no order of groups."""

    def __init__(self, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)

        def p(*shape):
            return nn.Parameter(torch.randn(*shape, generator=g))

        self.bias = p(3)
        self.blocks = nn.ModuleList([nn.Module(), nn.Module()])
        for i, block in enumerate(self.blocks):
            block.w = p(5 + i, 7)
            block.residuals = nn.ModuleList([nn.Module()])
            block.residuals[0].gate_row = p(1, 13)
            block.residuals[0].gate = p(1)
        self.big = p(67, 31)
        self.kernel = p(3, 2, 2, 5)
        self.norm = p(17)


DECAYED = {"blocks.0.w", "blocks.1.w", "big", "kernel"}
GATES = {f"blocks.{i}.residuals.0.{n}" for i in (0, 1) for n in ("gate", "gate_row")}


def gradients(model, step):
    """A gradient for every parameter of very different sizes, the same for every copy of the model."""
    g = torch.Generator().manual_seed(step)
    return {
        n: torch.randn(p.shape, generator=g) * 10.0 ** (i % 5 - 2) for i, (n, p) in enumerate(model.named_parameters())
    }


def reference(model):
    """Fused AdamW over every tensor by itself."""
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if n in DECAYED], "weight_decay": DECAY},
        {"params": [p for n, p in named.items() if n not in DECAYED], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPS, fused=True)


def assert_same(ours, theirs, message):
    """Bitwise in whole vector registers; a tensor's last few elements take the scalar path, one rounding away."""
    ours, theirs = ours.detach().flatten(), theirs.detach().flatten()
    whole = len(theirs) // ALIGN * ALIGN
    assert torch.equal(ours[:whole], theirs[:whole]), message
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=str(message))


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def test_groups_by_name_and_shape():
    model = Odd()
    found = {n: group_of(n, p) for n, p in model.named_parameters()}
    assert {n for n, g in found.items() if g == "decay"} == DECAYED
    assert {n for n, g in found.items() if g == "gates"} == GATES
    assert {n for n, g in found.items() if g == "nodecay"} == {"bias", "norm"}
    optimizer = FlatParameters(model).adamw(betas=BETAS, eps=EPS, weight_decay=DECAY, gate_lr=1.0)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [DECAY, 0.0, 0.0]
    assert all(g["betas"] == BETAS and g["eps"] == EPS and g["fused"] for g in optimizer.param_groups)


def test_flat_adamw_is_per_tensor_fused_adamw():
    flat_model, plain_model = Odd(), Odd()
    flat = FlatParameters(flat_model)
    ours, theirs = flat.adamw(betas=BETAS, eps=EPS, weight_decay=DECAY, gate_lr=1.0), reference(plain_model)
    start = {n: p.detach().clone() for n, p in plain_model.named_parameters()}
    for step in range(1, 9):
        grads = gradients(plain_model, step)
        for model in (flat_model, plain_model):
            for n, p in model.named_parameters():
                if p.grad is None:
                    p.grad = grads[n].clone()
                else:
                    p.grad.copy_(grads[n])
        for optimizer in (ours, theirs):
            set_rate(optimizer, 0.01 * step)
            optimizer.step()
        for (n, a), (_, b) in zip(flat_model.named_parameters(), plain_model.named_parameters(), strict=True):
            assert_same(a, b, (step, n))
    assert all((p - start[n]).abs().mean() > 1e-2 for n, p in plain_model.named_parameters())  # everything moved


def test_flat_adamw_is_bit_for_bit_for_a_model_of_whole_registers(tiny_model):
    sizes = {
        "width": 32,
        "ffn": 96,
        "patch": 2,
        "channels": 4,
    }  # every tensor a multiple of 16, as in the laptop protocol
    models = [tiny_model("mvsplit", **sizes) for _ in range(2)]
    flat = FlatParameters(models[0])
    plain = [
        {
            "params": [p for _, p in models[1].named_parameters() if (p.ndim == 2) == decays],
            "weight_decay": DECAY * decays,
        }
        for decays in (True, False)
    ]
    ours, theirs = (
        flat.adamw(betas=BETAS, eps=EPS, weight_decay=DECAY, gate_lr=1.0),
        torch.optim.AdamW(plain, lr=0.0, betas=BETAS, eps=EPS, fused=True),
    )
    image, caption = torch.linspace(-1, 1, 64).view(1, 4, 4, 4), torch.ones(1, 3, 32)
    for _ in range(5):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad(set_to_none=False)
            (model(image, caption, torch.zeros(1)) - image.flip(2)).square().mean().backward()
            set_rate(optimizer, 0.01)
            optimizer.step()
        for (n, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            assert torch.equal(a, b), n


def test_flat_adamw_is_the_published_formula():
    model = Odd()
    flat = FlatParameters(model)
    optimizer = flat.adamw(betas=BETAS, eps=EPS, weight_decay=DECAY, gate_lr=1.0)
    w = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    m, v = ({n: torch.zeros_like(x) for n, x in w.items()} for _ in range(2))
    for step in range(1, 6):
        grads = gradients(model, step)
        for n, p in model.named_parameters():
            p.grad.copy_(grads[n])
            g = grads[n].double()
            m[n], v[n] = 0.9 * m[n] + 0.1 * g, 0.999 * v[n] + 0.001 * g**2
            w[n] = w[n] * (1 - 0.02 * (DECAY if n in DECAYED else 0))
            w[n] -= 0.02 * (m[n] / (1 - 0.9**step)) / ((v[n] / (1 - 0.999**step)).sqrt() + EPS)
        set_rate(optimizer, 0.02)
        optimizer.step()
        for n, p in model.named_parameters():
            torch.testing.assert_close(p.detach().double(), w[n], rtol=1e-5, atol=1e-6, msg=n)


def test_views_are_aligned_disjoint_and_in_the_buffers():
    model = Odd()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    order = [n for n, _ in model.named_parameters()]
    flat = FlatParameters(model)
    assert [n for n, _ in model.named_parameters()] == order == list(model.state_dict())  # names are kept
    covered = torch.zeros_like(flat.values)
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n])
        place = flat.slices[n]
        assert p.data_ptr() % 64 == 0 and p.grad.data_ptr() % 64 == 0
        assert p.data_ptr() == flat.values.data_ptr() + 4 * place.start
        assert p.grad.data_ptr() == flat.grads.data_ptr() + 4 * place.start and p.grad.shape == p.shape
        covered[place] += 1
    assert covered.max() == 1 and covered.sum() == sum(p.numel() for p in model.parameters())
    assert flat.values[covered == 0].count_nonzero() == 0
    assert len(flat.values) % ALIGN == 0 and 4 * ALIGN == 64
    assert tuple(flat.leaves) == GROUPS  # one after the other
    assert sum(len(leaf) for leaf in flat.leaves.values()) == len(flat.values)
    end = flat.values.data_ptr()
    for leaf in flat.leaves.values():
        assert leaf.data_ptr() == end
        assert leaf.grad.data_ptr() - flat.grads.data_ptr() == end - flat.values.data_ptr()
        end += 4 * len(leaf)


def test_padding_stays_zero_and_gradients_arrive_in_the_buffer(tiny_model):
    model, plain = tiny_model("mvsplit", writers="std"), tiny_model("mvsplit", writers="std")
    flat = FlatParameters(model)
    optimizer = flat.adamw(betas=BETAS, eps=EPS, weight_decay=DECAY, gate_lr=1.0)
    image, caption = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, 16)
    for m in (model, plain):
        m(image, caption, torch.zeros(2)).square().sum().backward()
    for (n, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), n
        assert torch.equal(flat.grads[flat.slices[n]], q.grad.flatten()), n
    set_rate(optimizer, 0.1)
    optimizer.step()
    flat.grads.zero_()
    assert all(p.grad.count_nonzero() == 0 for p in model.parameters())
    padding = torch.ones(len(flat.values), dtype=torch.bool)
    for place in flat.slices.values():
        padding[place] = False
    assert flat.values[padding].count_nonzero() == 0


def test_a_model_without_gates_has_no_empty_group(tiny_model):
    flat = FlatParameters(tiny_model("plain"))
    assert tuple(flat.leaves) == ("decay", "nodecay")
    optimizer = flat.adamw(betas=BETAS, eps=EPS, weight_decay=DECAY, gate_lr=1.0)
    assert flat.second_moment(optimizer) is None
    optimizer.step()
    assert flat.second_moment(optimizer).shape == flat.values.shape


@pytest.mark.parametrize("limit", [1e-3, 1.0, 50.0, 1e6])
def test_clip_is_clip_grad_norm(limit):
    flat_model, plain_model = Odd(), Odd()
    flat, grads = FlatParameters(flat_model), gradients(plain_model, 3)
    for n, p in flat_model.named_parameters():
        p.grad.copy_(grads[n])
    for n, p in plain_model.named_parameters():
        p.grad = grads[n].clone()
    norm, expected = flat.clip(limit), nn.utils.clip_grad_norm_(plain_model.parameters(), limit)
    torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
    for (n, p), q in zip(flat_model.named_parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0, msg=n)
    if limit > norm:
        assert all(torch.equal(p.grad, grads[n]) for n, p in flat_model.named_parameters())
    else:
        torch.testing.assert_close(flat.grads.norm(), torch.tensor(limit), rtol=1e-5, atol=0)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_clip_reports_a_norm_that_is_not_finite(poison):
    model = Odd()
    flat = FlatParameters(model)
    model.big.grad[3, 4] = poison
    assert not flat.clip(1.0).isfinite()


def test_second_moment_lies_where_the_parameters_lie():
    flat_model, plain_model = Odd(), Odd()
    flat = FlatParameters(flat_model)
    ours, theirs = flat.adamw(betas=BETAS, eps=EPS, weight_decay=DECAY, gate_lr=1.0), reference(plain_model)
    assert flat.second_moment(ours) is None
    for step in range(1, 4):
        grads = gradients(plain_model, step)
        for n, p in flat_model.named_parameters():
            p.grad.copy_(grads[n])
        for n, p in plain_model.named_parameters():
            p.grad = grads[n].clone()
        ours.step(), theirs.step()
    moment = flat.second_moment(ours)
    for n, p in plain_model.named_parameters():
        assert_same(moment[flat.slices[n]], theirs.state[p]["exp_avg_sq"], n)
