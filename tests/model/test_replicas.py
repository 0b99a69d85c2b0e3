"""R models as one: each replica's output and gradients are those of its model alone, whatever its neighbours hold."""

import math

import pytest
import torch
from entries import ENTRIES, slow_but
from stand_ins import interpreted

from suite.model import aot
from suite.model.replicas import Replicas
from suite.training.optim import FlatParameters, as_rows


def models(tiny_model, name, arm, count, dtype):
    """Drawn from different seeds, gates shaken."""
    out = []
    for seed in range(count):
        model = tiny_model(name, arm, depth=3, seed=seed).to(dtype)
        draw = torch.Generator().manual_seed(100 + seed)
        for parameter_name, p in model.named_parameters():
            if ".residuals." in parameter_name:
                p.data += 0.3 * torch.randn(p.shape, generator=draw, dtype=dtype)
        out.append(model)
    return out


def group(dits, compiled):
    flats = [FlatParameters(dit) for dit in dits]
    return Replicas(dits, *as_rows(flats), flats[0].slices, compiled)


def batches(count, dtype, rows=2):
    draw = torch.Generator().manual_seed(3)
    shapes = (count, rows, 2, 4, 4), (count, rows, 3, 16), (count, rows)
    return tuple(torch.randn(*shape, generator=draw, dtype=dtype) for shape in shapes)


def losses(velocity_RBCHW):
    return velocity_RBCHW.square().mean((1, 2, 3, 4))


def alone(tiny_model, name, arm, count, dtype):
    out = []
    for model, *given in zip(models(tiny_model, name, arm, count, dtype), *batches(count, dtype), strict=True):
        loss = model(*given).square().mean()
        loss.backward()
        out.append((loss.item(), {n: p.grad for n, p in model.named_parameters()}))
    return out


@pytest.fixture
def compiled(request, monkeypatch):
    """Compiled: traced and partitioned as always, run without the minutes of a C++ compiler."""
    monkeypatch.setattr(aot, "compile_fx_inner", interpreted)
    monkeypatch.setattr(aot, "_compiled", {})
    return request.param == "compiled"


COUNTS = (1, 3, 8)
HOW = ("eager", "compiled")
TELLING = [  # every scheme in one way, and every way with a scheme
    *((*entry, 3, "eager") for entry in ENTRIES), ("plain", "controlled", 1, "eager"), ("mvsplit", "controlled", 8, "eager"),
    ("mvsplit", "controlled", 3, "compiled"), ("rezero", "native", 1, "compiled"), ("plain", "controlled", 8, "compiled"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arm", "count", "compiled"),
                         slow_but(TELLING, [(*entry, count, how) for entry in ENTRIES for count in COUNTS for how in HOW]),
                         indirect=["compiled"])  # fmt: skip
def test_each_replica_is_its_model_alone(name, arm, count, compiled, tiny_model):
    dtype = torch.float64
    together = models(tiny_model, name, arm, count, dtype)
    loss_R = losses(group(together, compiled)(*batches(count, dtype)))
    loss_R.sum().backward()
    for r, (loss, grads) in enumerate(alone(tiny_model, name, arm, count, dtype)):
        assert loss_R[r].item() == pytest.approx(loss, rel=1e-12)
        for parameter_name, p in together[r].named_parameters():
            want = grads[parameter_name]
            assert (p.grad - want).norm() <= 1e-10 * want.norm() + 1e-14, parameter_name


@pytest.mark.parametrize(("ill", "compiled"), slow_but(
    [(math.nan, "eager"), (math.inf, "eager"), (1e30, "eager"), (math.inf, "compiled")],
    [(ill, how) for ill in (math.nan, math.inf, 1e30) for how in HOW]), indirect=["compiled"])  # fmt: skip
def test_a_sick_neighbour_costs_no_bit(ill, compiled, tiny_model):
    def run(poison):
        dits = models(tiny_model, "mvsplit", "controlled", 3, torch.float32)
        replicas = group(dits, compiled)
        if poison:
            dits[1].blocks[0].wo.data.fill_(ill)  # through the model: its weights are the replica's
        loss_R = losses(replicas(*batches(3, torch.float32)))
        loss_R.sum().backward()
        return loss_R, dits

    (sick, sick_group), (well, well_group) = run(True), run(False)
    assert sick[1] != well[1]
    for r in (0, 2):
        assert torch.equal(sick[r], well[r])
        pairs = zip(sick_group[r].parameters(), well_group[r].parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) and a.grad.abs().sum() > 0 for a, b in pairs)


def test_models_of_two_shapes_are_refused(tiny_model):
    two = [*models(tiny_model, "plain", "controlled", 1, torch.float32), *models(tiny_model, "mvsplit", "controlled", 1, torch.float32)]
    with pytest.raises(ValueError, match="one shape"):
        Replicas(two, None, None, {}, compiled=False)
