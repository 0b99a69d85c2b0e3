"""Draw every figure that the tables of a results folder allow. A module of this folder with a NAME is a figure:

NAME       file stem; files are <protocol>-<NAME>.png and .pdf
TITLE      what it shows, one line
INPUTS     the tables it reads; it is drawn only of folders that have the first (runs.csv, or bench.csv of results/bench)
PROTOCOLS  names of the protocols it applies to, or None for all
draw(folder, protocol) -> Figure, or None where the tables do not allow it (`style.skip` says why)
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pkgutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread

import paper_figures
from paper_figures import style
from suite.records.schema import TABLES
from suite.records.tables import format_table

BLOCK, BRIGHTNESS, SHARE = 16, 0.15, 0.02  # pixels a side; of 1; of all squares. 0.15 is a line or a word more or less in a square


def figures() -> list:
    """The figure modules of this folder, by file name."""
    modules = [importlib.import_module(f"paper_figures.{module.name}")
               for module in pkgutil.iter_modules(paper_figures.__path__)]
    found = [module for module in modules if hasattr(module, "NAME")]
    if len({module.NAME for module in found}) < len(found):
        raise ValueError(f"two figures share a NAME: {', '.join(sorted(module.NAME for module in found))}")
    return found


def draw_all(results: Path, out: Path) -> int:
    """Draw all protocols found under `results` into `out`; exit status 0, 1 if a figure broke, 2 if there is no run."""
    results, out = Path(results), Path(out)
    if not _folders(results):
        print(f"{results}: no results to draw; start with: python -m suite run", file=sys.stderr)
        return 2
    drawn, broken = [], False
    for folder in _folders(results):
        pictures, bad = draw_folder(folder, out)
        drawn, broken = drawn + pictures, broken or bad
    if drawn:
        print(format_table(drawn, ("figure", "file", "tables")))
        print("each also as .pdf")
    return 1 if broken else 0


def draw_folder(folder: Path, out: Path) -> tuple[list[dict], bool]:
    """Draw what the tables of one folder allow; rows figure, file, tables, and whether a figure broke."""
    drawn, broken = [], False
    for stem, module, figure in _drawn(folder):
        if isinstance(figure, str):
            broken = True
            print(f"{stem}: {figure}", file=sys.stderr)
            continue
        with style.context():
            picture, _ = style.save(figure, out / stem)
        drawn.append({"figure": module.TITLE, "file": str(picture), "tables": " ".join(module.INPUTS)})
    return drawn, broken


def stale(results: Path, out: Path) -> list[str]:
    """One line for every picture in `out` that does not show what the tables under `results` give now; nothing is written."""
    expected, problems = set(), []
    with contextlib.redirect_stderr(io.StringIO()):  # why a figure is not drawn is no news here
        for stem, _, figure in (found for folder in _folders(Path(results)) for found in _drawn(folder)):
            files = [out / f"{stem}.{kind}" for kind in style.KINDS]
            expected.update(files)
            if isinstance(figure, str):
                problems.append(f"{files[0]}: its figure cannot be drawn: {figure.strip().splitlines()[-1]}")
                continue
            mark = style.shows(figure).encode()
            old = [path for path in files if path.is_file() and mark in path.read_bytes()]
            for path in files:
                if not path.is_file():
                    problems.append(f"{path}: missing; draw it with: python -m suite figures")
                elif path not in old:
                    problems.append(f"{path}: does not show what the tables give now; draw it again with: python -m suite figures")
            if old == files:
                with tempfile.TemporaryDirectory() as aside, style.context():
                    fresh = style.save(figure, Path(aside) / stem)
                    problems += [f"{path}: was painted over; draw it again with: python -m suite figures" for path in painted(files, fresh)]
    unknown = {path for kind in style.KINDS for path in out.glob(f"*.{kind}")} - expected
    return problems + [f"{path}: no table gives this picture; remove it" for path in sorted(unknown)]


def painted(files: list[Path], fresh: list[Path]) -> list[Path]:
    """Of a figure's files [PNG, PDF] those that look otherwise than the same just drawn.

    Where the pictures' pixels are equal, the same matplotlib has drawn both, and the PDFs are equal to the byte. Another
    build sets type and edges a little otherwise: then the brightness of squares of BLOCK pixels may differ by BRIGHTNESS, in
    SHARE of them by more, and nothing is said of the PDF.
    """
    old, new = (imread(path)[..., :3] for path in (files[0], fresh[0]))
    if old.shape == new.shape and np.array_equal(old, new):
        return [files[1]] if files[1].read_bytes() != fresh[1].read_bytes() else []
    rows, columns = (min(a, b) // BLOCK for a, b in zip(old.shape[:2], new.shape[:2], strict=True))
    means = [p[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK, 3).mean((1, 3)) for p in (old, new)]
    resized = max(abs(a / b - 1) for a, b in zip(old.shape[:2], new.shape[:2], strict=True))
    different = (np.abs(means[0] - means[1]).max(-1) > BRIGHTNESS).mean()
    return [files[0]] if resized > SHARE or different > SHARE else []


def _folders(results: Path) -> list[Path]:
    """The folders of protocols and of benchmarks."""
    return sorted({path.parent for name in ("runs", "bench") for path in results.glob(f"*/{TABLES[name].path}")})


def _drawn(folder: Path) -> Iterator[tuple[str, ModuleType, Figure | str]]:
    """(file stem, module, figure, or the words of the error that kept it) of every figure that the tables of a folder allow."""
    for module in figures():
        if module.PROTOCOLS is not None and folder.name not in module.PROTOCOLS:
            continue
        if not (folder / TABLES[module.INPUTS[0] if module.INPUTS else "runs"].path).exists():
            continue
        try:
            with style.context():
                figure = module.draw(folder, folder.name)
        except Exception as error:  # one broken table or figure must not cost the others
            known = isinstance(error, ValueError) and str(error)
            figure = known or traceback.format_exc()
        if figure is not None:
            yield f"{folder.name}-{module.NAME}", module, figure
