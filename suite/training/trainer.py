"""The fixed training loop on Accelerate: one run, from its seed to its record.

Shapes: B batch, C channels, H, W pixels, S caption tokens, D width.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from suite import registry
from suite.model import flow
from suite.model.backbone import DiT
from suite.protocol import Run
from suite.training import checkpoint
from suite.training.cuda_graph import StepGraphs
from suite.training.data import Data
from suite.training.optim import FlatParameters
from suite.verdict import crash

EVAL_ROWS = 64  # rows of every forward outside training: one shape, so that inference compiles once
REPLAY_BEFORE = 30  # steps before a crash that the audit replays
JUDGE_EVERY = 10  # steps between looks at the curve for the early stop

ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")  # of torch.optim.AdamW

Report = Callable[[int, float], None]
Observer = Callable[[int], None]  # called with the step; may read the trainer and extend its log


def build_model(run: Run, channels: int, image_size: int) -> DiT:
    """The run's model, weights not drawn. Works under `torch.device("meta")`."""
    p, entry = run.protocol, registry.get(run.scheme, run.arm)
    return DiT(
        width=p.width, heads=p.heads, ffn=p.ffn, depth=run.depth, patch=p.patch, channels=channels,
        image_size=image_size, caption_tokens=p.caption_tokens, checkpoint_blocks=p.checkpoint_blocks,
        scheme=partial(entry.cls, **registry.parse_params(entry, run.params)),
    )  # fmt: skip


