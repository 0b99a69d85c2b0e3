"""By which names trainers and dashboards log what a verdict needs, and what only sounds like it."""

from __future__ import annotations

import re
from functools import lru_cache

# The surer ones first; all are compared as `key` writes them. From the logs and sources of the trainers that docs/detect.md names
STEP = (
    "step", "global_step", "trainer/global_step", "train/global_step", "train/step", "_step", "iteration", "iterations", "iter", "iters",
    "steps", "it", "current_steps", "current_step", "current_iteration", "training_step", "train_step", "num_updates", "num_update",
    "n_updates", "updates", "update", "optimizer_step", "num_steps", "num_iterations", "step_num", "iter_num", "itr", "niter", "up", "upd",
)
BATCH = ("batch", "batch_idx", "batch_index", "batches", "minibatch", "mini_batch")  # of an epoch, as a rule: behind all that count on
EPOCH = ("epoch", "train/epoch", "trainer/epoch", "current_epoch", "epochs", "_epoch", "epoch_num", "training_epoch", "train_epoch", "ep")
LOSS = (
    "loss", "train_loss", "train/loss", "training_loss", "training/loss", "loss/train", "train/train_loss", "train_loss_step",
    "train/loss_step", "lm_loss", "reduced_train_loss", "total_loss", "train/total_loss", "loss_total", "avg_loss", "average_loss",
    "mean_loss", "loss_avg", "step_loss", "cost", "nll", "xent", "cross_entropy", "objective", "value",
)
NORM = ("grad_norm", "train/grad_norm", "gradient_norm", "train/gradient_norm", "gradnorm", "gnorm", "total_norm", "global_grad_norm")
RUN = ("run_id", "run", "run_name")
CACHED = 4096  # names, for the lines of a long log share a few
PHASE = ("mode", "phase", "split", "stage", "subset")  # columns whose word tells training from evaluation
RANK = ("rank", "local_rank", "global_rank")

EVALUATION = re.compile(r"(^|[^a-z])(e?val|valid|validation|test|testing|dev|heldout|held_out)([^a-z]|$)")
_LIKE = re.compile(r"(^|[^a-z])loss(es)?([^a-z]|$)|loss$|^(train|training|tr)_?loss")
# What is logged about a loss and is none: how it is scaled or weighed, its best so far (which never rises), its spread, how long it took
_ABOUT = re.compile(
    r"(^|[^a-z])(scale|scaler|scaling|weights?|coeff?|coefficient|lambda|factor|alpha|beta|gamma|best|lowest|minimum|min|max|std|var|variance|"
    r"sd|count|num|number|n|time|patience|delta|diff|change|ratio|threshold|type|name|fn|window)([^a-z]|$)")


@lru_cache(maxsize=CACHED)
def key(name: str) -> str:
    """A name as it is compared: without case, spaces and hyphens as underscores."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


@lru_cache(maxsize=CACHED)
def is_loss(name: str) -> bool:
    """Whether a name is that of a loss of training."""
    low = key(name)
    return low in LOSS[:-1] or bool(_LIKE.search(low)) and not EVALUATION.search(low) and not _ABOUT.search(low)


def is_clock(name: str) -> bool:
    """Whether a name is that of what counts how far training has come."""
    return key(name) in (*STEP, *BATCH, *EPOCH)
