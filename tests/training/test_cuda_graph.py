"""The graphed step equals the plain one, bit for bit, and nothing that changes from step to step would be baked in.

With a GPU the graphs are real; without one `stand_in` keeps a graph's promise: it executes nothing while it "captures", and
each replay runs the function and writes its result to the same addresses.
"""

from dataclasses import replace

import pytest
import torch
from stand_ins import capture as stand_in
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from suite import registry
from suite.data.load import cached
from suite.protocol import Run
from suite.sweep.plan import Selection, make_plan
from suite.training import cuda_graph
from suite.training.trainer import Trainer

CUDA = torch.cuda.is_available()
LR, WARM_UP = 2.0**-9, 4  # every rate of the warm-up is exact in float32, which a rate on the device is


CAPTURE = cuda_graph.capture if CUDA else stand_in


@pytest.fixture
def trainer(tmp_path):
    made = []

    def make(scheme="mvsplit", **changes):
        (run,) = make_plan(Selection("smoke", schemes=(scheme,), depths=(2,), lrs=(LR,), seeds=(0,)))
        run = Run(**{**vars(run), "protocol": replace(run.protocol, warmup=WARM_UP, **changes)})
        made.append(Trainer(run, cached("digits"), tmp_path / str(len(made))))
        return made[-1]

    return make


def graphed(t, capture=CAPTURE):
    return cuda_graph.StepGraphs(t.train_step.gradients, [t.state.optimizer], t.device, capture)


def advance(t, graphs, step):
    """One step of a trainer as it takes it on a GPU."""
    t.train_step.graphs = graphs
    loss, norm = t.train_step.forward_backward(step)
    grads = t.state.flat.grads.clone()
    t.train_step.update(step)
    return loss, norm, grads


def moments(t):
    return [value for leaf in t.state.flat.leaves.values() for _, value in sorted(t.state.optimizer.state[leaf].items())]


def same(a, b):
    pairs = zip(moments(a), moments(b), strict=True)
    return torch.equal(a.state.flat.values, b.state.flat.values) and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("scheme", registry.names("controlled"))
def test_graphed_steps_equal_plain_steps(trainer, scheme):
    plain, mine = trainer(scheme), trainer(scheme)
    graphs = graphed(mine)
    for step in range(1, 8):
        seen = []
        plain.advance(lambda _, seen=seen: seen.append(plain.state.flat.grads.clone()))
        loss, norm, grads = advance(mine, graphs, step)
        assert (step, loss, norm) == plain.state.curve[-1] and torch.equal(grads, seen[0])
        assert same(plain, mine)


@pytest.mark.parametrize("back_to", [0, 3])
def test_a_restored_checkpoint_is_followed(trainer, back_to):
    mine = trainer()
    graphs, at = graphed(mine), {}
    mine.save()
    for step in range(1, 7):
        advance(mine, graphs, step)
        at[step] = mine.state.flat.values.clone()
        if step == 3:
            mine.state.step = 3
            mine.state.curve = [(s, 1.0, 1.0) for s in (1, 2, 3)]
            mine.save()
    assert mine.restore(back_to)
    for step in range(back_to + 1, 7):
        advance(mine, graphs, step)
        assert torch.equal(mine.state.flat.values, at[step])


def test_captured_once(trainer):
    captured = []

    def counting(function, warm_up):
        captured.append(warm_up)
        return CAPTURE(function, warm_up)

    mine = trainer()
    graphs = graphed(mine, counting)
    for step in range(1, 7):
        advance(mine, graphs, step)
    assert captured == [cuda_graph.WARM_UP, 0]


class BakedIn(TorchDispatchMode):
    """Every operator with what a capture fixes: its numbers, and the addresses of the tensors it did not make itself."""

    def __init__(self):
        super().__init__()
        self.calls, self.made = [], set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        def fixed(leaf):
            if not isinstance(leaf, torch.Tensor):
                return leaf
            address = leaf.untyped_storage().data_ptr()
            return "made" if address in self.made else address

        if op is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host reads a number of the device")
        before = tree_map(fixed, (args, kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        out = op(*args, **(kwargs or {}))
        results = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        self.made |= results - given
        if not str(op).startswith("profiler."):
            self.calls.append((str(op), str(before)))
        return out


def watched(log):
    """A capture that notes what each execution would bake in."""

    def capture(function, warm_up):
        def watch():
            with BakedIn() as seen:
                result = function()
            log.append(seen.calls)
            return result

        return stand_in(watch, warm_up)

    return capture


@pytest.mark.skipif(CUDA, reason="stands in for a capture")
@pytest.mark.parametrize("changes", [{}, {"dtype": "bf16"}, {"checkpoint_blocks": True}], ids=["fp32", "bf16", "checkpointed"])
def test_nothing_of_a_step_is_baked_in(trainer, changes):
    mine, log = trainer(**changes), []
    graphs = graphed(mine, watched(log))
    for step in range(1, 4):
        advance(mine, graphs, step)
    gradients, updates = [c for c in log if len(c) > 50], [c for c in log if len(c) <= 50]
    assert len(gradients) == cuda_graph.WARM_UP + 1 + 3 and len(updates) == 2
    assert all(c == gradients[0] for c in gradients) and all(c == updates[0] for c in updates)


@pytest.mark.skipif(CUDA, reason="stands in for a capture")
def test_the_watch_sees_what_would_go_wrong(trainer):
    mine = trainer()

    def seen(function):
        with BakedIn() as watch:
            function()
        return watch.calls

    gradients, batch = mine.train_step.gradients, mine.train_step.batch
    assert seen(lambda: gradients(*batch(1))) != seen(lambda: gradients(*batch(2)))  # batches at new addresses
    with pytest.raises(RuntimeError, match="the host reads"):
        seen(lambda: gradients(*batch(1))[0].item())
    mine.advance()
    rates = []
    for rate in (0.5, 0.25):
        for group in mine.state.optimizer.param_groups:
            group["lr"] = rate
        rates.append(seen(mine.state.optimizer.step))
    assert rates[0] != rates[1]
