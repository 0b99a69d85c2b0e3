"""Draw every figure that the tables of a results folder allow; files are <protocol>-<name>.png and .pdf."""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

import paper_figures
from paper_figures import style
from paper_figures.figure import Recipe
from suite.presets import PROTOCOLS
from suite.records.schema import TABLES
from suite.records.store import format_table


def figures() -> list[Recipe]:
    """The figures of this folder's modules, by name."""
    modules = [importlib.import_module(f"paper_figures.{module.name}") for module in pkgutil.iter_modules(paper_figures.__path__)]
    found = {item for module in modules for item in vars(module).values() if isinstance(item, Recipe)}
    if len({item.name for item in found}) < len(found):
        raise ValueError(f"two figures share a name: {', '.join(sorted(item.name for item in found))}")
    return sorted(found, key=lambda item: item.name)


class Drawn(NamedTuple):
    """A figure that was drawn: its files are FILE and the same as .pdf."""

    stem: str
    recipe: Recipe
    caption: str
    file: Path


class Drawing(NamedTuple):
    """What was drawn, and an exit status: 0, 1 if a figure broke, 2 if there is no run."""

    figures: list[Drawn]
    status: int


def draw_all(results: Path, out: Path) -> Drawing:
    """Draw all protocols found under `results` into `out`, and print what was drawn."""
    results, out = Path(results), Path(out)
    if not folders(results):
        print(f"{results}: no results to draw; start with: python -m suite run", file=sys.stderr)
        return Drawing([], 2)
    parts = [draw_folder(folder, out) for folder in folders(results)]
    drawn = [one for part in parts for one in part.figures]
    if drawn:
        print(format_table([{"figure": one.recipe.title, "file": str(one.file), "tables": " ".join(one.recipe.tables)} for one in drawn],
                           ("figure", "file", "tables")))  # fmt: skip
        print("each also as .pdf")
    return Drawing(drawn, max(part.status for part in parts))


def draw_folder(folder: Path, out: Path) -> Drawing:
    """Draw what the tables of one folder allow."""
    drawn, broken = [], False
    for stem, recipe, page in pages(folder):
        if isinstance(page, str):
            broken = True
            print(f"{stem}: {page}", file=sys.stderr)
            continue
        with style.context():
            picture, _ = style.save(page, out / stem)
        drawn.append(Drawn(stem, recipe, style.caption_of(page), picture))
    return Drawing(drawn, int(broken))


def stale(results: Path, out: Path) -> list[str]:
    """One line for every picture in `out` that does not show what the tables under `results` give; writes nothing."""
    expected, problems = set(), []
    with contextlib.redirect_stderr(io.StringIO()):  # why a figure is not drawn is no news here
        for stem, _, page in (found for folder in folders(Path(results)) for found in pages(folder)):
            files = [out / f"{stem}.{kind}" for kind in style.KINDS]
            expected.update(files)
            if isinstance(page, str):
                problems.append(f"{files[0]}: its figure cannot be drawn: {page.strip().splitlines()[-1]}")
                continue
            mark = style.shows(page)
            problems += [f"{path}: {what}; draw it with: python -m suite figures" for path in files if (what := fault(path, mark))]
    unknown = {path for kind in style.KINDS for path in out.glob(f"*.{kind}")} - expected
    return problems + [f"{path}: no table gives this picture; remove it" for path in sorted(unknown)]


def fault(path: Path, mark: str) -> str:
    """Why a picture is not one of this mark, or "". Where the mark stands the pixels are believed."""
    if not path.is_file():
        return "missing"
    data = path.read_bytes()
    if mark.encode() not in data:
        return "does not show what the tables give now"
    try:
        if path.suffix == ".png":
            with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                picture.load()
        elif not (data.startswith(b"%PDF-") and data.rstrip().endswith(b"%%EOF")):
            return "is no whole PDF"
    except Exception as error:  # whatever a damaged file does to the decoder
        return f"cannot be decoded ({type(error).__name__})"
    return ""


def folders(results: Path) -> list[Path]:
    """The folders of protocols, of benchmarks, of autopsies and of detectors."""
    return sorted({path.parent for name in ("runs", "bench", "autopsy", "head_to_head") for path in results.glob(f"*/{TABLES[name].path}")})


def pages(folder: Path) -> Iterator[tuple[str, Recipe, Figure | str]]:
    """(file stem, recipe, figure or the words of the error that kept it) of all figures that a folder allows."""
    search = folder.name in PROTOCOLS and PROTOCOLS[folder.name].search  # hundreds of cells: too many for a panel each
    for recipe in figures():
        applies = recipe.protocols is None and not search or folder.name in (recipe.protocols or ())
        if not (applies and (folder / TABLES[recipe.tables[0]].path).exists()):
            continue
        try:
            page = recipe.draw(folder)
        except Exception as error:  # one broken table or figure must not cost the others
            page = isinstance(error, ValueError) and str(error) or traceback.format_exc()
        if page is not None:
            yield f"{folder.name}-{recipe.name}", recipe, page
