"""A data source as one standardised tensor in memory, split and with a digest.

Shapes: N images, B of a batch, C channels, H = W pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from suite.data import split
from suite.data.captions import Captions, caption_table
from suite.data.dataset import NAMED, DataError
from suite.quality.features import FeatureNet, QualityError, extractor
from suite.quality.fid import check_floor, real_floor, scores

_floors: dict[tuple[str, str, int], dict] = {}


@dataclass(frozen=True)
class Data:
    """images are standardised: (pixels - mean) / std, pixels in [0, 1], mean and std (C, 1, 1) of the training part."""

    name: str
    images_NCHW: Tensor
    labels_N: Tensor
    train: Tensor  # row numbers
    heldout: Tensor
    mean: Tensor
    std: Tensor
    classes: int
    digest: str

    current = True  # read whole: what is trained on is what the digest is of, whatever becomes of the files
    caption_shape = None  # (S, D) of captions that come with the data; here it is the protocol's, see `caption_table`

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return tuple(self.images_NCHW.shape[1:])

    @property
    def empty(self) -> int:
        """The caption of a row whose caption is dropped: the last of the table."""
        return self.classes

    def x0(self, rows: Tensor) -> Tensor:
        """(B, C, H, W) images of these rows."""
        return self.images_NCHW[rows]

    def caption(self, rows: Tensor) -> Tensor:
        """(B) captions of these rows: of the table, one a class."""
        return self.labels_N[rows]

    def prompts(self, which: Tensor) -> Tensor:
        """Captions of the samples of these numbers: the classes in turn."""
        return which % self.classes

    def picture_rows(self, n: int) -> Tensor:
        """For n samples the row of the picture that each goes to: a class has one."""
        return torch.arange(n) % self.classes

    def captions(self, tokens: int, width: int) -> Captions:
        """What turns captions into tokens of the model."""
        return Captions(caption_table(self.classes, tokens, width), self.empty)

    def pixels(self, images_NCHW: Tensor) -> Tensor:
        """Back to [0, 1] units; model samples may lie outside."""
        return images_NCHW * self.std + self.mean

    def images(self, samples_BCHW: Tensor) -> Tensor:
        """Samples as a picture shows them: as they are."""
        return samples_BCHW

    def quality_fault(self, features: str, n: int) -> str:
        """Why n samples cannot be scored against these data with these features, or ""; the plan and every run ask here."""
        if features == "digits" and self.digest not in NAMED.values():  # other 8 x 8 images would get numbers that mean nothing
            return "the digit features judge the shipped digits alone (--data digits, mnist); other images need --features inception"
        try:
            check_floor(len(self.train), n)
        except QualityError as error:
            return str(error)
        return ""

    def scores(self, samples_BCHW: Tensor, features: str) -> dict:
        """FID and its kin of samples against the training images; for data that have no fault."""
        return scores(samples_BCHW, self._real(), self._network(features))

    def floor(self, features: str, n: int) -> dict:
        """What n real images score against the others: the best that n samples can get."""
        key = self.digest, features, n
        if key not in _floors:
            _floors[key] = real_floor(self._real(), n, self._network(features), labels=self.labels_N[self.train])
        return _floors[key]

    def _real(self) -> Tensor:
        return self.pixels(self.images_NCHW[self.train]).clamp(0, 1)

    def _network(self, features: str) -> FeatureNet:
        """The feature network that judges these data: of the shipped ones (`digits`) that of the same name."""
        shipped = {digest: name for name, digest in NAMED.items()}
        return extractor(shipped.get(self.digest, features) if features == "digits" else features)

    def constant_loss(self, patch: int) -> float:
        """The loss of the best token-constant output: 1 + the mean over patch offset and channel of the data's variance.

        1 is the variance of the noise x1; equal tokens can at best be the mean of x0 at each offset and channel.
        """
        x = self.images_NCHW[self.train].double()
        n, c, h, w = x.shape
        offsets = x.reshape(n, c, h // patch, patch, w // patch, patch).permute(1, 3, 5, 0, 2, 4).flatten(3)
        return 1.0 + offsets.var(-1, unbiased=False).mean().item()


def standardise(name: str, pixels_NCHW: np.ndarray, labels: np.ndarray, classes: int) -> Data:
    """Data of (N, C, H, W) pixels in [0, 1] and (N) class numbers. Raises DataError."""

    counts = np.bincount(labels, minlength=classes)
    if counts.min() < 2 or len(labels) * split.HELDOUT < classes:
        raise DataError(f"--data {name}: {len(labels)} images of {classes} classes are too few to hold some of each out")
    train, held = split.stratified(labels)
    mean = pixels_NCHW[train].mean((0, 2, 3), dtype=np.float64).astype(np.float32)[:, None, None]
    std = pixels_NCHW[train].std((0, 2, 3), dtype=np.float64).astype(np.float32)[:, None, None]
    if not (std > 0).all():
        raise DataError(f"--data {name}: every image is the same, or has an empty channel")
    standard = np.ascontiguousarray((pixels_NCHW - mean) / std, dtype=np.float32)
    sha = hashlib.sha256(repr(standard.shape).encode())
    for part in (standard, labels.astype("<i8"), train.astype("<i8"), mean, std):  # mean and std: scores are of the pixels
        sha.update(part.tobytes())
    tensor = torch.from_numpy
    return Data(
        name, tensor(standard), tensor(labels.astype(np.int64)), tensor(train), tensor(held), tensor(mean), tensor(std),
        classes, f"d{sha.hexdigest()[:15]}",  # a letter first, as suite.protocol.short_hash has it
    )  # fmt: skip
