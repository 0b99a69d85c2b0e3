"""FID against real images that are not there: against the mean and covariance of their features, in a file.

The paper's FID is of 50,000 samples against its training images, whose pixels lie nowhere once they are encoded.
Shapes: B images, C channels, H rows, W columns, F features. Images are floats in pixel units [0, 1].
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from suite.quality.features import FeatureNet, QualityError
from suite.quality.fid import MIN_IMAGES, features_of, own_rng

META = "moments"  # the key of the file's metadata; safetensors writes several in no fixed order


@dataclass(frozen=True)
class Moments:
    """Of the features of n images: mean (F), covariance (F, F) over n - 1, both float64; the network's name and digest.

    images: which images they are, as whoever gathers them says it.
    """

    mean_F: Tensor
    cov_FF: Tensor
    n: int
    name: str
    digest: str
    images: str = ""

    def to_bytes(self) -> bytes:
        """The content of a safetensors file; equal moments give equal bytes."""
        from safetensors.torch import save

        notes = json.dumps(self._notes() | {"sha256": self._sha256()})
        return save({"mean": self.mean_F.contiguous(), "cov": self.cov_FF.contiguous()}, {META: notes})

    def _notes(self) -> dict:
        return {"n": self.n, "features": self.name, "digest": self.digest, "images": self.images}

    def _sha256(self) -> str:
        """Of everything here: a damaged number would be a score that nobody doubts."""
        sha = hashlib.sha256(json.dumps(self._notes()).encode())
        for tensor in (self.mean_F, self.cov_FF):
            sha.update(f"{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().astype("<f8").tobytes())
        return sha.hexdigest()


def load(path: Path) -> Moments:
    """The moments in a file. Raises QualityError, also where they are not what was written."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()[META])
            mean, cov = file.get_tensor("mean"), file.get_tensor("cov")
        found = Moments(mean, cov, notes["n"], notes["features"], notes["digest"], notes["images"])
        right = notes["sha256"]
    except Exception as error:  # no file, another file, half a file
        raise QualityError(f"{path} holds no moments of features ({type(error).__name__})") from error
    if found._sha256() != right:
        raise QualityError(f"{path} is not what was written; delete it and encode again")
    return found


def gather(images: Iterable[Tensor], extractor: FeatureNet) -> Moments:
    """The moments of images (B, C, H, W) that come batch by batch. Raises QualityError for fewer than 4."""
    metric = _metric(extractor)
    for x_BCHW in images:
        metric.update(features_of(x_BCHW, extractor), real=True)
    n = int(metric.real_features_num_samples)
    if n < MIN_IMAGES:
        raise QualityError(f"{n} real images: at least {MIN_IMAGES} are needed")
    mean = metric.real_features_sum / n
    cov = (metric.real_features_cov_sum - n * torch.outer(mean, mean)) / (n - 1)
    return Moments(mean, cov, n, extractor.name, extractor.digest)


def scores(samples: Iterable[Tensor], real: Moments, extractor: FeatureNet, *, seed: int = 0) -> dict:
    """FID and Inception score of samples (B, C, H, W) that come batch by batch, as `suite.quality.fid.scores` lays them out.

    No KID: it needs the features of every real image. Raises QualityError where the moments are of another network,
    and for fewer than 4 samples.
    """
    from torchmetrics.image.inception import InceptionScore

    if real.digest != extractor.digest:
        theirs, ours = (f"{net.name} ({net.digest[:9]}...)" for net in (real, extractor))
        raise QualityError(f"the real images' moments are of {theirs}, not {ours}")
    features, pixels, clipped, bad = [], 0, 0, 0
    for x_BCHW in samples:
        finite = torch.isfinite(x_BCHW)
        pixels, bad = pixels + x_BCHW.numel(), bad + int((~finite).sum())
        clipped += int((finite & ((x_BCHW < 0) | (x_BCHW > 1))).sum())
        if not bad:
            features.append(features_of(x_BCHW, extractor))
    row = {
        "fid": None, "kid": None, "kid_std": None, "inception_score": None,
        "fid_features": extractor.name, "fid_n": None, "features_digest": extractor.digest,
        "clipped_fraction": clipped / max(1, pixels), "nonfinite_fraction": bad / max(1, pixels),
        "fid_status": "nonfinite" if bad else "ok",
    }
    if bad:
        return row
    fake_BF = torch.cat(features)
    if len(fake_BF) < MIN_IMAGES:
        raise QualityError(f"{len(fake_BF)} samples: at least {MIN_IMAGES} are needed")
    metric = _metric(extractor)
    metric.real_features_num_samples += real.n
    metric.real_features_sum += real.n * real.mean_F
    metric.real_features_cov_sum += (real.n - 1) * real.cov_FF + real.n * torch.outer(real.mean_F, real.mean_F)
    metric.update(fake_BF, real=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `.*` will save all extracted features")
        inception = InceptionScore(feature=_given(extractor), splits=1, sync_on_compute=False)
    inception.update(extractor.classify(fake_BF.to(next(extractor.parameters()).device)).cpu())
    with own_rng(seed), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"std\(\): degrees of freedom")  # of one split; only the mean is used
        return row | {"fid": max(0.0, metric.compute().item()), "inception_score": inception.compute()[0].item(), "fid_n": len(fake_BF)}


def _given(extractor: FeatureNet) -> nn.Module:
    """A network that gives back the features it is given, each of which was made once."""
    given = nn.Identity()
    given.num_features = extractor.num_features
    return given


def _metric(extractor: FeatureNet):
    from torchmetrics.image.fid import FrechetInceptionDistance  # 2.9 s to import

    return FrechetInceptionDistance(feature=_given(extractor), sync_on_compute=False)
