"""The levels that losses are compared with, beside least squares on noisy images."""

import numpy as np
import pytest

from suite.data.load import cached
from suite.diagnosis.references import references
from suite.environment import ROOT
from suite.records.store import read

PATCH = 2


def fitted(x0, t, rng):
    """Mean squared error of the affine map of z to v that least squares finds on samples of noise."""
    x1 = rng.standard_normal(x0.shape)
    z, v = (1 - t) * x0 + t * x1, x0 - x1
    design = np.column_stack([z, np.ones(len(z))])
    rest = v - design @ np.linalg.lstsq(design, v, rcond=None)[0]
    return (rest**2).sum() / ((len(z) - design.shape[1]) * v.shape[1])  # less the coefficients, as for any variance


@pytest.fixture(scope="module")
def digits():
    return cached("digits")


@pytest.fixture(scope="module")
def levels(digits):
    return {row["level"]: row["loss"] for row in references(digits, PATCH)}


def test_levels_are_those_of_least_squares(digits, levels):
    rng, images = np.random.default_rng(0), digits.x0(digits.train).double().numpy()[:, 0]
    patches = {(r, c): images[:, r : r + PATCH, c : c + PATCH].reshape(len(images), -1) for r in range(0, 8, 2) for c in range(0, 8, 2)}
    pooled, times = np.concatenate(list(patches.values())), (np.arange(40) + 0.5) / 40
    many = {place: np.tile(patch, (4, 1)) for place, patch in patches.items()}
    by_t = [(fitted(pooled, t, rng), np.mean([fitted(patch, t, rng) for patch in many.values()]),
             fitted(np.tile(images.reshape(len(images), -1), (3, 1)), t, rng)) for t in times]  # fmt: skip
    for name, found in zip(("patch", "patch_position", "image"), np.mean(by_t, 0), strict=True):
        assert levels[name] == pytest.approx(found, rel=0.01), name
    assert levels["position"] == pytest.approx(1 + np.mean([patch.var(0) for patch in patches.values()]), rel=1e-9)
    assert levels["constant"] == pytest.approx(digits.constant_loss(PATCH), rel=1e-9)
    assert levels["image"] < levels["patch_position"] < levels["patch"] < levels["position"] < levels["constant"]


def test_the_committed_levels_are_what_the_data_give(digits):
    table = read(ROOT / "results" / "autopsy", "references")
    again = {(row["image_tokens"], row["level"]): row["loss"] for patch in (1, 2) for row in references(digits, patch)}
    committed = {(row.image_tokens, row.level): row.loss for row in table[table["data"] == "digits"].itertuples()}
    assert committed == pytest.approx(again, rel=1e-5) and len(again) == 10
