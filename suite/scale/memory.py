"""Memory of a training step by arithmetic: parameters with their optimiser, and the activations that backward needs.

Counted is what eager code keeps on a GPU. Not counted: the workspaces of kernels, CUDA's own (about a GiB), what an
allocator loses, and that compiled blocks keep less. All sizes are bytes; a row is one image of the batch with its
caption.

Shapes: B batch, T tokens, D width, N heads, F FFN width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from suite.model.backbone import DiT
from suite.protocol import Protocol, Run
from suite.residual import Context
from suite.scale.sharded import KEPT_EVERY
from suite.training.state import build_model

FLOAT, HALF = 4, 2
STATE = 4 * FLOAT  # a parameter, its gradient and AdamW's two moments, all fp32
IN_FLIGHT = 2  # blocks that FSDP2 holds gathered: the one at work and the one fetched ahead


@dataclass(frozen=True)
class Size:
    """A model's. trunk: of a row between two blocks; kept: of a row by one block, its own input included, for its backward."""

    depth: int
    tokens: int
    width: int
    parameters: int
    block_parameters: int
    trunk: int
    kept: int
    half: bool
    segment: int  # blocks that the flat placement replays together; 0 = none are


def size_of(run: Run, shape: tuple[int, int, int], caption_shape: tuple[int, int] | None = None) -> Size:
    """The size of a run's model for images of a shape (C, H, W) and captions (S, G), None for those that the protocol makes."""
    return _size(run.protocol, run.scheme, run.arm, run.params, run.depth, shape, caption_shape)


@cache
def _size(
    p: Protocol, scheme: str, arm: str, params: str, depth: int, shape: tuple[int, int, int], caption_shape: tuple[int, int] | None
) -> Size:
    run = Run(p, scheme, arm, params, "", depth, 0.0, 0, "", "", "", False)  # of these settings alone
    with torch.device("meta"):
        dit = build_model(run, shape, caption_shape)
    half = p.dtype == "bf16"
    try:
        (one, _), (two, trunk) = (_merges(dit, blocks, half) for blocks in (1, 2))
    except RuntimeError:  # a product of a bf16 trunk and fp32 gates, which autocast allows and the meta device does not: counted as fp32
        (one, _), (two, trunk) = (_merges(dit, blocks, False) for blocks in (1, 2))
    tokens = sum(dit.segments)
    return Size(
        depth, tokens, p.width, sum(q.numel() for q in dit.parameters()), sum(q.numel() for q in dit.blocks[0].parameters()),
        trunk, two - one + _branches(tokens, p, half), half, dit.segment,
    )  # fmt: skip


def _branches(tokens: int, p: Protocol, half: bool) -> int:
    """Bytes of a row that the two branches of a block keep beside what their linear maps read of the trunk.

    Attention: the product of W_qkv (3D values a token, held whole by its part v); of queries and keys the normalised
    ones (2D), in fp32 with the reciprocal norms of each head (2N), and under bf16 their copies (2D) for the attention
    operator, which keeps its output (D; W_O reads the same) and a fp32 logarithm a head (N). FFN: the product of W_13
    (2F, gate and value), SiLU of the gate (F), their product (F), which W_2 reads. No T x T matrix: the fused
    attention of a GPU works it out again.
    """
    value = HALF if half else FLOAT
    attention = value * (3 + 1) * p.width + (FLOAT + HALF * half) * 2 * p.width + FLOAT * 3 * p.heads
    return tokens * (attention + value * 4 * p.ffn)


def _merges(dit: DiT, blocks: int, half: bool) -> tuple[int, int]:
    """(bytes that a row's trunk, the merges and the linear maps that read it keep over some blocks, bytes of the trunk behind them).

    Asked of autograd on the meta device, with one linear map in the place of each branch, so that it holds for any
    scheme.
    """
    residuals, value = dit.blocks[0].residuals, torch.bfloat16 if half else torch.float32
    with torch.device("meta"):
        x = torch.empty(1, sum(dit.segments), dit.embed.out_features, dtype=value, requires_grad=True)
        weight, step = torch.empty(x.shape[-1], x.shape[-1], dtype=value, requires_grad=True), torch.zeros(())
        attn, ffn = (Context(dit.segments, site, step, torch.zeros(1)) for site in ("attn", "ffn"))
    own, held = set(_storages([weight, *residuals.parameters(), *residuals.buffers()])), {}

    def pack(tensor: Tensor) -> Tensor:
        held.update((key, size) for key, size in _storages([tensor]).items() if key not in own)
        alive.append(tensor)  # so that no other tensor gets its storage's key
        return tensor

    alive: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x = residuals[0].open(x, attn)
        for _ in range(blocks):
            for residual, ctx in ((residuals[0], attn), (residuals[-1], ffn)):
                x = residual(x, lambda z: F.linear(z.to(value), weight), ctx)
    return sum(held.values()), x.numel() * x.element_size()


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by storage."""
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}


def flat_state(size: Size) -> int:
    """Bytes of parameters and optimiser in one place: `FlatParameters` under AdamW, and under bf16 the copies that autocast makes."""
    return size.parameters * (STATE + HALF * size.half)


def sharded_state(size: Size, gpus: int) -> int:
    """Bytes a GPU of the same over several under FSDP2: its share, and the gathered blocks in flight with their gradients."""
    return size.parameters * STATE // gpus + IN_FLIGHT * size.block_parameters * (2 * FLOAT + HALF * size.half)


def flat_activations(size: Size, rows: int) -> int:
    """Bytes that `DiT.forward` keeps: every block's; where it replays, the input of each segment and one segment's blocks."""
    if not size.segment:
        return rows * size.depth * size.kept
    return rows * (-(-size.depth // size.segment) * size.trunk + min(size.segment, size.depth) * size.kept)


def sharded_activations(size: Size, rows: int) -> int:
    """Bytes under sharding: of every fourth block all, of the others their inputs, and the block that is replayed."""
    if not size.segment:
        return rows * size.depth * size.kept
    whole = -(-size.depth // KEPT_EVERY)
    return rows * ((size.depth - whole) * size.trunk + (whole + 1) * size.kept)


def replayed(size: Size, gpus: int) -> float:
    """Share of the blocks whose forward runs a second time."""
    return 0.0 if not size.segment else 1.0 if gpus == 1 else 1 - 1 / KEPT_EVERY


def micro_rows(
    run: Run, gpus: int, free_bytes: int, shape: tuple[int, int, int], caption_shape: tuple[int, int] | None = None
) -> int:
    """Rows of the micro-batches of a sharded step: the largest divisor of batch / gpus whose activations fit into free_bytes.

    free_bytes: of one GPU, beside `sharded_state`. shape, caption_shape: as in `size_of`. Raises ValueError where the
    batch does not divide among the GPUs, or one row does not fit.
    """
    batch = run.protocol.batch
    if batch % gpus:
        raise ValueError(f"a batch of {batch} does not divide among {gpus} GPUs; take a number that divides it")
    size, share = size_of(run, shape, caption_shape), batch // gpus
    fitting = [rows for rows in range(1, share + 1) if share % rows == 0 and sharded_activations(size, rows) <= free_bytes]
    if not fitting:
        raise ValueError(
            f"{run.label()}: one image takes {sharded_activations(size, 1) / 2**30:.1f} GiB of activations, and beside the parameters "
            f"{free_bytes / 2**30:.1f} GiB are left; take more GPUs"
        )
    return fitting[-1]
