"""The CPU's compiled stack against the same blocks run eagerly by autograd."""

import json
import subprocess
import sys

import pytest
import torch
from entries import ENTRIES, slow_but
from stand_ins import interpreted
from torch import nn

from suite.environment import ROOT
from suite.model import aot
from suite.residual import Residual, rms_norm
from suite.training.optim import FlatParameters

SCHEMES = [*((*entry, "") for entry in ENTRIES), ("mvsplit", "controlled", "sites=attn")]
TELLING = [("plain", "controlled", ""), ("rezero", "controlled", ""), ("deepnorm", "native", ""), ("mvsplit", "controlled", "sites=attn")]


@pytest.fixture
def traced(monkeypatch):
    """Tracing and partitioning as always, without the minutes of a C++ compiler; counts what was made."""
    made = []
    monkeypatch.setattr(aot, "compile_fx_inner", lambda *args, **options: made.append(1) or interpreted(*args, **options))
    monkeypatch.setattr(aot, "_compiled", {})
    return made


def batch(model, rows=2):
    draw = torch.Generator().manual_seed(3)
    return torch.randn(rows, 2, 4, 4, generator=draw), torch.randn(rows, 3, 16, generator=draw), torch.rand(rows, generator=draw)


def result(model, compiled):
    """Output and all gradients of one training pass, with random gates."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".residuals." in name:
                p.add_(0.3 * torch.randn(p.shape, generator=draw))
    flat = FlatParameters(model)
    if compiled:
        model.compile()
    out = model(*batch(model))
    out.square().mean().backward()
    return out.detach(), flat.grads.clone(), flat


def close(a, b, rtol=1e-5):
    return (a - b).norm() <= rtol * b.norm() and b.norm() > 0


@pytest.mark.parametrize(("name", "arm", "params"), slow_but(TELLING, SCHEMES))
def test_output_and_gradients_are_those_of_the_eager_blocks_and_depth_makes_nothing_to_compile(name, arm, params, tiny_model, traced):
    out, grads, flat = result(tiny_model(name, arm, params, depth=3), compiled=True)
    first = len(traced)
    want_out, want_grads, _ = result(tiny_model(name, arm, params, depth=3), compiled=False)
    assert close(out, want_out) and close(grads, want_grads)
    assert all(close(grads[place], want_grads[place], 1e-4) for place in flat.slices.values() if want_grads[place].norm() > 1e-6)
    result(tiny_model(name, arm, params, depth=7), compiled=True)
    assert 2 <= first <= 6 and len(traced) == first  # forward and backward of at most three kinds of blocks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "mvsplit"])
def test_the_same_holds_for_the_machine_code(name, tiny_model):
    model, twin = tiny_model(name, depth=3), tiny_model(name, depth=3)
    out, grads, _ = result(model, compiled=True)
    want_out, want_grads, _ = result(twin, compiled=False)
    assert close(out, want_out) and close(grads, want_grads)
    with torch.inference_mode():
        assert close(model(*batch(model, 5)), twin(*batch(twin, 5)))


ANOTHER_PROCESS = """
import json, torch
from functools import partial
from torch._dynamo.utils import counters
from suite import registry
from suite.model import backbone
from suite.training import optim
torch.set_num_threads(1)
sizes = dict(width=16, heads=2, ffn=24, depth=5, patch=2, channels=2, image_size=4, caption_tokens=3)
model = backbone.DiT(**sizes, scheme=partial(registry.get("plain", "controlled").cls))
model.init_weights(0, init="fan_in", writers="std", final="std")
flat = optim.FlatParameters(model)
model.compile()
model(torch.randn(2, 2, 4, 4), torch.randn(2, 3, 16), torch.rand(2)).square().mean().backward()
print(json.dumps({name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}))
"""


@pytest.mark.slow
def test_another_process_and_depth_takes_the_machine_code_from_disk(tiny_model):
    """Tracing must give the same graph, byte for byte, or every worker and every depth would compile again."""
    result(tiny_model("plain", depth=3), compiled=True)
    done = subprocess.run([sys.executable, "-c", ANOTHER_PROCESS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"hit": 2, "miss": 0, "bypass": 0}


def test_blocks_that_differ_in_a_python_number_get_code_of_their_own(tiny_model, traced):
    """No block may run with the numbers of another; and one number a block is refused, for it would be compiled depth times."""
    model, twin = tiny_model(depth=3), tiny_model(depth=3)
    for each in (model, twin):
        for index, block in enumerate(each.blocks):
            for residual in block.residuals:
                residual.merge = Scaled(1 + index)
    out, grads, _ = result(model, compiled=True)
    want_out, want_grads, _ = result(twin, compiled=False)
    assert close(out, want_out) and close(grads, want_grads)
    deep = tiny_model(depth=9)
    for index, block in enumerate(deep.blocks):
        block.residuals[0].merge = Scaled(index)
    with pytest.raises(aot.CompileError, match="9 kinds of blocks in a model of 9; numbers that differ by block must be buffers"):
        deep.compile()


class Scaled:
    def __init__(self, gain):
        self.gain = gain

    def __repr__(self):
        return f"Scaled({self.gain})"

    def __call__(self, x, f, ctx):
        return x + self.gain * f


def test_a_tensor_that_is_no_buffer_is_refused_in_one_line(tiny_model, traced):
    class Hidden(Residual):
        def __init__(self, gain):
            nn.Module.__init__(self)
            self.gain = [gain]

        def merge(self, x, f, ctx):
            return x + self.gain[0] * f

    model = tiny_model(depth=2)
    for block in model.blocks:
        block.residuals[0] = Hidden(torch.ones(16))
    with pytest.raises(aot.CompileError, match="Hidden: the block cannot be compiled"):
        result(model, compiled=True)


def recomputed(tiny_model):
    for depth in (1, 2, 5, 9):
        out, grads, _ = result(tiny_model("plain", depth=depth), compiled=True)
        again_out, again_grads, _ = result(tiny_model("plain", depth=depth, checkpoint_blocks=True), compiled=True)
        assert torch.equal(out, again_out) and torch.equal(grads, again_grads), depth


def test_recomputed_activations_change_no_byte(tiny_model, traced):
    recomputed(tiny_model)


@pytest.mark.slow
def test_recomputed_activations_change_no_byte_in_machine_code(tiny_model):
    recomputed(tiny_model)


def test_a_part_of_the_stack_leaves_gradients_alone_when_asked(tiny_model, traced):
    model, twin = tiny_model("mvsplit", depth=4), tiny_model("mvsplit", depth=4)
    flat = FlatParameters(model)
    model.compile()
    x, weight = torch.randn(2, 7, 16, requires_grad=True), torch.randn(2, 7, 16)
    (got,) = torch.autograd.grad((weight * model.compiled_blocks(x, torch.rand(2), 1, 3, into_grad=False)).sum(), x)
    y = x
    for block in twin.blocks[1:3]:
        y = block(y, twin.rope, twin.segments, twin.step, torch.rand(2))
    (want,) = torch.autograd.grad((weight * y).sum(), x)
    assert close(got, want) and flat.grads.count_nonzero() == 0


def test_gradients_of_two_passes_add_up(tiny_model, traced):
    model = tiny_model("plain", depth=2)
    _, once, flat = result(model, compiled=True)
    model(*batch(model)).square().mean().backward()
    assert close(flat.grads, 2 * once)


def test_rms_norm_backward_is_autograds_own():
    x = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rms_norm, (x,))
    plain = (x * (x.square().mean(-1, keepdim=True) + 1e-6) ** -0.5 * torch.arange(8)).sum()
    ours = (rms_norm(x) * torch.arange(8)).sum()
    (want,), (got,) = torch.autograd.grad(plain, x), torch.autograd.grad(ours, x)
    assert torch.allclose(got, want, rtol=1e-12)
