"""The second placement of a model's parameters: every block's weights in equal shards over the processes (FSDP2), the rest on all.

Accelerate starts the processes and reads its own settings file; the sharding is torch's `fully_shard`, a block a
unit. What is small lies whole on every process, in one flat buffer: the embedding, the output projection and the
schemes' gates. A gate that is sharded would be rounded with its block to bf16, and of one number nothing is left to
shard. Under bf16 a block's weights are gathered in bf16; masters, gates, gradient sums and AdamW stay fp32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from suite.model.backbone import Block, DiT
from suite.protocol import Protocol
from suite.scale import sharded_checkpoint
from suite.training.checkpoint import PlacementError
from suite.training.factors import NONE, of_model
from suite.training.optim import FlatParameters, Kind, group_of

KEPT_EVERY = 4  # one block in so many keeps its activations, the others run again in the backward (Table 3: three of four)
MOMENTS = ("exp_avg", "exp_avg_sq")  # of torch.optim.AdamW


@dataclass(frozen=True)
class Sharding:
    """reshard: whether a block's gathered weights are given back between forward and backward. micro: as `TrainStep` has it."""

    reshard: bool = True
    micro: int | None = None

    def place(self, dit: DiT, p: Protocol, device: torch.device, draw: Callable[..., None]) -> ShardedParameters:
        """Shard a model block by block as its weights are drawn; after this it trains."""
        parameters = ShardedParameters(dit, p, self, device)
        draw(drawn=parameters.shard)
        parameters.finish(device)
        return parameters


def read(p: Protocol) -> Sharding:
    """What Accelerate was told, for a run of this protocol. Raises PlacementError for what cannot be done."""
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise PlacementError("launched with FSDP version 1, and the training loop shards by version 2: set fsdp_version: 2, as in "
                             "suite/scale/fsdp2.yaml")  # fmt: skip
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise PlacementError("launched with fsdp_offload_params, which the training loop does not do: set it to false, as in "
                             "suite/scale/fsdp2.yaml")  # fmt: skip
    if what := "audits its runs" if p.audit_every else "probes its runs" if p.probe else "":
        raise PlacementError(f"protocol {p.name} {what}, for which a model must lie whole in one process: launch without FSDP")
    return Sharding(bool(plugin.reshard_after_forward))


