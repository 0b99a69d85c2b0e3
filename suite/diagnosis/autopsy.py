"""What a network uses, by intervention: the loss of a token's own velocity when some of what it could read is exchanged.

Shapes: B held-out images, C channels, H, W pixels, I image tokens, E values of one, S caption tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from suite.data.dataset import Dataset
from suite.diagnosis.audit_pass import final_state
from suite.model import flow
from suite.model.backbone import DiT
from suite.residual import Context
from suite.rng import generator
from suite.training.trainer import Trainer

Velocity = Callable[[Tensor, Tensor, Tensor, bool], Tensor]  # (z_BCHW, captions_BSD, t_B, with attention) -> (B, C, H, W)


def autopsy(trainer: Trainer) -> list[dict]:
    """Rows of the table for the run's present weights: what is known of the network, and the loss under each intervention."""
    run, p = trainer.run, trainer.run.protocol
    verdict, last = trainer.judge(), [loss for _, loss, _ in trainer.state.curve[-p.window :]]
    network = {
        "protocol": p.name, "run_id": run.run_id, "trajectory": run.trajectory, "scheme": run.scheme, "arm": run.arm, "params": run.params,
        "writers": run.writers, "gate_lr": run.gate_lr, "depth": run.depth, "lr": run.lr, "seed": run.seed, "data": run.data,
        "image_tokens": trainer.state.dit.segments[0], "outcome": verdict.outcome, "crash_step": verdict.crash_step,
        "last_step": trainer.state.step, "state": final_state(trainer), "last_loss": median(last),
        "constant_loss": trainer.constant_loss,
    }  # fmt: skip

    def velocity(z_BCHW: Tensor, captions_BSD: Tensor, t_B: Tensor, attention: bool) -> Tensor:
        forward = trainer.train_step.velocity if attention else partial(_without_attention, trainer.state.dit)
        return forward(*(of.to(trainer.device) for of in (z_BCHW, captions_BSD, t_B))).float().cpu()

    captions = trainer.train_step.captions
    return [network | row for row in interventions(velocity, trainer.data, lambda rows: captions(trainer.data.caption(rows)), p.patch)]


def _without_attention(dit: DiT, z_BCHW: Tensor, captions_BSD: Tensor, t_B: Tensor) -> Tensor:
    """The model's velocity where the branches of attention give 0; their merges are as they are."""
    x = dit.enter(z_BCHW, captions_BSD, t_B)
    first, second = (Context(dit.segments, site, dit.step, t_B) for site in ("attn", "ffn"))
    for block in dit.blocks:
        x = block.residuals[0](x, torch.zeros_like, first)
        x = block.residuals[-1](x, lambda x_BTD, block=block: block.ffn(x_BTD, second), second)
    return dit.leave(x, z_BCHW)


@torch.no_grad()
def interventions(velocity: Velocity, data: Dataset, captions: Callable[[Tensor], Tensor], patch: int) -> list[dict]:
    """One row an intervention: loss on the held-out images with the noise and t of `Evaluation.heldout_loss`.

    A sample is an image, its loss the mean over target tokens. Each image has a partner, one of another caption where
    the captions are classes of about one size. rise: the loss less that of nothing changed, sample by sample; change:
    root mean square of the difference that an intervention makes to the velocity.
    """
    rows = data.heldout
    whole = flow.make_batch(data.x0(rows), data.caption(rows), data.empty, 0.0, generator("heldout"))
    partner_B, order_BI = _partners(data, rows), _derangements(len(rows), whole.z_BCHW[0, 0].numel() // patch**2)
    z, t, target, own = whole.z_BCHW, whole.t_B, whole.target_BCHW, captions(rows)
    x0, x1 = data.x0(rows), data.x0(rows) - target
    another, later = (  # the partner at t; the image itself at its partner's t
        (1 - _wide(at)) * x0[of] + _wide(at) * x1[of]
        for of, at in ((partner_B, t), (slice(None), t[partner_B]))
    )

    def tokens(z_BCHW: Tensor, captions_BSD: Tensor = own, t_B: Tensor = t, attention: bool = True) -> Tensor:
        return tokens_of(velocity(z_BCHW, captions_BSD, t_B, attention), patch)

    def each(alone: Tensor, rest: Tensor, t_B: Tensor = t) -> Tensor:
        """(B, I, E): for each target token the network's answer where that one is of `alone` and the others are of `rest`."""
        alone_BIE, rest_BIE = tokens_of(alone, patch), tokens_of(rest, patch)
        out = torch.empty_like(alone_BIE)
        for i in range(out.shape[1]):
            mixed_BIE = rest_BIE.clone()
            mixed_BIE[:, i] = alone_BIE[:, i]
            out[:, i] = tokens(_pixels(mixed_BIE, z, patch), t_B=t_B)[:, i]
        return out

    def moved() -> Tensor:
        """Tokens in another order, and the answers back in the old one."""
        index_BIE = order_BI[..., None].expand_as(tokens_of(z, patch))
        answer_BIE = tokens(_pixels(tokens_of(z, patch).gather(1, index_BIE), z, patch))
        return torch.empty_like(answer_BIE).scatter_(1, index_BIE, answer_BIE)

    answers = {
        "none": tokens(z),
        "others": each(z, another),
        "positions": moved(),
        "attention": tokens(z, attention=False),
        "time": each(z, later, t[partner_B]),
        "caption": tokens(z, own[partner_B]),
        "own": each(another, z),
        "all": tokens(z[partner_B], own[partner_B], t[partner_B]),
    }
    target_BIE, intact_BIE = tokens_of(target, patch), answers["none"]
    loss = {name: (answer - target_BIE).square().mean((1, 2)).double() for name, answer in answers.items()}
    return [
        {"intervention": name, "samples": len(rows)} | _mean("loss", loss[name]) | _mean("rise", loss[name] - loss["none"])
        | {"change": (answer - intact_BIE).square().mean().sqrt().item()}
        for name, answer in answers.items()
    ]  # fmt: skip


def _mean(name: str, of_B: Tensor) -> dict[str, float]:
    return {name: of_B.mean().item(), f"{name}_se": of_B.std().item() / len(of_B) ** 0.5}


def _wide(t_B: Tensor) -> Tensor:
    return t_B[:, None, None, None]


def _partners(data: Dataset, rows: Tensor) -> Tensor:
    """(B) for each image another one: half of the images on, in the order of their captions, if these are classes."""
    caption = data.caption(rows)
    order = caption.argsort(stable=True) if caption.ndim == 1 else torch.arange(len(rows))
    partner = torch.empty_like(order)
    partner[order] = order.roll(len(rows) // 2)
    return partner


def _derangements(b: int, i: int) -> Tensor:
    """(B, I) orders of the tokens in which none stays where it is."""
    noise, out = generator("autopsy", "positions"), []
    while len(out) < b:
        order = torch.randperm(i, generator=noise)
        if (order != torch.arange(i)).all():
            out.append(order)
    return torch.stack(out)


def tokens_of(image_BCHW: Tensor, patch: int) -> Tensor:
    """(B, I, E) the pixels of each token."""
    return F.pixel_unshuffle(image_BCHW, patch).flatten(2).transpose(1, 2)


def _pixels(tokens_BIE: Tensor, like_BCHW: Tensor, patch: int) -> Tensor:
    """The inverse of `tokens_of`."""
    return F.pixel_shuffle(tokens_BIE.transpose(1, 2).unflatten(2, (like_BCHW.shape[2] // patch, -1)), patch)
