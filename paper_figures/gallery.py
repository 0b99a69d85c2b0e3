"""Every figure of a results folder as a small picture with its words, for the report."""

from __future__ import annotations

import base64
import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from paper_figures import style
from paper_figures.draw import fault, folders, pages

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
                    words = f"{folder.name}: {recipe.title}", style.caption_of(page), recipe.tables
                    found.append(Picture(stem, *words, *_small(page, out / f"{stem}.png")))
    return found


def _small(page, path: Path) -> tuple[int, int, str]:
    """(width, height, data URI) of a figure."""
    with style.context():
        if fault(path, style.shows(page)):
            page.savefig(data := io.BytesIO(), format="png", dpi=150)
        else:
            data = io.BytesIO(path.read_bytes())
    with Image.open(data) as whole:
        width = min(WIDTH, whole.width)
        small = whole.convert("RGB").resize((width, round(whole.height * width / whole.width)), Image.Resampling.LANCZOS)
    small.save(packed := io.BytesIO(), "WEBP", quality=QUALITY)
    return *small.size, f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"