class Split:
    """A sharded weight of which equal parts have factors of their own: for each a leaf, this process's rows of it.

    Moments lie as the weight does, so that a checkpoint holds them whole, for any number of processes.
    """

    def __init__(self, weight: torch.nn.Parameter, parts: int) -> None:
        (rows, *_), (first, *_) = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
        bounds = [min(max(weight.shape[0] * i // parts - first, 0), rows) for i in range(parts + 1)]
        self.weight, self.rows = weight, [slice(*pair) for pair in pairwise(bounds)]
        self.leaves = [torch.nn.Parameter(part) for part in self._of(weight)]
        self.moments = {moment: torch.zeros_like(weight.detach()) for moment in MOMENTS}

    def _of(self, tensor: Tensor) -> list[Tensor]:
        local = tensor.detach().to_local()
        return [local[rows] for rows in self.rows]

    def enter(self, optimizer: torch.optim.Optimizer, step: Tensor) -> None:
        """Give the optimiser its state of the leaves."""
        for leaf, *moments in zip(self.leaves, *map(self._of, self.moments.values()), strict=True):
            if leaf.numel():
                optimizer.state[leaf] = dict(zip(MOMENTS, moments)) | {"step": step.clone()}

    def follow(self) -> None:
        """Make the leaves this step's weight and gradient."""
        grads = [None] * len(self.leaves) if self.weight.grad is None else self._of(self.weight.grad)
        for leaf, value, grad in zip(self.leaves, self._of(self.weight), grads, strict=True):
            leaf.data, leaf.grad = value, grad


class ShardedParameters:
    """Shards a model block by block as its weights are drawn, and then stands where `FlatParameters` stands for a whole one."""

    def __init__(self, dit: DiT, p: Protocol, sharding: Sharding, device: torch.device) -> None:
        """Nothing is sharded yet: give `shard` to `DiT.init_weights`, then call `finish`."""
        self.dit, self.reshard = dit, sharding.reshard
        self.mesh = init_device_mesh(device.type, (dist.get_world_size() if dist.is_initialized() else 1,))
        half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)  # RoPE and the step stay exact
        self.policy = half if p.dtype == "bf16" else MixedPrecisionPolicy()
        dit.sharded, dit.segment = True, 0
        for i, block in enumerate(dit.blocks):
            block.recomputed = p.checkpoint_blocks and i % KEPT_EVERY != KEPT_EVERY - 1

    def shard(self, block: Block) -> None:
        """Keep this process's part of a block whose weights are drawn, and give back the rest."""
        fully_shard(block, mesh=self.mesh, reshard_after_forward=self.reshard, mp_policy=self.policy,
                    ignored_params=set(block.residuals.parameters()))  # fmt: skip
        with suppress(AttributeError, OSError):  # glibc keeps what is freed: without this every process would hold the whole model
            ctypes.CDLL(None).malloc_trim(0)

    def finish(self, device: torch.device) -> None:
        """What is left of the model, to its device, into one buffer; after this the model trains."""
        names = {name for name, p in self.dit.named_parameters() if not hasattr(p, "to_local")}
        whole = {p for name, p in self.dit.named_parameters() if name in names}
        fully_shard(self.dit, mesh=self.mesh, mp_policy=self.policy, ignored_params=whole)  # the root, of no parameters
        self.dit.to(device)
        factors = of_model(self.dit)
        self.whole = FlatParameters(self.dit, names, factors)
        self.parts = {name: p for name, p in self.dit.named_parameters() if name not in names}
        kinds = {name: [Kind(group_of(name, p), each) for each in factors.get(name, (NONE,))] for name, p in self.parts.items()}
        self.split = {name: Split(p, len(kinds[name])) for name, p in self.parts.items() if len(kinds[name]) > 1}
        self.kinds: dict[tuple[Kind, bool], list[Tensor]] = {}  # leaves of a kind, and whether they are parts of a weight
        for name, p in self.parts.items():
            leaves = self.split[name].leaves if name in self.split else [p]
            for kind, leaf in zip(kinds[name], leaves, strict=True):
                if leaf.numel():
                    self.kinds.setdefault((kind, name in self.split), []).append(leaf)

    def adamw(self, *, betas: tuple[float, float], **settings: float) -> torch.optim.AdamW:
        """As `FlatParameters.adamw`, over the shards and the flat rest; no group mixes the two, which torch refuses."""
        groups = [{"params": leaves} | kind.settings(**settings) for (kind, _), leaves in self.kinds.items()]
        optimizer = torch.optim.AdamW([*groups, *self.whole.param_groups(**settings)], lr=0.0, betas=betas, fused=True)
        for split in self.split.values():
            split.enter(optimizer, self._count(0))
        return optimizer

    def save(
        self, folder: Path, step: int, owner: str, optimizer: torch.optim.Optimizer, history: dict[str, Tensor], log: dict,
        keep_from: int | None = None,
    ) -> None:  # fmt: skip
        """As `FlatParameters.save`, by all processes together; nothing is replayed here, so keep_from keeps nothing."""
        sharded_checkpoint.save(folder, step, owner, self.tensors(optimizer), history, log)

    def restore(
        self, folder: Path, owner: str, optimizer: torch.optim.Optimizer, at_most: int | None = None
    ) -> tuple[int, dict[str, Tensor], dict] | None:
        """As `FlatParameters.restore`, by all processes together, from the newest whole one."""
        found = sharded_checkpoint.load(folder, owner, self.tensors(optimizer))
        self.set_step(optimizer, found[0] if found else 0)
        return found

    def zero(self) -> None:
        """Forget the gradients."""
        for p in self.parts.values():
            p.grad = None
        self.whole.zero()

    def reduce(self, mean) -> None:
        """Average the gradients over the processes: FSDP has done so with the shards' in the backward."""
        self.whole.reduce(mean)

    def clip(self, limit: float) -> Tensor:
        """Scale all gradients to global norm `limit` at most; returns the raw norm (0-dim), the same on every process."""
        grads = [p.grad.to_local() for p in self.parts.values() if p.grad is not None]  # none of a weight that the loss did not reach
        square = torch.stack(torch._foreach_norm(grads)).square().sum() if grads else self.whole.grads.new_zeros(())
        dist.all_reduce(square)
        norm = (square + self.whole.grads.square().sum()).sqrt()
        scale = torch.clamp(limit / (norm + 1e-6), max=1.0)  # 1e-6 as torch.nn.utils.clip_grad_norm_
        torch._foreach_mul_([*grads, self.whole.grads], scale)
        for split in self.split.values():
            split.follow()
        return norm

    def tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """All that a checkpoint holds of weights and AdamW, by name, as they lie here: shards as DTensors, the rest whole.

        Moments are those before the first update, zeros, where there are none yet.
        """
        found: dict[str, Tensor] = {}
        leaves = {f"whole.{group}": leaf for group, leaf in self.whole.leaves.items()}
        for name, p in (*self.parts.items(), *leaves.items()):
            state = self.split[name].moments if name in self.split else optimizer.state[p]
            if not state:
                state |= {moment: torch.zeros_like(p.detach()) for moment in MOMENTS} | {"step": self._count(0)}
            for moment in MOMENTS:
                found[f"{moment}/{name}"] = state[moment]
            found[f"value/{name}"] = p.detach()
        return found

    def set_step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Make AdamW take the next update as its `step` + 1-st; its moments are in `tensors`."""
        for leaf in optimizer.state:
            optimizer.state[leaf]["step"] = self._count(step)

    def _count(self, step: int) -> Tensor:
        return torch.tensor(float(step), device=self.whole.values.device)
