"""Losses of simple predictors of the velocity, to compare a network's with: what it would be for one that sees so much and no more.

Shapes: N training images, B held-out ones or their tokens, I image tokens, E values of one, or of all.
"""

from __future__ import annotations

import numpy as np

from suite.data.dataset import Dataset
from suite.diagnosis.autopsy import tokens_of
from suite.model import flow
from suite.rng import generator

Losses = tuple[float, float]  # in expectation on the training images, and on the held-out samples


def references(data: Dataset, patch: int) -> list[dict]:
    """A row for each level. loss: the least there is on the training images, in expectation over noise and t ~ U(0, 1).

    heldout_loss: the same predictor's on the samples of `Evaluation.heldout_loss`. constant: one output for all tokens;
    position: one for each position; patch: an affine map of the token's own noisy patch, another for each t;
    patch_position: and for each position; image: of the whole noisy image.
    """
    rows = data.heldout
    batch = flow.make_batch(data.x0(rows), data.caption(rows), data.empty, 0.0, generator("heldout"))
    x, z, v = (tokens_of(of.double(), patch).numpy() for of in (data.x0(data.train), batch.z_BCHW, batch.target_BCHW))
    t, i = batch.t_B.double().numpy()[:, None], x.shape[1]
    alike = [(*(of.reshape(-1, of.shape[2]) for of in (x, z, v)), t.repeat(i, 0))]
    apart = [(x[:, k], z[:, k], v[:, k], t) for k in range(i)]
    whole = [(*(of.reshape(len(of), -1) for of in (x, z, v)), t)]
    found = {
        "constant": _mean(_blind, alike), "position": _mean(_blind, apart), "patch": _mean(_linear, alike),
        "patch_position": _mean(_linear, apart), "image": _mean(_linear, whole),
    }  # fmt: skip
    shared = {"data": data.name, "image_tokens": i, "samples": len(x)}
    return [shared | {"level": name, "loss": loss, "heldout_loss": heldout} for name, (loss, heldout) in found.items()]


def _mean(predictor, groups: list[tuple]) -> Losses:
    """Over groups of tokens, each with a predictor of its own."""
    return tuple(np.mean([predictor(*group) for group in groups], 0).tolist())


def _blind(x_NE: np.ndarray, z_BE: np.ndarray, v_BE: np.ndarray, t_B1: np.ndarray) -> Losses:
    """The mean of x0: its variance is left, and 1 of the noise."""
    mean_E = x_NE.mean(0)
    return 1 + x_NE.var(0).mean(), np.square(v_BE - mean_E).mean()


def _linear(x_NE: np.ndarray, z_BE: np.ndarray, v_BE: np.ndarray, t_B1: np.ndarray) -> Losses:
    """The best affine map of z = (1 - t) x0 + t x1 to v = x0 - x1 for each t.

    Along an axis of x0 with variance s, v is left with s / ((1 - t)^2 s + t^2), whose integral over t is pi/2 sqrt(s).
    """
    mean_E = x_NE.mean(0)
    s_E, axes_EE = np.linalg.eigh(np.atleast_2d(np.cov(x_NE.T, bias=True)))
    s_E = s_E.clip(min=0)
    slope_BE = ((1 - t_B1) * s_E - t_B1) / ((1 - t_B1) ** 2 * s_E + t_B1**2)
    answer_BE = mean_E + ((z_BE - (1 - t_B1) * mean_E) @ axes_EE * slope_BE) @ axes_EE.T
    return np.pi / 2 * np.sqrt(s_E).mean(), np.square(v_BE - answer_BE).mean()
