"""What the autopsies say of a group of networks: by how much the loss rises under each intervention, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from suite.evidence.cells import name
from suite.evidence.jackknife import LEVEL
from suite.evidence.markdown import table as markdown
from suite.evidence.words import called
from suite.records.store import read
from suite.verdict.outcome import fate

GROUP = ["scheme", "arm", "params", "writers", "gate_lr", "depth", "image_tokens", "fate"]


HEADS = {"own": "own patch of another image", "others": "other tokens of another image", "all": "all of another image", "time": "other t",
         "caption": "other caption", "positions": "positions exchanged", "attention": "attention removed"}  # fmt: skip


class Rise(NamedTuple):
    """Mean over n networks, and Student's interval; without one where n is 1."""

    n: int
    mean: float
    half: float | None


def with_fate(table):
    """The table with a column `fate`: dead, unusable (never trained, or stuck) or live."""
    return table.assign(fate=table["outcome"].map(fate))


def rises(group) -> dict[str, Rise]:
    """By intervention, of the rows of networks that are of one kind."""
    from scipy.stats import t

    out = {}
    for intervention, rows in group.groupby("intervention"):
        n, values = len(rows), rows["rise"]
        half = float(t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / n**0.5) if n > 1 else None
        out[intervention] = Rise(n, float(values.mean()), half)
    return out


def left_of_the_dead(results: Path) -> str:
    """Markdown: the mean loss of each kind of dead network, by how much each intervention raises it, and the levels to compare with."""
    folder = results / "autopsy"
    found = with_fate(read(folder, "autopsy")).query("fate == 'dead'")
    names, rows = [each for each in found["intervention"].unique() if each != "none"], []
    for _, group in found.groupby(GROUP, sort=False):
        one, by = group.iloc[0], rises(group)
        intact = group.loc[group["intervention"] == "none", "loss"]
        rows.append([f"{called(name(one['scheme'], one['params']))}, {one['depth']} blocks", len(intact), f"{intact.mean():.3f}",
                     *(_rise(by[each]) for each in names)])  # fmt: skip
    levels = read(folder, "references").set_index(["data", "image_tokens", "level"])["heldout_loss"]
    known = levels[found["data"].iloc[0]][found["image_tokens"].iloc[0]]
    said = ", ".join(f"{level.replace('_', ' and ')} {loss:.3f}" for level, loss in known.sort_values(ascending=False).items())
    shown = markdown(["dead networks", "n", "loss", *(HEADS[each] for each in names)], rows)
    return (f"{shown}\n\nRise of the held-out loss, mean over networks [95 %, Student's]. "
            f"Of the best predictors that see only so much: {said}.")  # fmt: skip


def _rise(one: Rise) -> str:
    return f"{one.mean:+.3f}" + ("" if one.half is None else f" [{one.mean - one.half:+.3f}, {one.mean + one.half:+.3f}]")