class Trainer:
    """One run in memory. Every method that trains is a pure function of (run, data, step)."""

    def __init__(self, run: Run, data: Data, folder: Path) -> None:
        self.run, self.data, self.folder, p = run, data, folder, run.protocol
        self.accelerator = Accelerator(mixed_precision="bf16" if p.dtype == "bf16" else "no")
        self.device = self.accelerator.device
        channels, size = data.images_NCHW.shape[1:3]
        self.dit = build_model(run, channels, size)
        self.dit.init_weights(run.seed, std=p.init_std, writers=run.writers, final=p.final)
        self.dit.to(self.device)
        self.flat = FlatParameters(self.dit)
        optimizer = self.flat.adamw(betas=(p.beta1, p.beta2), eps=p.adam_eps, weight_decay=p.weight_decay)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.captions = flow.caption_table(data.classes, p.caption_tokens, p.width).to(self.device)
        self.batches = flow.Batches(
            data.images_NCHW[data.train], data.labels_N[data.train], data.classes, p.batch, p.caption_drop, run.seed
        )
        self.constant_loss = data.constant_loss(p.patch)
        self.last = p.horizon + p.window
        self.step, self.curve, self.evals = 0, [], []  # curve rows (step, loss, grad_norm), evals rows (step, loss)
        self.log: dict[str, list[dict]] = {}  # rows of further tables, gathered by observers; checkpointed with the rest
        self.keep_from: int | None = None  # a checkpoint at or before this step must stay, for a replay
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.graphs: StepGraphs | None = None
        if run.compiled:
            self.dit.compile()
            if self.device.type == "cuda" and self.accelerator.num_processes == 1:  # an all-reduce in a graph is not tried
                self.graphs = StepGraphs(self.gradients, self.optimizer, self.device)

    @property
    def second_moment(self) -> Tensor | None:
        """Adam's v over the flat buffer, before this step's update; None at the first step."""
        return self.flat.second_moment(self.optimizer)

    @contextmanager
    def timed(self, phase: str, count: int = 1):
        """Add wall-clock to a phase of throughput.csv."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start
        self.counts[phase] += count

    def batch(self, step: int) -> flow.Batch:
        """This process's share of the global batch of a step, on the device."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        return flow.Batch(*(part[rank::world].to(self.device) for part in self.batches(step)))

    def velocity(self, z_BCHW: Tensor, captions_BSD: Tensor) -> Tensor:
        """The model's velocity under the run's precision."""
        with self.accelerator.autocast():
            return self.dit(z_BCHW, captions_BSD)

    def loss(self, batch: flow.Batch) -> Tensor:
        """Mean squared velocity error (Eq. 2), 0-dim."""
        velocity = self.velocity(batch.z_BCHW, self.captions[batch.caption_B])
        return (velocity.float() - batch.target_BCHW).square().mean()

    def gradients(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, raw gradient norm), 0-dim, of a batch's tensors; leaves clipped gradients in the flat buffer."""
        self.flat.grads.zero_()
        loss = self.loss(flow.Batch(*batch))
        self.accelerator.backward(loss)
        if self.accelerator.num_processes > 1:  # one all-reduce over the flat buffer does what DDP's buckets would
            self.flat.grads.copy_(self.accelerator.reduce(self.flat.grads, "mean"))
        return self.accelerator.reduce(loss.detach(), "mean"), self.flat.clip(self.run.protocol.clip)

    def forward_backward(self, step: int) -> tuple[float, float]:
        """Gradients of a step, clipped, in the flat buffer; returns (loss, raw gradient norm)."""
        self.dit.step.fill_(step)
        loss, norm = (self.graphs or self).gradients(*self.batch(step))
        return loss.item(), norm.item()

    def update(self, step: int) -> None:
        """Apply AdamW with linear warm-up, then a constant rate."""
        rate = self.run.lr * min(1.0, step / self.run.protocol.warmup)
        if self.graphs:
            return self.graphs.update(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def advance(self, before_update: Observer | None = None) -> bool:
        """One optimiser step; False, with the update withheld, if the loss or a gradient is not finite.

        before_update sees the step's clipped gradients, and the weights that they were taken at.
        """
        step = self.step + 1
        with self.timed("compile" if not self.counts["compile"] else "train"):
            loss, norm = self.forward_backward(step)
        self.curve.append((step, loss, norm))
        if before_update is not None:
            before_update(step)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return False
        with self.timed("train", 0):
            self.update(step)
        self.step = step
        return True

    # --- evaluation: no training random numbers, one fixed shape ----------------------------------------------------

    @torch.inference_mode()
    def heldout_loss(self) -> float:
        """Loss on the held-out images with fixed t and noise, captions never dropped; the same for every run."""
        rows = self.data.heldout
        whole = flow.make_batch(
            self.data.images_NCHW[rows], self.data.labels_N[rows], self.data.classes, 0.0, flow.generator("heldout")
        )
        total, n = 0.0, len(rows)
        for i in range(0, n, EVAL_ROWS):
            index = torch.arange(i, i + EVAL_ROWS).clamp(max=n - 1)
            z, target, _, caption = (part[index].to(self.device) for part in whole)
            error_B = (self.velocity(z, self.captions[caption]).float() - target).square().mean((1, 2, 3))
            total += error_B[: n - i].double().sum().item()
        return total / n

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """n samples in pixel units on the CPU, and their labels 0, 1, 2, ... in turn; the same noise for every run."""
        labels = torch.arange(n) % self.data.classes
        images = flow.sample(
            self.velocity, self.captions[labels.to(self.device)], self.captions[-1], tuple(self.data.images_NCHW.shape[1:]),
            nfe=self.run.protocol.nfe, guidance=self.run.protocol.guidance, noise=flow.generator("samples"),
            chunk=EVAL_ROWS // 2,
        )  # fmt: skip
        return self.data.pixels(images.cpu()), labels

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Checkpoint the state after `self.step` updates."""
        if not self.accelerator.is_main_process:
            return
        tensors = {"values": self.flat.values, "curve": torch.tensor(self.curve, dtype=torch.float64)}
        tensors["evals"] = torch.tensor(self.evals, dtype=torch.float64).reshape(-1, 2)
        for group, leaf in self.flat.leaves.items():
            state = self.optimizer.state[leaf]
            tensors |= {f"{group}.{key}": state[key] for key in ADAM_STATE if state}
        checkpoint.save(self.folder, self.step, self.run.run_id, tensors, self.log, self.keep_from)

    def restore(self, at_most: int | None = None) -> bool:
        """Go back to the newest whole checkpoint (of step `at_most` or earlier); False if there is none."""
        found = checkpoint.load(self.folder, self.run.run_id, at_most)
        if found is None:
            return False
        self.step, tensors, self.log = found
        self.flat.values.copy_(tensors["values"])
        for group, leaf in self.flat.leaves.items():
            state = self.optimizer.state[leaf]
            state.clear()
            if self.step:
                state.update({key: tensors[f"{group}.{key}"].to(self.device) for key in ADAM_STATE})
        self.curve = [(int(s), loss, norm) for s, loss, norm in tensors["curve"].reshape(-1, 3).tolist()]
        self.evals = [(int(s), loss) for s, loss in tensors["evals"].tolist()]
        return True

    # --- the run ---------------------------------------------------------------------------------------------------

    def judge(self) -> crash.Verdict:
        """The detector's word on the curve so far."""
        steps, loss, norm = np.asarray(self.curve, dtype=float).T
        p = self.run.protocol
        return crash.judge(
            steps, loss, constant_loss=self.constant_loss, window=p.window, horizon=p.horizon, grad_norm=norm, warmup=p.warmup
        )

    def finished(self) -> bool:
        """Whether the run ends here: its length, or `after_crash` steps beyond a confirmed crash."""
        if self.step >= self.last:
            return True
        if not self.curve or self.step % JUDGE_EVERY:
            return False
        verdict = self.judge()
        if verdict.confirmed:
            self.keep_from = max(0, verdict.crash_step - REPLAY_BEFORE - 1)
        return verdict.confirmed and self.step >= verdict.crash_step + self.run.protocol.after_crash

    def train(
        self, report: Report | None = None, before_update: Observer | None = None, after_update: Observer | None = None
    ) -> None:
        """Train to the end from wherever the run is: fresh, or restored from a checkpoint."""
        p = self.run.protocol
        if p.audit_every and self.step == 0:
            self.save()  # a crash in the first steps is replayed from here
        while not self.finished():
            alive = self.advance(before_update)
            if report:
                report(self.curve[-1][0], self.curve[-1][1])
            if not alive:
                return
            if self.step % p.heldout_every == 0 or self.step == self.last:
                with self.timed("heldout"):
                    self.evals.append((self.step, self.heldout_loss()))
            if after_update is not None:
                after_update(self.step)
            if self.step % p.checkpoint_every == 0:
                self.save()
