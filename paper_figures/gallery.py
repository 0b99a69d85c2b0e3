"""Every figure of a results folder as a small picture with its words, for the report."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from paper_figures import style
from paper_figures.draw import Drawn, fault, folders, pages
from paper_figures.figure import Recipe

WIDTH = 1100  # pixels at most
QUALITY = 70  # of WebP: lines and small words stay sharp, and all of the committed pictures take less than 5 MB


@dataclass(frozen=True)
class Picture:
    """stem: <protocol>-<name>; caption: its words; tables: what it is drawn from; uri: the picture itself."""

    stem: str
    title: str
    caption: str
    tables: tuple[str, ...]
    width: int
    height: int
    uri: str


def gallery(results: Path, out: Path) -> list[Picture]:
    """The figures that the tables under `results` allow: the pictures in `out` where these show what the tables give, else drawn anew."""
    found = []
    with contextlib.redirect_stderr(io.StringIO()):  # why a figure is not drawn is no news here
        for folder in folders(Path(results)):
            for stem, recipe, page in pages(folder):
                if not isinstance(page, str):
                    found.append(_picture(stem, recipe, style.caption_of(page), _png(page, out / f"{stem}.png")))
    return found


def of_drawn(figures: Iterable[Drawn]) -> list[Picture]:
    """Of figures that were just drawn."""
    return [_picture(one.stem, one.recipe, one.caption, one.file.read_bytes()) for one in figures]


def _png(page, path: Path) -> bytes:
    """A figure as PNG: the file where it shows what the figure does."""
    if not fault(path, style.shows(page)):
        return path.read_bytes()
    with style.context():
        return style.rendered(page)["png"]


def _picture(stem: str, recipe: Recipe, caption: str, png: bytes) -> Picture:
    with Image.open(io.BytesIO(png)) as whole:
        width = min(WIDTH, whole.width)
        small = whole.convert("RGB").resize((width, round(whole.height * width / whole.width)), Image.Resampling.LANCZOS)
    small.save(packed := io.BytesIO(), "WEBP", quality=QUALITY)
    uri = f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"
    return Picture(stem, f"{stem.removesuffix(f'-{recipe.name}')}: {recipe.title}", caption, recipe.tables, *small.size, uri)
