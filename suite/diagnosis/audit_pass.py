"""The audit of our own model: an eager forward and backward on the side, which never touches the training graph.

Shapes as in `suite.diagnosis.metrics`. X is the trunk entering a merge, U = f the branch output, per sample and token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from suite.data.dataset import Dataset
from suite.diagnosis import metrics
from suite.model.backbone import DiT
from suite.residual import Context
from suite.training.trainer import Trainer

SEGMENTS = ("all", "image", "caption")
GATES = ("gate_alpha", "gate_beta", "gate_lambda")


class Site:
    """What one merge of an audited block saw: the folded trunk x; y, f with their graph; what multiplies the values at attention sites."""

    def __init__(self, layer: int, name: str, x_BTD: Tensor) -> None:
        self.layer, self.name, self.x = layer, name, x_BTD
        self.y = self.f = self.a = None


def _watch(dit: DiT, layer: int, x: Tensor, t_B: Tensor) -> tuple[Tensor, list[Site]]:
    """`Block.forward`, with the inputs and outputs of both writers recorded."""
    block, (first, second) = dit.blocks[layer], (Context(dit.segments, name, dit.step, t_B) for name in ("attn", "ffn"))
    attn, ffn = Site(layer, "attn", dit.folded(x.detach()).detach()), None

    def attention(x_BTD: Tensor) -> Tensor:
        q, k, v = block.qkv(x_BTD, dit.rope)
        attn.a = block.mixed(q, k)
        attn.y = block.residuals[0].inner(block.through_gates((attn.a @ v).transpose(1, 2).flatten(2), x_BTD), first)
        attn.f = nn.functional.linear(attn.y, block.wo)
        return attn.f

    def feed_forward(x_BTD: Tensor) -> Tensor:
        ffn.y = block.residuals[-1].inner(block.ffn_hidden(x_BTD), second)
        ffn.f = nn.functional.linear(ffn.y, block.w2)
        return ffn.f

    x = block.residuals[0](x, attention, first)
    ffn = Site(layer, "ffn", dit.folded(x.detach()).detach())
    return block.residuals[-1](x, feed_forward, second), [attn, ffn]


def _pass_through(dit: DiT, x: Tensor, t_B: Tensor, start: int, stop: int) -> Tensor:
    """The trunk after blocks that nobody looks into: by the compiled functions where there are any, with no gradient kept."""
    if dit.compiled_blocks is not None and stop > start:
        return dit.compiled_blocks(x, t_B, start, stop, into_grad=False)
    for block in dit.blocks[start:stop]:
        x = block.forward(x, dit.rope, dit.segments, dit.step, t_B)  # not block(...): that may be a compiled one
    return x


def side_pass(trainer: Trainer, layers: Sequence[int], step: int) -> tuple[list[Site], dict[Tensor, Tensor]]:
    """Forward and backward on the step's own batch, eager in `layers`: their sites, and gradients of f and of their weights."""
    dit, batch = trainer.state.dit, trainer.train_step.batch(step)
    wanted, sites = set(layers), []
    with torch.enable_grad():
        x = dit.enter(batch.z_BCHW, trainer.train_step.captions(batch.caption_B), batch.t_B)
        done = 0
        for layer in sorted(wanted):
            x = _pass_through(dit, x, batch.t_B, done, layer)
            x, seen = _watch(dit, layer, x, batch.t_B)
            sites += seen
            done = layer + 1
        x = _pass_through(dit, x, batch.t_B, done, len(dit.blocks))
        loss = (dit.leave(x, batch.z_BCHW).float() - batch.target_BCHW).square().mean()
        targets = [site.f for site in sites]
        targets += [w for i in layers for w in (dit.blocks[i].wqkv, dit.blocks[i].wo, dit.blocks[i].w2)]
        grads = torch.autograd.grad(loss, targets)
    return sites, dict(zip(targets, grads, strict=True))


def _relative_update(trainer: Trainer, names: list[str], step: int, v: Tensor | None) -> float:
    """RMS over a family of g / sqrt(v-hat) for the clipped gradient Adam is about to see, v taken with it included.

    The usual predictor of Adam's loss spikes: Wortsman et al. 2023, arXiv:2304.13013, section 3.4. 1 is healthy.
    """
    p, flat = trainer.run.protocol, trainer.state.flat
    g = torch.cat([flat.grads[flat.slices[n]] for n in names]).double()
    old = torch.cat([v[flat.slices[n]] for n in names]).double() if v is not None else torch.zeros_like(g)
    new = (p.beta2 * old + (1 - p.beta2) * g.square()) / (1 - p.beta2**step)
    eps = p.adam_eps * torch.cat([flat.eps_factors(n) for n in names]).to(g.device)
    return metrics.rms(g / (new.sqrt() + eps)).item()


