"""Draw every figure that the tables of a results folder allow. A module of this folder with a NAME is a figure:

NAME       file stem; files are <protocol>-<NAME>.png and .pdf
TITLE      what it shows, one line
INPUTS     the tables it reads
PROTOCOLS  names of the protocols it applies to, or None for all
draw(folder, protocol) -> Figure, or None where the tables do not allow it (`style.skip` says why)
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from pathlib import Path

import paper_figures
from paper_figures import style
from suite.tables import format_table


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
    folders = sorted(path.parent for path in results.glob("*/runs.csv"))
    if not folders:
        print(f"{results}: no results to draw; start with: python -m suite run", file=sys.stderr)
        return 2
    drawn, broken = [], False
    for folder in folders:
        for module in figures():
            if module.PROTOCOLS is not None and folder.name not in module.PROTOCOLS:
                continue
            try:
                with style.context():
                    figure = module.draw(folder, folder.name)
                    if figure is not None:
                        picture, _ = style.save(figure, out / f"{folder.name}-{module.NAME}")
                        drawn.append({"figure": module.TITLE, "file": str(picture), "tables": " ".join(module.INPUTS)})
            except Exception as error:  # one broken table or figure must not cost the others
                broken = True
                known = isinstance(error, ValueError) and str(error)
                print(f"{folder.name}-{module.NAME}: {error if known else traceback.format_exc()}", file=sys.stderr)
    if drawn:
        print(format_table(drawn, ("figure", "file", "tables")))
        print("each also as .pdf")
    return 1 if broken else 0
