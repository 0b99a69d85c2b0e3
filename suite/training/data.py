"""Any `datasets` source as one standardised tensor in memory; scikit-learn's handwritten digits by default.

Shapes: N images, C channels, H = W pixels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DIGITS_DIGEST = "da9e5d34b56934d1"  # of load("digits"), so that planning need not load data; tested
HELDOUT = 297 / 1797  # the digits: 1,500 to train on, 297 held out


class DataError(ValueError):
    """A data source that cannot be used; the message is one line for the user."""


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


def digits_dataset():
    """The 1,797 digits of scikit-learn as a `datasets.Dataset` with image and class-label features."""
    import datasets
    from PIL import Image

    pixels, labels = _digits()
    rows = {"image": [Image.fromarray(p) for p in pixels], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})
    return datasets.Dataset.from_dict(rows, features=features)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) uint8 in 0..16 and labels: the test part of the UCI optical digits."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target.astype(np.int64)


def load(source: str = "digits") -> Data:
    """`digits`, `imagefolder:DIR`, `parquet:FILE` or a hub name, with options: `SOURCE,size=32,colour=grey,label=NAME`.

    size: images are cropped square and resized (default: the first image's shorter side). colour: grey or rgb (default:
    the first image's own). label: the class column (default: `label`, else the first ClassLabel). split: default train.
    Raises DataError.
    """
    if source == "digits":
        if importlib.util.find_spec("datasets"):
            table = digits_dataset()
            pixels = np.stack([np.asarray(image) for image in table["image"]])
            labels = np.asarray(table["label"])
        else:  # a GPU machine may have no `datasets`
            pixels, labels = _digits()
        return _standardise("digits", pixels[:, None].astype(np.float32) / 16, labels, 10)
    name, *options = source.split(",")
    if name in ("", "digits"):
        raise DataError(f"--data {source!r}: {'digits takes no options' if name else 'names no source'}; try digits or imagefolder:DIR")
    option = dict(o.partition("=")[::2] for o in options)
    if unknown := set(option) - {"size", "colour", "label", "split"}:
        raise DataError(f"--data {source}: unknown option {sorted(unknown)[0]!r}; known: size, colour, label, split")
    if not option.get("size", "1").isdigit() or option.get("size") == "0":
        raise DataError(f"--data {source}: size={option['size']} is not a positive whole number")
    if option.get("colour", "grey") not in ("grey", "rgb"):
        raise DataError(f"--data {source}: colour={option['colour']} is not grey or rgb")
    table = _open(name, option.get("split", "train"))
    image_column, label_column = _columns(name, table, option.get("label"))
    pixels = _images(name, table, image_column, option)
    names = list(table[label_column])
    if kind := next((type(label).__name__ for label in names if not isinstance(label, int | str)), ""):
        raise DataError(f"--data {name}: label column {label_column!r} holds {kind}, not numbers or names of classes")
    classes, labels = np.unique(np.asarray(names), return_inverse=True)
    return _standardise(source, pixels, labels, len(classes))


def _open(name: str, split: str):
    try:
        import datasets
    except ImportError:
        raise DataError(f"--data {name} needs the `datasets` package: pip install datasets") from None
    datasets.disable_progress_bars()
    kind, colon, path = name.partition(":")
    try:
        if kind == "imagefolder" and colon:
            if not Path(path).is_dir():
                raise DataError(f"--data {name}: no folder {path}")
            return _local("imagefolder", split, data_dir=path)
        if kind == "parquet" and colon:
            if not Path(path).is_file():
                raise DataError(f"--data {name}: no file {path}")
            return _local("parquet", split, data_files=path)
        return datasets.load_dataset(name, split=split)
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds; each becomes one line
        raise DataError(f"--data {name}: cannot be loaded: {_first_line(error)}") from error


def _local(kind: str, split: str, **where: str):
    """Files of the user, read into memory: no stale copy of them stays in a cache, nothing is written beside results."""
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        return datasets.load_dataset(kind, split=split, cache_dir=cache, keep_in_memory=True, **where)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _columns(name: str, table, label: str | None) -> tuple[str, str]:
    import datasets

    kinds = table.features
    images = [c for c, kind in kinds.items() if isinstance(kind, datasets.Image)]
    if not images or not len(table):
        raise DataError(f"--data {name}: no images found; columns: {', '.join(kinds)}")
    if label is None:
        found = [c for c, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
        label = "label" if "label" in kinds else found[0] if found else None
    if label is None or label not in kinds:
        raise DataError(f"--data {name}: no label column; name one with ,label=COLUMN (columns: {', '.join(kinds)})")
    return images[0], label


def _images(name: str, table, column: str, option: dict[str, str]) -> np.ndarray:
    from PIL import Image, ImageOps

    raw = table.cast_column(column, table.features[column].__class__(decode=False))[column]
    size, mode, pixels = int(option.get("size", 0)), {"grey": "L", "rgb": "RGB"}.get(option.get("colour")), []
    for row, item in enumerate(raw):
        try:
            image = Image.open(io.BytesIO(item["bytes"]) if item["bytes"] else item["path"])
            if image.mode[0] in "IF":  # Pillow would clip these to 255 without a word
                raise ValueError(f"mode {image.mode} has more than 8 bits a channel; convert it first")
            mode = mode or ("L" if image.mode in ("1", "L", "LA") else "RGB")
            size = size or min(image.size)
            fitted = ImageOps.fit(image.convert(mode), (size, size), method=Image.Resampling.BICUBIC)
        except Exception as error:
            where = (item or {}).get("path") or f"in row {row}"
            raise DataError(f"--data {name}: image {where} cannot be read: {_first_line(error)}") from error
        pixels.append(np.asarray(fitted, dtype=np.float32).reshape(size, size, -1).transpose(2, 0, 1) / 255)
    return np.stack(pixels)


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
    images = np.ascontiguousarray((pixels_NCHW - mean) / std, dtype=np.float32)
    sha = hashlib.sha256(repr(images.shape).encode())
    for part in (images, labels.astype("<i8"), train.astype("<i8")):
        sha.update(part.tobytes())
    tensor = torch.from_numpy
    return Data(
        name, tensor(images), tensor(labels.astype(np.int64)), tensor(train), tensor(held), tensor(mean), tensor(std),
        classes, f"d{sha.hexdigest()[:15]}",  # a letter first, as suite.protocol.short_hash has it
    )  # fmt: skip