def _rows(
    trainer: Trainer, site: Site, grads: dict[Tensor, Tensor], step: int, v: Tensor | None, window: bool
) -> list[dict]:
    dit, block = trainer.state.dit, trainer.state.dit.blocks[site.layer]
    d_BTD, image = grads[site.f].detach(), dit.segments[0]
    x, y, f = site.x.double(), site.y.detach(), site.f.detach().double()
    rows = []
    for segment, cut in zip(SEGMENTS, (slice(None), slice(image), slice(image, None)), strict=True):
        if x[:, cut].shape[1] == 0:
            continue
        rows.append(
            {"step": step, "layer": site.layer, "site": site.name, "segment": segment, "window": window}
            | metrics.writer_metrics(d_BTD[:, cut], y[:, cut])
            | {"rho": metrics.rho(x[:, cut]).item(), "r_tr": metrics.r_tr(x[:, cut], f[:, cut]).item(),
               "var_gain": metrics.var_gain(x[:, cut], f[:, cut]).item(), "tcs": metrics.tcs(x[:, cut]).item()}
        )  # fmt: skip
    whole, prefix = rows[0], f"blocks.{site.layer}."
    if site.name == "attn":
        a_BNTT = site.a.detach()
        kept, leaked = metrics.retention_leakage(a_BNTT.double(), x)
        q, k, _ = grads[block.wqkv].chunk(3)
        whole |= {"mu_eff": metrics.mu_eff(a_BNTT).item(), "row_div": metrics.row_div(a_BNTT).item(), "retention": kept.item(),
                  "leakage": leaked.item(), "q_grad": metrics.rms(q.double()).item(), "k_grad": metrics.rms(k.double()).item(),
                  "wo_grad": metrics.rms(grads[block.wo].double()).item()}  # fmt: skip
        family = [prefix + "wqkv", prefix + "wo"]
    else:
        whole |= {"w2_grad": metrics.rms(grads[block.w2].double()).item()}
        family = [prefix + "w13", prefix + "w2"]
    whole["update_rms"] = _relative_update(trainer, family, step, v)
    gates = block.residuals[0 if site.name == "attn" else -1]
    whole |= {g: getattr(gates, g).detach().mean().item() for g in GATES if hasattr(gates, g)}
    return rows


def audit_step(trainer: Trainer, layers: Sequence[int], step: int, window: bool = False) -> list[dict]:
    """Rows of the audit table for the step about to be applied; weights, gradients and random state are only read."""
    sites, grads = side_pass(trainer, layers, step)
    v = trainer.state.second_moment
    return [row for site in sites for row in _rows(trainer, site, grads, step, v, window)]


@torch.no_grad()
def final_state(trainer: Trainer) -> str:
    """What kind of state a crashed run ended in, from the trunk of its deeper half on held-out images.

    mean_dominated: mean TCS above 0.9 (the paper's white contour, Fig. 7); mean_free: within 0.02 of -1/(T-1), a token
    mean of zero; other. Trunks of several streams are judged as `fold` gives them, all others as they are; at t = 0.
    """
    dit, data = trainer.state.dit, trainer.data
    if dit.sharded:  # its blocks' weights may come in bf16
        with trainer.accelerator.autocast():
            return _state(trainer, dit, data)
    return _state(trainer, dit, data)


def _state(trainer: Trainer, dit: DiT, data: Dataset) -> str:
    rows = data.heldout[:16]
    z_BCHW = data.x0(rows).to(trainer.device)
    t_B = torch.zeros(len(z_BCHW), device=z_BCHW.device)
    x = dit.enter(z_BCHW, trainer.train_step.captions(data.caption(rows)), t_B)
    values = []
    for layer, block in enumerate(dit.blocks):
        x = (block if dit.sharded else block.forward)(x, dit.rope, dit.segments, dit.step, t_B)  # a call gathers the shards
        if layer >= len(dit.blocks) // 2:
            values.append(metrics.tcs(dit.folded(x).double()).item())
    value = sum(values) / len(values)
    if math.isfinite(value) and value > 0.9:
        return "mean_dominated"
    return "mean_free" if abs(value + 1 / (sum(dit.segments) - 1)) < 0.02 else "other"
