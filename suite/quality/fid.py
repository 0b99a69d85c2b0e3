"""Image quality of a sample set: FID, KID and Inception score through torchmetrics, and a picture grid.

Shapes: B images (b in one forward pass), C channels, H rows, W columns, F features, K classes.
Images are float tensors in pixel units [0, 1]; the digits are (B, 1, 8, 8), grey level / 16.
With n samples FID is biased upwards by about 1/n (arXiv:1911.07023), far from 0 at a few hundred: compare equal n and
one feature network only, beside `real_floor` at that n. KID is unbiased.
"""
from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from suite.files import write_whole
from suite.quality.features import FeatureNet, QualityError, extractor

__all__ = ["QualityError", "check_floor", "extractor", "real_floor", "sample_grid", "scores"]

MIN_IMAGES = 4           # KID needs two images in each half of either set
BATCH = 256              # images per forward pass; bounds memory
KID_SUBSETS = 100        # torchmetrics' default
KID_SUBSET_SIZE = 1000   # torchmetrics' default, an upper limit here
GRID_COLUMNS, GRID_ROWS = 8, 10         # samples of a class, classes (the ten digits)
GRID_CELL, GRID_GAP = 32, 2             # pixels: least side of an enlarged image, space between images
GRID_BACK, GRID_BAD = (40, 40, 60), (255, 0, 255)  # RGB: nothing there; a non-finite pixel. Neither is a grey


def scores(samples_BCHW: Tensor, real_BCHW: Tensor, extractor: FeatureNet, *, seed: int = 0) -> dict:
    """FID, KID and Inception score of samples against real images, as one dict of plain values.

    fid, kid, kid_std, inception_score: None if any sample pixel is not finite (fid_status "nonfinite", else "ok");
    fid_features, features_digest: the network; fid_n: number of samples; clipped_fraction, nonfinite_fraction: shares
    of all sample pixels that were finite but outside [0, 1] (clamped before scoring), and that were NaN or infinite.
    Leaves torch's global random state alone; `seed` fixes KID's subsets. Raises QualityError for a wrong shape, a
    non-float tensor, fewer than 4 images, or real images that are not finite and in [0, 1].
    """
    for x_BCHW, which in ((samples_BCHW, "samples"), (real_BCHW, "real images")):
        _check(x_BCHW, which, extractor)
    low, high = torch.aminmax(real_BCHW)
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also NaN. The slack: real data that were standardised and put back
        raise QualityError(f"real images span [{low:.4g}, {high:.4g}], not pixel units [0, 1]")

    finite_BCHW = torch.isfinite(samples_BCHW)
    clipped_BCHW = finite_BCHW & ((samples_BCHW < 0) | (samples_BCHW > 1))
    row = {
        "fid": None, "kid": None, "kid_std": None, "inception_score": None,
        "fid_features": extractor.name, "fid_n": len(samples_BCHW), "features_digest": extractor.digest,
        "clipped_fraction": clipped_BCHW.double().mean().item(),
        "nonfinite_fraction": (~finite_BCHW).double().mean().item(),
        "fid_status": "ok" if finite_BCHW.all() else "nonfinite",
    }
    if row["fid_status"] == "ok":
        row |= _measure(features_of(samples_BCHW, extractor), features_of(real_BCHW, extractor), extractor, seed)
    return row


