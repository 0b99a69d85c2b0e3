"""A digest of what a figure shows: its data and words, not its looks, so that a picture can be held against the
tables later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.spines import Spine
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

BITS = 22  # of every number: 2.4e-7 of its value, so the sixth digit of a table counts and another platform's rounding does not
NOISE = 1e-14  # of the largest number beside it: what cancellation leaves where there should be 0


def digest(figure: Figure) -> str:
    """16 hex digits over lines, points, bars, areas, images and texts, in data units. To be taken before the figure
    is laid out."""
    sink = hashlib.sha256()
    for artist in _walk(figure):
        for part in _content(artist):
            text = "".join(part.split()) if isinstance(part, str) else None  # where a line is wrapped depends on the font's measures
            data = _rounded(part) if text is None else text.encode()
            sink.update(f"{type(artist).__name__} {len(data)} ".encode() + data)
    return sink.hexdigest()[:16]


def _walk(artist: Artist) -> Iterator[Artist]:
    """An artist and all it holds, but not what an axis makes up by itself."""
    yield artist
    if not isinstance(artist, Axis | Spine):
        for child in artist.get_children():
            yield from _walk(child)


def _content(artist: Artist) -> Iterator[object]:
    """Words and arrays of one artist."""
    if isinstance(artist, Text):
        yield artist.get_text()
        yield artist.get_position()
    elif isinstance(artist, Line2D):
        yield artist.get_label()
        yield artist.get_xydata()
    elif isinstance(artist, AxesImage):
        yield artist.get_array()
    elif isinstance(artist, Collection):
        yield artist.get_offsets()
        yield from (path.vertices for path in artist.get_paths())
        if artist.get_array() is not None:
            yield artist.get_array()
    elif isinstance(artist, Patch) and not isinstance(artist, Spine):
        yield artist.get_patch_transform().transform_path(artist.get_path()).vertices
    elif isinstance(artist, Axis):
        yield artist.get_label_text()
        if isinstance(artist.get_major_locator(), FixedLocator):  # ticks that the figure chose, names of rows for example
            yield artist.get_majorticklocs()
            yield "\n".join(label.get_text() for label in artist.get_majorticklabels())


def _rounded(values) -> bytes:
    """Numbers to BITS binary digits; one nan for all kinds, and one zero."""
    array = np.ma.filled(np.ma.asarray(values, float), np.nan)
    finite = np.abs(array[np.isfinite(array)])
    mantissa, exponent = np.frexp(np.where(np.abs(array) < NOISE * finite.max(initial=0), 0, array))
    rounded = np.ldexp(np.round(mantissa * 2**BITS), exponent - BITS) + 0.0
    return np.where(np.isnan(rounded), np.nan, rounded).astype("<f8").tobytes()
