"""Small pictures, files of them, and the one line that a bad source must give."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from suite.data.dataset import DataError
from suite.data.load import load


def picture(i, size=(8, 8), mode="L"):
    """A small noisy picture that differs for every i."""
    width, height = size
    channels = {"L": (), "RGB": (3,), "LA": (2,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(i).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    return Image.fromarray(pixels, mode=mode) if mode == "LA" else Image.fromarray(pixels)


def fill(root: Path, names, first=0, **kind):
    """A different picture under each name (`cat/1.png`) below root; returns root."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(first + i, **kind).save(root / name)
    return root


def classes(*labels, each=10):
    """Names of pictures, so many of each class."""
    return [f"{label}/{i:02}.png" for label in labels for i in range(each)]


def parquet(path, columns, features=None):
    import datasets

    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


def refusal(source):
    with pytest.raises(DataError) as caught:
        load(source)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("--data")
    return message
