"""What a figure is: a function of a results folder, with the name of its files, its title, and the tables that it
reads.

@figure(name, title, tables, protocols)
def some_figure(folder, title) -> matplotlib's Figure. Raises NotDrawn where the tables do not allow it.

tables: it is drawn only of folders that have the first (runs.csv, or bench.csv of results/bench)
protocols: names of those it applies to, or None for all but searches
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib import figure as pages

from paper_figures import style


class NotDrawn(Exception):
    """Why the tables do not allow a figure, in one line."""


@dataclass(frozen=True)
class Recipe:
    name: str
    title: str
    tables: tuple[str, ...]
    protocols: tuple[str, ...] | None
    make: Callable[[Path, str], pages.Figure]

    def draw(self, folder: Path) -> pages.Figure | None:
        """The figure of a folder's tables; None where they do not allow it, and a line on standard error says why."""
        try:
            with style.context():
                return self.make(folder, self.title)
        except NotDrawn as why:
            print(f"{folder.name}-{self.name}: not drawn: {why}", file=sys.stderr)


def figure(name: str, title: str, tables: tuple[str, ...], protocols: tuple[str, ...] | None = None):
    """Decorator: makes a `Recipe` of a function."""
    return lambda make: Recipe(name, title, tables, protocols, make)


def some(rows, why: str):
    """The rows, if there is any; else NotDrawn says why."""
    if not len(rows):
        raise NotDrawn(why)
    return rows
