"""The levels that losses are compared with, beside least squares on noisy images."""

import numpy as np
import pytest

from suite.data.load import cached
from suite.diagnosis.references import references
from suite.environment import ROOT
from suite.model.flow import make_batch
from suite.records.store import read
from suite.rng import generator

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
    return {row["level"]: row for row in references(digits, PATCH)}


def test_levels_are_those_of_least_squares(digits, levels):
    rng, images = np.random.default_rng(0), digits.x0(digits.train).double().numpy()[:, 0]
    patches = {(r, c): images[:, r : r + PATCH, c : c + PATCH].reshape(len(images), -1) for r in range(0, 8, 2) for c in range(0, 8, 2)}
    pooled, times = np.concatenate(list(patches.values())), (np.arange(32) + 0.5) / 32
    many = {place: np.tile(patch, (4, 1)) for place, patch in patches.items()}
    by_t = [(fitted(pooled, t, rng), np.mean([fitted(patch, t, rng) for patch in many.values()]),
             fitted(np.tile(images.reshape(len(images), -1), (3, 1)), t, rng)) for t in times]  # fmt: skip
    for name, found in zip(("patch", "patch_position", "image"), np.mean(by_t, 0), strict=True):
        assert levels[name]["loss"] == pytest.approx(found, rel=0.01), name
    assert levels["position"]["loss"] == pytest.approx(1 + np.mean([patch.var(0) for patch in patches.values()]), rel=1e-9)
    assert levels["constant"]["loss"] == pytest.approx(digits.constant_loss(PATCH), rel=1e-9)
    assert sorted(levels, key=lambda name: levels[name]["loss"]) == ["image", "patch_position", "patch", "position", "constant"]


def test_heldout_losses_are_of_the_samples_that_networks_are_judged_on(digits, levels):
    """A network that answers with the training images' mean, and least squares at the t of each sample."""
    train, heldout = digits.x0(digits.train), digits.x0(digits.heldout)
    batch = make_batch(heldout, digits.caption(digits.heldout), digits.empty, 0.0, generator("heldout"))
    error = (batch.target_BCHW - train.mean(0)).square().mean().item()
    assert levels["position"]["heldout_loss"] == pytest.approx(error, rel=1e-5)
    error = (batch.target_BCHW - by_offset(train).mean(0).tile(4, 4)).square().mean().item()
    assert levels["constant"]["heldout_loss"] == pytest.approx(error, rel=1e-5)
    patches, rng, rest = by_offset(train).flatten(1).double().numpy(), np.random.default_rng(1), []
    for z, target, t in zip(batch.z_BCHW[:, None], batch.target_BCHW[:, None], batch.t_B.tolist()):
        x1 = rng.standard_normal(patches.shape)
        design = np.column_stack([(1 - t) * patches + t * x1, np.ones(len(x1))])
        map_ = np.linalg.lstsq(design, patches - x1, rcond=None)[0]
        own, answer = (by_offset(of).flatten(1).double().numpy() for of in (z, target))
        rest.append(np.square(answer - np.column_stack([own, np.ones(len(own))]) @ map_).mean())
    assert levels["patch"]["heldout_loss"] == pytest.approx(np.mean(rest), rel=0.005)


def by_offset(images):
    """(patches, 2, 2) all patches of (n, 1, 8, 8)."""
    return images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).reshape(-1, PATCH, PATCH)


def test_the_committed_levels_are_what_the_data_give(digits):
    table = read(ROOT / "results" / "autopsy", "references")
    again = {(row["image_tokens"], row["level"]): row for patch in (1, 2) for row in references(digits, patch)}
    committed = {(row.image_tokens, row.level): row for row in table[table["data"] == "digits"].itertuples()}
    assert committed.keys() == again.keys() and len(again) == 10
    for key, row in committed.items():
        assert (row.loss, row.heldout_loss) == pytest.approx((again[key]["loss"], again[key]["heldout_loss"]), rel=1e-5)
