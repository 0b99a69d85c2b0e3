"""Is a picture the one that its figure gives? Compared as it is seen, not by the words in its metadata.

Drawn by the build that is at work here, every pixel must be the same, and every drawing command of a PDF. Another build of
matplotlib or FreeType sets letters otherwise and moves what stands beside them: there a pixel counts as off where its colour does
not occur within NEAR pixels of its place, and OFF of the page may be. A changed digit or a thin stroke passes that; a moved
curve, another bar or a painted patch does not. A PDF of another build is compared by its mark alone.
"""

from __future__ import annotations

import io
import platform
import re
import zlib

import matplotlib as mpl
import numpy as np
from matplotlib import ft2font
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

NEAR = 4  # pixels, at 150 dpi 0.7 mm
LEVELS = 48  # of 255: letters and edges are smoothed otherwise
OFF = 1e-3  # share of the page's pixels
SIZE = 0.05  # by which a page may be higher or wider: its caption may wrap otherwise

# what drew a picture, in its metadata; with a full stop, since the bytes of a PNG's checksum follow
BUILD = f"matplotlib {mpl.__version__}, FreeType {ft2font.__freetype_version__}, {platform.machine()}."
_BUILD = re.compile(rb"matplotlib [0-9][^,\0()\n]{0,30}, FreeType [^,\0()\n]{1,30}, [A-Za-z0-9_]{1,20}[.]")


def build_of(data: bytes) -> str:
    """What drew a picture, as `style.save` writes it into the file; "" where it does not say."""
    found = _BUILD.search(data)
    return found[0].decode(errors="replace") if found else ""


def differs(data: bytes, again: bytes, kind: str) -> str:
    """How a picture differs from what its figure gives now, in words, or "". again: the same figure, just drawn."""
    if data == again:
        return ""
    same = build_of(data) == BUILD
    if kind == "pdf":
        return "its drawing commands are not those of its figure" if same and _commands(data) != _commands(again) else ""
    try:
        (mine, looks), (right, should) = _decoded(data), _decoded(again)
    except Exception as error:  # whatever a damaged file does to the decoder
        return f"cannot be decoded ({type(error).__name__})"
    if looks != should:
        return "its PNG holds more than pixels, or of another kind"
    if same:
        off = 1.0 if mine.shape != right.shape else float((mine != right).any(2).mean())
        return f"{100 * off:.3g} % of its pixels differ" if off else ""
    if any(abs(a - b) > SIZE * b for a, b in zip(mine.shape[:2], right.shape[:2])):
        return "its size differs"
    off = off_share(mine, right)
    return f"{100 * off:.3g} % of its pixels are off ({100 * OFF:g} % may be, of another build of matplotlib)" if off > OFF else ""


def off_share(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    """The larger share of pixels of either picture whose colour is not found near the same place of the other."""
    height, width = np.minimum(a_HWC.shape[:2], b_HWC.shape[:2])
    a, b = (x[:height, :width].astype(np.int16) for x in (a_HWC, b_HWC))
    box = (2 * NEAR + 1, 2 * NEAR + 1, 1)
    shares = []
    for x, other in ((a, b), (b, a)):
        low, high = minimum_filter(other, box) - LEVELS, maximum_filter(other, box) + LEVELS
        shares.append(float(((x < low) | (x > high)).any(2).mean()))
    return max(shares)


def _decoded(data: bytes) -> tuple[np.ndarray, dict]:
    """Pixels (H, W, 4), and whatever else of the file decides how it is shown."""
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.load()
    looks = {"mode": image.mode, "frames": getattr(image, "n_frames", 1)} | image.info
    for word in ("Software", "Description"):  # the mark is looked at elsewhere
        looks.pop(word, None)
    return np.asarray(image.convert("RGBA")), looks


def _commands(data: bytes) -> tuple[bytes, list[bytes]]:
    """A PDF without what depends on the compressor: its objects but lengths and offsets, and its streams unpacked."""
    first, *parts = re.split(rb"stream\r?\n(.*?)\r?\nendstream", data, flags=re.S)
    streams, rest = parts[::2], b"".join([first, *parts[1::2]])
    rest = re.sub(rb"\d+ 0 obj\n\d+\nendobj\n", b"", rest.partition(b"\nxref\n")[0])
    return rest, [_unpacked(stream) for stream in streams]


def _unpacked(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return stream