def real_floor(real_BCHW: Tensor, n: int, extractor: FeatureNet, seed: int = 0, labels: Tensor | None = None) -> dict:
    """`scores` of n real images, drawn by `seed`, against all the others: what perfect samples would get at this n.

    labels: (B,) class labels of the real images; the n are then spread evenly over the classes. Give them where the
    samples were made so: chance class counts alone doubled the FID floor of the digits (0.24 against 0.10 at n = 256).
    Raises QualityError unless 4 images or more are on either side.
    """
    check_floor(len(real_BCHW), n)
    order_B = torch.randperm(len(real_BCHW), generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        mine_BK = labels[order_B, None] == labels.unique()
        rank_B = (mine_BK.cumsum(0) * mine_BK).sum(1)  # 1: the first of its class in this order, 2: the second
        order_B = order_B[rank_B.argsort(stable=True)]
    return scores(real_BCHW[order_B[:n]], real_BCHW[order_B[n:]], extractor, seed=seed)


def check_floor(real: int, n: int) -> None:
    """Raise QualityError where n of so many real images leave no `real_floor`; a plan asks before anything is trained."""
    if not MIN_IMAGES <= n <= real - MIN_IMAGES:
        raise QualityError(f"cannot split {real} real images into {n} and the others ({MIN_IMAGES} at least)")


def _check(x_BCHW: Tensor, which: str, extractor: FeatureNet) -> None:
    """Raise QualityError unless x is a float tensor of at least 4 images that the extractor can read."""
    if x_BCHW.ndim != 4 or not x_BCHW.is_floating_point():
        raise QualityError(f"{which} must be float (B, C, H, W) in [0, 1], not {x_BCHW.dtype} {tuple(x_BCHW.shape)}")
    if len(x_BCHW) < MIN_IMAGES:
        raise QualityError(f"{len(x_BCHW)} {which}: at least {MIN_IMAGES} are needed")
    extractor.check_shape(x_BCHW)


@torch.no_grad()
def features_of(x_BCHW: Tensor, extractor: FeatureNet) -> Tensor:
    """(B, C, H, W) finite images -> (B, F) float64 features on the CPU; pixels are clamped to [0, 1]."""
    device = next(extractor.parameters()).device
    return torch.cat([extractor(x_bCHW.to(device).clamp(0, 1)).cpu() for x_bCHW in x_BCHW.split(BATCH)])


def _measure(fake_BF: Tensor, real_BF: Tensor, extractor: FeatureNet, seed: int) -> dict:
    """fid, kid, kid_std and inception_score of (B, F) features, by torchmetrics' own classes.

    They are given the features and an identity network, so that each image passes the extractor once, not three times.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # 2.9 s to import
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    given = nn.Identity()
    given.num_features = fake_BF.shape[1]
    alone = {"sync_on_compute": False}  # rank 0 scores by itself: a gather would wait for the other ranks for ever
    subset_size = min(KID_SUBSET_SIZE, len(fake_BF) // 2, len(real_BF) // 2)  # halves, so that subsets differ
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="Metric `.*` will save all extracted features")
        warnings.filterwarnings("ignore", message=r"std\(\): degrees of freedom")  # of one split; only the mean is used
        fid = FrechetInceptionDistance(feature=given, **alone)
        kid = KernelInceptionDistance(feature=given, subsets=KID_SUBSETS, subset_size=subset_size, **alone)
        # One split, not torchmetrics' ten: 25 images a split would lower the score of 256 (10 classes).
        inception = InceptionScore(feature=given, splits=1, **alone)
        for metric in (fid, kid):
            metric.update(real_BF, real=True)
            metric.update(fake_BF, real=False)
        inception.update(extractor.classify(fake_BF.to(next(extractor.parameters()).device)).cpu())
        with own_rng(seed):
            kid_mean, kid_std = kid.compute()
            score, _ = inception.compute()
        return {
            "fid": max(0.0, fid.compute().item()),  # rounding takes a set against itself to about -1e-6
            "kid": kid_mean.item(), "kid_std": kid_std.item(), "inception_score": score.item(),
        }


@contextmanager
def own_rng(seed: int) -> Iterator[None]:
    """Run with torch's CPU generator at `seed`, then put its state back: KID and the score draw from the global one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the GPUs, which stay unforked
        yield


def sample_grid(samples_BCHW: Tensor, labels: Tensor, path: str | Path) -> None:
    """Write a PNG: one row per class (the first 10 labels in order), its first 8 samples left to right.

    samples_BCHW: (B, 1 or 3, H, W) in [0, 1], clamped; labels: (B,) integers. Non-finite pixels are magenta, a missing
    sample is dark blue. Images are enlarged by a whole factor without smoothing. Same input, same Pillow => same bytes.
    Raises QualityError for another shape or a label count that does not match.
    """
    from PIL import Image

    if samples_BCHW.ndim != 4 or samples_BCHW.shape[1] not in (1, 3):
        raise QualityError(f"a grid needs images (B, 1 or 3, H, W), not {tuple(samples_BCHW.shape)}")
    labels_B = torch.as_tensor(labels).cpu()
    if labels_B.shape != samples_BCHW.shape[:1]:
        raise QualityError(f"{tuple(labels_B.shape)} labels for {len(samples_BCHW)} samples")

    samples_BCHW = samples_BCHW.detach().cpu().double()
    bad_BHW = ~torch.isfinite(samples_BCHW).all(1)
    grey_BCHW = (samples_BCHW.nan_to_num(0.0).clamp(0, 1) * 255).round().byte()  # NaN as a byte is undefined
    rgb_BHWC = grey_BCHW.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).clone()
    rgb_BHWC[bad_BHW] = torch.tensor(GRID_BAD, dtype=torch.uint8)
    factor = math.ceil(GRID_CELL / max(samples_BCHW.shape[2:]))
    rgb_BHWC = rgb_BHWC.repeat_interleave(factor, 1).repeat_interleave(factor, 2)

    height, width = rgb_BHWC.shape[1:3]
    classes = labels_B.unique()[:GRID_ROWS]  # sorted
    page_HWC = torch.tensor(GRID_BACK, dtype=torch.uint8).repeat(
        len(classes) * (height + GRID_GAP) + GRID_GAP, GRID_COLUMNS * (width + GRID_GAP) + GRID_GAP, 1)
    for row, label in enumerate(classes):
        for column, i in enumerate((labels_B == label).nonzero()[:GRID_COLUMNS, 0]):
            top, left = row * (height + GRID_GAP) + GRID_GAP, column * (width + GRID_GAP) + GRID_GAP
            page_HWC[top:top + height, left:left + width] = rgb_BHWC[i]

    Image.fromarray(page_HWC.numpy()).save(buffer := io.BytesIO(), format="PNG")
    write_whole(Path(path), buffer.getvalue())
