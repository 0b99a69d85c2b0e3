"""What the models draw at the end of training: one grid a scheme, and beside them what a dead run draws."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.image import imread

from paper_figures.figure import figure, some
from paper_figures.runs import caption, load_runs, main_lr, short_outcome
from paper_figures.style import bare, page, scheme_look
from suite.records.completeness import is_picture
from suite.records.schema import TABLES
from suite.records.store import picture_path

TALL = 2.7  # inches, height of one grid
NARROW = 1.6  # inches, room for the words above it
BORROWED = "anatomy"  # the protocol whose runs die, and are sampled all the same


@figure("samples", "Samples at the end of training", ("runs",))
def samples(folder: Path, title: str):
    drawn = some(_pictured(folder), "no picture in samples/")
    runs = _first(drawn[(drawn["lr"] == main_lr(drawn)) & (drawn["depth"] == drawn["depth"].max())])
    shown, notes = runs, ["One row of a grid per class, one column per sample, first seed; magenta marks nan or inf."]
    if not runs["gone"].any() and len(dead := _dead_elsewhere(folder)):
        shown = pd.concat([runs, dead])
        notes.append(f"The last grid is of protocol {BORROWED}: here no run that died was sampled.")
    images = [_trimmed(imread(path)) for path in shown["picture"]]
    aspect = max(image.shape[0] / image.shape[1] for image in images)
    width = max(5.0, 0.3 + (max(NARROW, TALL / aspect) + 0.15) * len(shown))
    fig, body = page(width, 1.0 + TALL, f"{title}, {runs['depth'].iloc[0]} blocks", caption(runs, *notes))
    for ax, row, image in zip(body.subplots(1, len(shown), squeeze=False)[0], shown.itertuples(), images, strict=True):
        ax.set(xticks=[], yticks=[])
        bare(ax)
        ax.imshow(image, cmap="gray")
        ax.set_title(short_outcome(row), fontsize=9)
        ax.annotate(row.label.replace(" on ", "\non "), (0.5, 1), (0, 20), xycoords="axes fraction", textcoords="offset points",
                    ha="center", fontsize=11, fontweight="bold", color=scheme_look(row.scheme)[0])  # fmt: skip
    return fig


def _pictured(folder: Path) -> pd.DataFrame:
    """The runs that have a picture, and its path."""
    runs = load_runs(folder)
    runs["picture"] = [picture_path(folder, row.scheme, row.depth, row.run_id) for row in runs.itertuples()]
    return runs[runs["picture"].map(is_picture).astype(bool)]


def _first(runs: pd.DataFrame) -> pd.DataFrame:
    """The first seed of each scheme and variant that lived, and the first that did not."""
    return runs.sort_values("seed", kind="stable").drop_duplicates(["label", "gone"]).sort_values(["order", "variant", "gone"])


def _dead_elsewhere(folder: Path) -> pd.DataFrame:
    """A dead run with a picture, of the protocol beside this one whose runs die; or none."""
    other = folder.parent / BORROWED
    runs = _pictured(other) if (other / TABLES["runs"].path).exists() else pd.DataFrame({"gone": []})
    return _first(runs[runs["gone"].astype(bool)]).head(1) if len(runs) else runs


def _trimmed(image):
    """A grid without the empty room to the right of and below its samples; the corner shows the colour of nothing."""
    used = (image != image[:1, :1]).reshape(*image.shape[:2], -1).any(2)
    rows, columns = (used.any(axis).nonzero()[0] for axis in (1, 0))
    return image[: rows[-1] + 3, : columns[-1] + 3] if len(rows) else image
