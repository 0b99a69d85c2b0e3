"""One kind of block as ahead-of-time compiled functions: forward, backward, and forward alone.

AOTAutograd traces a block together with its backward once, Inductor compiles both halves, and every block of the same
kind is a call of the same functions with other weights: the cost of compiling does not depend on depth. Inductor keeps
what it made on disk, so other processes only trace.

Shapes: B batch, T tokens, D width; x is the trunk (a multi-stream scheme's has further axes).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from suite.environment import CACHE, compile_cache, usable_cores

TESTED = ("2.13",)  # minor versions of torch on which the private names below were found to do what this file takes them to do
_minor = ".".join(torch.__version__.split(".")[:2])
_lacks = ""
if _minor in TESTED:
    try:
        from torch._functorch import config as partition
        from torch._functorch.aot_autograd import aot_export_joint_simple
        from torch._functorch.partitioners import min_cut_rematerialization_partition
        from torch._guards import TracingContext, tracing
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table
        from torch._inductor.utils import clear_caches
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv
    except ImportError as error:
        _lacks = str(error).splitlines()[0]

_said = False


def say(line: str) -> None:
    """Tell the user; a worker, which has no screen, puts another function here."""
    print(line, file=sys.stderr)

MOST_KINDS = 8  # as torch._dynamo.config.recompile_limit: more means that a block reads a number that differs by block
_OWN = frozenset(vars(nn.Module()))  # what every module has


def fault() -> str:
    """Why the functions of this file cannot be had on this torch, "" where they can."""
    if _minor not in TESTED:
        return f"torch {torch.__version__} is none of those that the suite's own compiled blocks were tested with ({', '.join(TESTED)})"
    return f"torch {torch.__version__} lacks what the suite's own compiled blocks stand on ({_lacks})" if _lacks else ""


def fall_back() -> bool:
    """Whether blocks are left to `torch.compile`, which rounds otherwise; the first time in a process it says so."""
    global _said
    why = fault()
    if why and not _said:
        _said = True
        say(f"{why}: blocks are compiled by torch.compile, and the column compiler says so")
    return bool(why)


class CompileError(ValueError):
    """A scheme that cannot be compiled; one line that names the cause."""


class _InductorError(Exception):
    """What was traced cannot be compiled or run, by its cause: perhaps of a damaged entry in the cache on the disk."""


@contextmanager
def _by_inductor() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _InductorError from error


def kind(block: nn.Module) -> tuple:
    """What decides the code of a block: its modules' types and Python attributes, and the shapes of its tensors."""
    modules = tuple(
        (name, type(m), repr(sorted((k, repr(v)) for k, v in vars(m).items() if k not in _OWN)))
        for name, m in block.named_modules()
    )
    return modules, tuple((name, t.shape, t.dtype) for name, t in tensors(block).items())


def tensors(block: nn.Module) -> dict[str, Tensor]:
    """Parameters and then buffers of a block, by name."""
    return dict(block.named_parameters()) | dict(block.named_buffers())


