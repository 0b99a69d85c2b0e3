"""A scheme from elsewhere in the ranking of the committed ones."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from suite.evidence.cells import runs_of
from suite.evidence.measures import measures
from suite.evidence.ranking import place, placed
from suite.evidence.words import called
from suite.records.values import format_table

COLUMNS = "place", "scheme", "best_loss", "best_rate", "window", "margin", "edge"


def among(mine: Path, committed: Path, depth: int) -> str:
    """The ranking at a depth, a row for each committed cell and for each of one's own, which are marked, as a text table.

    mine, committed: folders of one search protocol. The committed numbers may differ a little from the ranking's own:
    a window counts up to 5 % above the best loss of any scheme, which may be the new one's.
    """
    own, theirs = (folder_runs[folder_runs["depth"] == depth] for folder_runs in map(runs_of, (mine, committed)))
    known = set(theirs["run_id"])
    found = measures(pd.concat([theirs, own[~own["run_id"].isin(known)]], ignore_index=True))
    entered = {(run.scheme, run.params) for run in own.itertuples()}
    rows = [{"place": place(at), "scheme": called(one.cell.label) + " <- yours" * ((one.cell.scheme, one.cell.params) in entered),
             "best_loss": f"{one.best_loss.value:.3f} [{one.best_loss.low:.3f}, {one.best_loss.high:.3f}]",
             "best_rate": f"{one.best_lr:.2e}", "window": str(one.window), "margin": str(one.margin), "edge": str(one.edge.lr50)}
            for one, at in placed([one for one in found if one.fresh])]  # fmt: skip
    return (f"{format_table(rows, COLUMNS)}\n{depth} blocks. place: by best loss; schemes that share one are not told apart (pairs of "
            "seeds, Holm).\nwindow, margin: octaves of learning rate; edge: the rate at which half of the runs fail. More: docs/rules.md")


def ready(mine: Path) -> bool:
    """Whether the search has come to the loss at the best rate."""
    return any(one.fresh for one in measures(runs_of(mine)))
