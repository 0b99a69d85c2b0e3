"""Memory by arithmetic against tensors that are there: what autograd saves, what `FlatParameters` and AdamW hold, what is replayed."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from suite.model.backbone import Block
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.scale import memory
from suite.training.optim import FlatParameters
from suite.training.state import build_model

SHAPE, ROWS = (1, 16, 16), 16  # 64 + 4 tokens
SCHEMES = ("plain", "layerscale", "rezero", "deepnorm", "mvsplit")


def run_of(scheme="plain", depth=3, arm="controlled", **changes):
    small = {"width": 64, "heads": 2, "ffn": 192, "dtype": "fp32", "checkpoint_blocks": False}
    return Run(replace(PROTOCOLS["quarter"], **small | changes), scheme, arm, "", "std", depth, 1e-3, 0, "mnist", "", "", False)


def saved(run, rows=ROWS):
    """Bytes of all tensors but parameters that a real forward on this CPU saves for backward, with the attention of a GPU."""
    model = build_model(run, SHAPE)
    model.init_weights(0, init="0.02", writers="std", final="std")
    skip = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    weights = sorted(tuple(p.shape[::-1]) for p in model.parameters())  # autocast saves bf16 copies of them, transposed
    found, sizes = {}, {}

    def pack(t):
        key = t.untyped_storage()._cdata
        if key not in skip and tuple(t.shape) not in weights and tuple(t.shape[::-1]) not in weights:
            found[key], sizes[key] = t, t.untyped_storage().nbytes()
        return t

    def fused(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    image, caption = torch.randn(rows, *SHAPE), torch.randn(rows, 4, run.protocol.width)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with mock.patch.object(Block, "heads_out", fused), torch.autocast("cpu", torch.bfloat16, run.protocol.dtype == "bf16"), hooks:
        out = model(image, caption, torch.rand(rows))
    del out
    return sum(sizes.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_block_keeps_what_autograd_saves_of_it(scheme, dtype):
    real = (saved(run_of(scheme, 5, dtype=dtype)) - saved(run_of(scheme, 3, dtype=dtype))) / 2
    size = memory.size_of(run_of(scheme, 3, dtype=dtype), SHAPE)
    assert ROWS * size.kept == pytest.approx(real, rel=0.005)


@pytest.mark.parametrize(("scheme", "arm"), [("layerscale", "native"), ("rezero", "native")])
def test_also_where_a_scheme_normalises_before_its_branches(scheme, arm):
    run = run_of(scheme, 3, arm)
    real = (saved(run_of(scheme, 5, arm)) - saved(run)) / 2
    assert ROWS * memory.size_of(run, SHAPE).kept == pytest.approx(real, rel=0.01)


def test_in_the_papers_model_it_is_eight_widths_and_four_ffns_a_token():
    """By hand, plain in fp32: the input, q, k and v as they come, q and k normalised, the heads' output and the middle trunk are 8 D."""
    size = memory.size_of(run_of(), SHAPE)
    assert size.kept / size.tokens / 4 == pytest.approx(8 * 64 + 4 * 192, rel=0.01)
    assert size.trunk == size.tokens * 64 * 4


@pytest.mark.parametrize("depth", [5, 9])
def test_segments_keep_their_inputs_alone(depth):
    """A checkpointed forward saves each segment's input; what one segment keeps as it is replayed is `kept` times its blocks."""
    run = run_of(depth=depth, checkpoint_blocks=True)
    size = memory.size_of(run, SHAPE)
    parts = -(-depth // size.segment)
    ends = saved(run_of(depth=3)) - ROWS * (3 * size.kept + size.trunk)  # before and after the blocks; the last norm saves its output
    assert saved(run) == pytest.approx(parts * ROWS * size.trunk + ends, rel=0.01)
    assert memory.flat_activations(size, ROWS) == ROWS * (parts * size.trunk + size.segment * size.kept)


def test_state_is_what_flat_parameters_and_adamw_hold():
    run = run_of("mvsplit", 4)
    model = build_model(run, SHAPE)
    model.init_weights(0, init="0.02", writers="std", final="std")
    flat = FlatParameters(model)
    optimizer = flat.adamw(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, gate_lr=1.0)
    flat.grads.fill_(1e-3)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    held = sum(t.untyped_storage().nbytes() for t in (flat.values, flat.grads, *moments))
    size = memory.size_of(run, SHAPE)
    assert memory.flat_state(size) == pytest.approx(held, rel=0.01) and memory.flat_state(size) == 16 * size.parameters
    assert memory.flat_state(replace(size, half=True)) == 18 * size.parameters


def test_sharding_divides_the_state_and_keeps_every_fourth_block():
    size = memory.size_of(run_of(depth=8, checkpoint_blocks=True), SHAPE)
    in_flight = 2 * size.block_parameters * 8
    assert [memory.sharded_state(size, n) - in_flight for n in (2, 8)] == [8 * size.parameters, 2 * size.parameters]
    assert memory.sharded_activations(size, 3) == 3 * (6 * size.trunk + (2 + 1) * size.kept)
    assert [memory.replayed(size, n) for n in (1, 8)] == [1.0, 0.75]  # the paper replays 300 of 400


def test_micro_rows_are_the_most_that_fit_and_divide_a_gpus_share():
    run = run_of(depth=8, checkpoint_blocks=True, batch=24)
    one = memory.sharded_activations(memory.size_of(run, SHAPE), 1)
    rows = [memory.micro_rows(run, 2, int(n * one), SHAPE) for n in (1, 1.9, 2, 3.5, 5, 6, 11, 12, 100)]
    assert rows == [1, 1, 2, 3, 4, 6, 6, 12, 12]
    with pytest.raises(ValueError, match="one image takes .* GiB of activations, .* take more GPUs$"):
        memory.micro_rows(run, 2, one - 1, SHAPE)
    with pytest.raises(ValueError, match="a batch of 24 does not divide among 5 GPUs"):
        memory.micro_rows(run, 5, 10**12, SHAPE)
