"""One rank of test_fsdp.py, started by `accelerate launch --config_file suite/training/fsdp2.yaml`: prints what it saw as JSON.

Accelerate itself shards on accelerators only, so its own `fsdp2_prepare_model` is called here with the plugin that it reads from
the launcher's settings, on the CPU over gloo.
"""

import copy
import json
import os
import sys
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model

from suite import registry
from suite.model.backbone import DiT
from suite.training.optim import FlatParameters, group_of

STEPS, LR, DECAY, CLIP = 3, 1e-2, 0.1, 0.5
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}


def build(scheme: str) -> DiT:
    entry = registry.get(scheme)
    model = DiT(width=32, heads=2, ffn=48, depth=4, patch=2, channels=1, image_size=4, caption_tokens=3, checkpoint_blocks=True,
                scheme=partial(entry.cls, **registry.parse_params(entry, "")))
    model.init_weights(0, init="fan_in", writers="std", final="std")
    return model


def shard(model: DiT, plugin: FullyShardedDataParallelPlugin, precision: str = "no") -> DiT:
    state = SimpleNamespace(fsdp_plugin=plugin)
    return fsdp2_prepare_model(SimpleNamespace(
        state=state, mixed_precision=precision, device=torch.device("cpu"), is_main_process=dist.get_rank() == 0,
        parallelism_config=None, torch_device_mesh=None,
    ), model)  # fmt: skip


def batch(rank: int, world: int):
    """This rank's share of images, captions and targets."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(4, *shape, generator=draw)[rank::world] for shape in ((1, 4, 4), (3, 32), (1, 4, 4))]


def backward(model: DiT, autocast: bool, rank: int = 0, world: int = 1) -> float:
    """Gradients of the mean squared error on this rank's share; returns the loss of the global batch."""
    x, caption, target = batch(rank, world)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(x, caption)
    loss = (out.float() - target).square().mean()
    loss.backward()
    loss = loss.detach()
    if world > 1:
        dist.all_reduce(loss)
    return loss.item() / world


def compare(scheme: str, plugin, autocast: bool = False) -> dict:
    """Sharded against whole: loss and gradients of one step, then losses and norms of a few steps of clipped AdamW."""
    rank, world = dist.get_rank(), dist.get_world_size()
    whole, sharded = build(scheme), shard(build(scheme), plugin)
    flat = FlatParameters(whole)
    alone = flat.adamw(**ADAM, weight_decay=DECAY)
    named = list(sharded.named_parameters())
    together = torch.optim.AdamW(
        [{"params": [p for n, p in named if (group_of(n, p) == "decay") == decays], "weight_decay": DECAY * decays}
         for decays in (True, False)], lr=LR, fused=True, **ADAM,
    )  # fmt: skip
    for group in alone.param_groups:
        group["lr"] = LR
    worst, losses, norms = 0.0, [], []
    for step in range(STEPS):
        flat.grads.zero_()
        together.zero_grad()
        losses.append((backward(whole, autocast), backward(sharded, autocast, rank, world)))
        if step == 0:
            for (_, p), q in zip(named, whole.parameters(), strict=True):
                worst = max(worst, ((p.grad.full_tensor() - q.grad).norm() / q.grad.norm()).item())
        norm = torch.nn.utils.clip_grad_norm_(sharded.parameters(), CLIP).full_tensor()
        norms.append((flat.clip(CLIP).item(), norm.item()))
        alone.step()
        together.step()
    return {
        "losses": losses, "norms": norms, "worst": worst, "units": sum(type(m).__name__ == "FSDPBlock" for m in sharded.modules()),
        "mine": sum(p.to_local().numel() for _, p in named), "all": sum(p.numel() for p in whole.parameters()),
    }  # fmt: skip


def policy(plugin) -> dict:
    """What a block of a sharded model works in under `mixed_precision: bf16`, as Accelerate reads that."""
    plugin = copy.copy(plugin)
    plugin.set_mixed_precision("bf16")
    model, seen = shard(build("mvsplit"), plugin, "bf16"), {}

    def look(block, inputs):
        _, rope, _, step = inputs
        seen.update(rope=str(rope.dtype), step=str(step.dtype), gate=str(block.residuals[0].gate_beta.dtype))

    model.blocks[0].register_forward_pre_hook(look)  # after FSDP's own
    backward(model, True, dist.get_rank(), dist.get_world_size())  # autocast: the trunk is fp32, which linear maps of bf16 weights refuse
    return seen | {"reduce": str(plugin.mixed_precision_policy.reduce_dtype)}


def main() -> None:
    torch.set_num_threads(1)
    registry.discover()
    dist.init_process_group("gloo")
    plugin = FullyShardedDataParallelPlugin()  # from the launcher's environment
    seen = {name: compare(name, plugin) for name in sys.argv[1:]}
    seen |= {"autocast": compare("mvsplit", plugin, autocast=True), "policy": policy(plugin)}
    seen["plugin"] = {"version": plugin.fsdp_version, "classes": plugin.transformer_cls_names_to_wrap,
                      "reshard": plugin.reshard_after_forward, "precision": os.environ["ACCELERATE_MIXED_PRECISION"]}
    if dist.get_rank() == 0:
        print(json.dumps(seen), flush=True)
    dist.barrier()
    os._exit(0)  # as suite/__main__.py does, and why


if __name__ == "__main__":
    main()
