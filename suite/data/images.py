"""Encoded pictures as one array: turned as the camera held it, flattened, cropped square, one size and colour for all.

Shapes: N images, C channels (1 grey, 3 colour), S = S pixels.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from suite import environment
from suite.data.sources import Pictures, Source, first_line

GREY_MODES = ("1", "L", "LA", "La")
BYTES_A_VALUE = 16  # at the worst moment of `load`: the pixels, their training part, and that twice in float64


def decode(source: Source, pictures: Pictures) -> np.ndarray:
    """(N, C, S, S) float32 in [0, 1]. size= and colour= decide, else the pictures must agree. Raises DataError."""
    looks = []
    for where, file in zip(pictures.where, pictures.files):
        with _named(source, where), _open(file) as image:
            looks.append((min(image.size), image.mode in GREY_MODES))
    size, channels = _size(source, looks), _channels(source, looks)
    _check_memory(source, len(looks), channels, size)
    pixels = np.empty((len(looks), channels, size, size), np.float32)
    for row, (where, file) in enumerate(zip(pictures.where, pictures.files)):
        pixels[row] = square(source, where, file, size, channels) / 255
    return pixels


def square(source: Source, where: str, file: Path | bytes | None, size: int, channels: int) -> np.ndarray:
    """(C, S, S) uint8 of one picture. where: what a message calls it. Raises DataError."""
    with _named(source, where), _open(file) as image:
        return _fit(image, size, channels)


def _size(source: Source, looks: list[tuple[int, bool]]) -> int:
    if "size" in source.options:
        return int(source.options["size"])
    counts = Counter(side for side, _ in looks).most_common()
    if len(counts) > 1:
        shown = ", ".join(f"{count} of {side}" for side, count in counts[:4]) + (f" and {len(counts) - 4} more" if len(counts) > 4 else "")
        raise source.error(f"the images' shorter sides differ ({shown} pixels); add ,size=N")
    return counts[0][0]


def _channels(source: Source, looks: list[tuple[int, bool]]) -> int:
    if "colour" in source.options:
        return 1 if source.options["colour"] == "grey" else 3
    grey = sum(is_grey for _, is_grey in looks)
    if 0 < grey < len(looks):
        raise source.error(f"{grey} images are grey and {len(looks) - grey} in colour; add ,colour=grey or ,colour=rgb")
    return 1 if grey else 3


def _check_memory(source: Source, images: int, channels: int, size: int) -> None:
    need, free = images * channels * size**2 * BYTES_A_VALUE, environment.free_memory()
    if free is not None and need > free:
        raise source.error(f"{images} images of {size} x {size} x {channels} take {need / 2**30:,.1f} GiB of memory to prepare, "
                           f"and {free / 2**30:,.1f} are free; add a smaller ,size=N")  # fmt: skip


@contextmanager
def _named(source: Source, where: str):
    """Whatever Pillow raises or warns of becomes one line that names the picture."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except MemoryError:
        raise source.error(f"image {where} cannot be read: not enough memory") from None
    except Exception as error:
        raise source.error(f"image {where} cannot be read: {first_line(error)}") from error


def _open(file: Path | bytes | None):
    """The picture with its header read. Raises ValueError for one that could only be guessed at."""
    from PIL import Image

    if file is None:
        raise ValueError("there is none")
    if isinstance(file, Path) and file.exists() and not file.is_file():  # a pipe would be waited for
        raise ValueError("it is no file")
    if not (len(file) if isinstance(file, bytes) else file.stat().st_size):
        raise ValueError("it is empty")
    image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    if image.format in ("EPS", "WMF", "EMF"):  # Pillow would hand it to another program
        raise ValueError(f"it is a drawing ({image.format}), not pixels; convert it first")
    if image.mode[0] in "IF":  # Pillow would clip these to 255 without a word
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel; convert it first")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's MPO is one picture and its previews
        raise ValueError(f"it has {frames} frames; save the one that is meant")
    return image


def _fit(image, size: int, channels: int) -> np.ndarray:
    """(C, S, S) uint8 as it would be seen: EXIF orientation applied, transparency on white, the middle square."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:  # the colour below a transparent pixel is arbitrary
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(fitted).reshape(size, size, channels).transpose(2, 0, 1)
