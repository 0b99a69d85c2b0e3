"""A scheme from elsewhere in the ranking of the committed ones."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from suite.evidence.cells import runs_of
from suite.evidence.families import start
from suite.evidence.measures import measures
from suite.evidence.ranking import place, placed
from suite.evidence.words import called
from suite.records.values import format_table

COLUMNS = "place", "scheme", "scale", "best_loss", "best_rate", "window", "margin", "edge"
NULL = "gain"  # of `scale`: what every other scheme must beat


def among(mine: Path, committed: Path, depth: int) -> str:
    """The ranking at a depth with the schemes of `controls` and the fixed gains in it, and one's own, which are marked, as a text table.

    mine: a folder of `frontier`; committed: a results folder. Places differ from the ranking's own: there are more to
    be told apart, and a window counts up to 5 % above the best loss of any, which may be the new one's.
    """
    own, theirs = runs_of(mine), pd.concat([runs_of(committed / name) for name in ("frontier", "controls", "scale")], ignore_index=True)
    theirs = theirs[(theirs["protocol"] != "scale") | (theirs["scheme"] == NULL)]
    both = pd.concat([theirs, own[~own["run_id"].isin(theirs["run_id"])]], ignore_index=True)
    entered = {(run.scheme, run.params) for run in own.itertuples()}
    found = placed([one for one in measures(both[both["depth"] == depth]) if one.fresh])
    rows = [{"place": place(at), "scheme": called(one.cell.label) + " <- yours" * ((one.cell.scheme, one.cell.params) in entered),
             "scale": start(one.cell), "best_loss": f"{one.best_loss.value:.3f} [{one.best_loss.low:.3f}, {one.best_loss.high:.3f}]",
             "best_rate": f"{one.best_lr:.2e}", "window": str(one.window), "margin": str(one.margin), "edge": str(one.edge.lr50)}
            for one, at in found]  # fmt: skip
    return f"""{format_table(rows, COLUMNS)}
{depth} blocks. place: by best loss, from the best to the worst that pairs of seeds allow (Holm). scale: the gain on a branch at the start,
where we know it. window, margin: octaves of learning rate. edge: the rate at which half of the runs fail; it compares schemes of one
scale only. More: docs/rules.md"""


def ready(mine: Path) -> bool:
    """Whether the search has come to the loss at the best rate."""
    return any(one.fresh for one in measures(runs_of(mine)))
