"""Losses of simple predictors of the velocity, to compare a network's with: what it would be for one that sees so much and no more.

Shapes: N images, C channels, H, W pixels, I image tokens, E values of one.
"""

from __future__ import annotations

import numpy as np

from suite.data.dataset import Dataset


def references(data: Dataset, patch: int) -> list[dict]:
    """A row for each level: the least loss on the training images, in expectation over noise and t ~ U(0, 1).

    constant: one output for all tokens; position: one for each position; patch: a linear map of the token's own noisy
    patch, another for each t; patch_position: and for each position; image: of the whole noisy image.
    """
    tokens_NIE = _tokens(data.x0(data.train).double().numpy(), patch)
    pooled, by_position = [tokens_NIE.reshape(-1, tokens_NIE.shape[-1])], list(tokens_NIE.swapaxes(0, 1))
    losses = {
        "constant": _blind(pooled), "position": _blind(by_position), "patch": _linear(pooled), "patch_position": _linear(by_position),
        "image": _linear([tokens_NIE.reshape(len(tokens_NIE), -1)]),
    }  # fmt: skip
    shared = {"data": data.name, "image_tokens": tokens_NIE.shape[1], "samples": len(tokens_NIE)}
    return [shared | {"level": name, "loss": float(loss)} for name, loss in losses.items()]


def _tokens(images_NCHW: np.ndarray, patch: int) -> np.ndarray:
    n, c, h, w = images_NCHW.shape
    cut = images_NCHW.reshape(n, c, h // patch, patch, w // patch, patch)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(n, -1, c * patch * patch)


def _blind(groups: list[np.ndarray]) -> float:
    """A constant for each group of (rows, values): the variance of x0, and 1 of the noise."""
    return 1 + np.mean([x.var(0).mean() for x in groups])


def _linear(groups: list[np.ndarray]) -> float:
    """The best affine map of z = (1 - t) x0 + t x1 to v = x0 - x1, one for each group of (rows, values) and each t.

    Along an axis of x0 with variance s, v is left with s / ((1 - t)^2 s + t^2), whose integral over t is pi/2 sqrt(s).
    """
    spectra = [np.linalg.eigvalsh(np.atleast_2d(np.cov(x.T, bias=True))) for x in groups]
    return np.pi / 2 * np.mean([np.sqrt(s.clip(min=0)).mean() for s in spectra])