class CompiledBlock:
    """The functions of one kind of block for one shape of trunk.

    forward(x, rope, step, t_B, *weights) -> [x, *saved]; backward(*saved, d_x) -> [d_x, None, None, None,
    *d_weights]; `weights` are the block's parameters and then its buffers. `infer` is forward without the saved part.
    All lists of tensors are consumed. x and d_x are contiguous, going in and coming out: the next block runs the same
    code.
    replicas: R, where x, t and the weights have a leading axis of R models, which see nothing of each other; 0 = no
    such axis.
    """

    def __init__(
        self, block: nn.Module, x: Tensor, rope: Tensor, step: Tensor, t_B: Tensor, segments: tuple[int, ...], weights: list[Tensor],
        training: bool, replicas: int,
    ) -> None:  # fmt: skip
        names = list(tensors(block))

        def one(x: Tensor, rope: Tensor, step: Tensor, t_B: Tensor, *weights: Tensor) -> Tensor:
            return torch.func.functional_call(block, dict(zip(names, weights)), (x, rope, segments, step, t_B))

        def call(*inputs: Tensor) -> tuple[Tensor]:
            out = torch.vmap(one, (0, None, None, 0, *[0] * len(names)))(*inputs) if replicas else one(*inputs)
            return (out.contiguous(),)

        real = [x, rope, step, t_B, *weights]
        self.fake = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)  # without a ShapeEnv Inductor's cache of graphs is bypassed
        inputs = [self._fake(t) for t in real]
        if training:
            inputs[0].requires_grad_()
            for fake, tensor in zip(inputs[4:], tensors(block).values()):
                fake.requires_grad_(isinstance(tensor, nn.Parameter))
            with torch.enable_grad(), self.fake:
                joint = aot_export_joint_simple(call, inputs, trace_joint=True, decompositions=select_decomp_table())
            arguments = [n.meta["val"] for n in joint.graph.nodes if n.op == "placeholder"]
            with partition.patch(ban_recompute_materialized_backward=False):  # SwiGLU's product is cheaper to make again than to keep
                halves = min_cut_rematerialization_partition(joint, arguments, compiler="inductor", num_fwd_outputs=1)
            self.forward = self._compile(halves[0], inputs)
            with _by_inductor():
                out, *saved = self.forward([t.detach() for t in real])  # Inductor may lay them out otherwise than traced
            self.backward = self._compile(halves[1], [self._fake(t) for t in [*saved, out]], is_backward=True)
        else:
            with torch.no_grad(), self.fake:
                graph = aot_export_joint_simple(call, inputs, trace_joint=False, decompositions=select_decomp_table())
            self.infer = self._compile(graph, inputs)

    def _fake(self, t: Tensor) -> Tensor:
        return self.fake.from_tensor(t.detach())

    def _compile(self, graph: torch.fx.GraphModule, inputs: list[Tensor], **options) -> Callable[[list[Tensor]], list[Tensor]]:
        # the asserts on strides cost a seventh of the wrapper's time, and the shapes here are fixed; threads: of the C++ compiler
        host = inputs[0].device.type == "cpu"  # on a GPU a graph replays the launches, and the C++ wrapper would ask for CUDA's headers
        options_of_inductor = {"size_asserts": False, "alignment_asserts": False, "compile_threads": usable_cores()}
        with _by_inductor(), torch.no_grad(), tracing(TracingContext(self.fake)), config.patch(options_of_inductor):
            return compile_fx_inner(graph, inputs, cpp_wrapper=host, **options)


_compiled: dict[tuple, CompiledBlock] = {}
_dropped = False
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compile_cache())  # also in a process that no sweep has started


def _drop_cache() -> bool:
    """Once in a process: leave Inductor's cache, in which an entry may be damaged (a full disk, a killed writer); whether that was done.

    Our own cache is emptied. Another's, that somebody pointed us to, is left as it is and not used any more.
    """
    global _dropped
    if _dropped:
        return False
    _dropped, folder = True, compile_cache()
    if folder.parent.name == CACHE:
        for entry in folder.iterdir():
            shutil.rmtree(entry, ignore_errors=True)
    else:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="screambench-")
    clear_caches()
    return True


def compiled_block(
    block: nn.Module, x: Tensor, rope: Tensor, step: Tensor, t_B: Tensor, segments: tuple[int, ...], weights: list[Tensor],
    training: bool, replicas: int,
) -> CompiledBlock:  # fmt: skip
    """The functions for this block and shape of trunk, made on first use in this process. Raises CompileError."""
    shapes = x.shape, x.dtype, rope.shape, segments, weights[0].stride()
    key = (kind(block), *shapes, training, replicas, x.device.type, torch.is_autocast_enabled(x.device.type))
    if key not in _compiled:
        made_of = block, x.detach(), rope, step, t_B, segments, weights, training, replicas
        try:
            try:
                _compiled[key] = CompiledBlock(*made_of)
            except _InductorError:
                if not _drop_cache():
                    raise
                _compiled[key] = CompiledBlock(*made_of)
        except Exception as error:
            error = error.__cause__ if isinstance(error, _InductorError) else error
            scheme = type(block.residuals[0]).__name__
            what = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
            raise CompileError(f"{scheme}: the block cannot be compiled: {type(error).__name__}: {what}") from error
    return _compiled[key]
