"""What the models draw at the end of training: sample grids side by side, depth by scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from paper_figures.figure import figure, some
from paper_figures.runs import caption, load_runs, main_lr, short_outcome
from paper_figures.style import bare, page, scheme_look
from suite.records.completeness import is_picture
from suite.records.store import picture_path

TALL = 2.7  # inches, height of one grid
NARROW = 1.45  # inches, room for the words above it


@figure("samples", "Samples at the end of training", ("runs",))
def samples(folder: Path, title: str):
    runs = load_runs(folder)
    runs["picture"] = [picture_path(folder, row.scheme, row.depth, row.run_id) for row in runs.itertuples()]
    drawn = some(runs[runs["picture"].map(is_picture).astype(bool)], "no picture in samples/")
    runs = runs[(runs["lr"] == main_lr(drawn)) & runs["depth"].isin(drawn["depth"])]
    runs = runs.sort_values("seed", kind="stable").drop_duplicates(["label", "depth"]).sort_index()
    images = {row.run_id: _trimmed(imread(row.picture)) for row in runs.itertuples() if is_picture(row.picture)}
    looks, depths = dict(zip(runs["label"], runs["scheme"])), sorted(set(runs["depth"]))
    aspect = max(image.shape[0] / image.shape[1] for image in images.values())
    width = max(5.0, 0.5 + (max(NARROW, TALL / aspect) + 0.1) * len(looks))
    notes = "One row of a grid per class, one column per sample, first seed of each cell; magenta marks nan or inf."
    fig, body = page(width, 0.7 + len(depths) * (TALL + 0.35), title, caption(runs, notes))
    axes = body.subplots(len(depths), len(looks), squeeze=False)
    cells = {(row.label, row.depth): row for row in runs.itertuples()}
    for (i, j), ax in np.ndenumerate(axes):
        label, row = list(looks)[j], cells.get((list(looks)[j], depths[i]))
        ax.set(xticks=[], yticks=[])
        bare(ax)
        if row is not None and row.run_id in images:
            ax.imshow(images[row.run_id], cmap="gray")
        else:
            ax.set(xlim=(0, 1), ylim=(0, 1), aspect=aspect)
            ax.text(0.5, 0.5, "not run" if row is None else "no samples", ha="center", color="#888888")
        ax.set_title(short_outcome(row) if row is not None else "", fontsize=9)
        if i == 0:
            ax.annotate(label, (0.5, 1), (0, 20), xycoords="axes fraction", textcoords="offset points", ha="center", fontsize=11,
                        fontweight="bold", color=scheme_look(looks[label])[0])  # fmt: skip
        if j == 0:
            ax.set_ylabel(f"depth {depths[i]}", fontsize=11)
    return fig


def _trimmed(image):
    """A grid without the empty room to the right of and below its samples; the corner shows the colour of nothing."""
    used = (image != image[:1, :1]).reshape(*image.shape[:2], -1).any(2)
    rows, columns = (used.any(axis).nonzero()[0] for axis in (1, 0))
    return image[: rows[-1] + 3, : columns[-1] + 3] if len(rows) else image
