"""What dead and living networks use: their loss where some of what they read is exchanged, one panel a scheme."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from paper_figures.figure import figure, some
from paper_figures.runs import commits
from paper_figures.style import CONSTANT, NEUTRAL, handle, legend, page, scheme_look, scheme_order
from suite.evidence import cells
from suite.evidence.autopsy import rises, with_fate
from suite.evidence.jackknife import LEVEL
from suite.evidence.words import called
from suite.records.store import read

COLUMNS = {  # interventions, those on what the image says first
    "none": "nothing\nexchanged", "own": "own patch:\nanother's", "others": "other tokens:\nanother's", "all": "whole input:\nanother's",
    "time": "other tokens:\nanother t", "caption": "caption:\nanother", "positions": "positions:\nexchanged",
    "attention": "attention:\nremoved",
}  # fmt: skip
LEVELS = {
    "constant": "constant (c)", "position": "position alone", "patch": "own patch, linear", "patch_position": "own patch, position, linear",
    "image": "whole image, linear",
}  # fmt: skip
STATES = {"mean_dominated": "all tokens equal", "mean_free": "tokens without a mean", "other": "tokens apart"}
FATES = {"dead": "dead", "unusable": "stuck or untrained", "live": "alive"}
MARKS = {"dead": {"marker": "o"}, "unusable": {"marker": "x"}, "live": {"marker": "o", "markerfacecolor": "white"}}
SPREAD = 0.3  # of a column, over which its networks stand side by side


@figure("interventions", "What a network uses: its loss where something is exchanged", ("autopsy", "references"), ("autopsy",))
def interventions(folder: Path, title: str):
    table = with_fate(read(folder, "autopsy"))
    groups = sorted(some(table, "no network was examined").groupby(["scheme", "params", "depth", "image_tokens"]),
                    key=lambda item: (scheme_order(item[0][0]), item[0]))  # fmt: skip
    levels = read(folder, "references")
    fig, body = page(10.5, 0.9 + 3.5 * len(groups), title, _caption(table))
    panels = body.subplots(len(groups), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for ax, ((scheme, params, depth, tokens), group) in zip(panels, groups, strict=True):
        same = levels[(levels["image_tokens"] == tokens) & levels["data"].isin(group["data"])]
        _panel(ax, group, scheme_look(scheme)[0], same)
        who = f"{called(cells.name(scheme, params))}, {depth} blocks, {tokens} image tokens"
        ax.set_title(f"{who}: {_networks(group)}", loc="left", fontsize=9.5, pad=30)
    panels[-1].set_xticks(range(len(COLUMNS)), list(COLUMNS.values()))
    found = [name for name in FATES if (table["fate"] == name).any()]
    legend(body, [handle(FATES[name], linestyle="", color=NEUTRAL, markersize=6, **MARKS[name]) for name in found])
    return fig


def _panel(ax, group, colour: str, levels) -> None:
    """A point for each network in each column; above it what the loss of the dead rises by."""
    for level in levels.itertuples():
        ax.axhline(level.heldout_loss, **CONSTANT | {"linewidth": 0.7})
        ax.annotate(LEVELS[level.level], (1.005, level.heldout_loss), xycoords=("axes fraction", "data"), va="center", fontsize=7.5,
                    color=NEUTRAL)  # fmt: skip
    networks = group.drop_duplicates("run_id").sort_values(["fate", "lr", "seed"])["run_id"]
    place = dict(zip(networks, np.linspace(-SPREAD, SPREAD, len(networks)) if len(networks) > 1 else [0.0], strict=True))
    columns = {name: x for x, name in enumerate(COLUMNS)}
    for name, rows in group.groupby("fate"):
        ax.plot(rows["intervention"].map(columns) + rows["run_id"].map(place), rows["loss"], linestyle="", color=colour, markersize=5,
                zorder=3, **MARKS[name])  # fmt: skip
    for name, rise in rises(group[group["fate"] == "dead"]).items():
        if name != "none":
            text = f"{rise.mean:+.3f}".replace("-0.000", "+0.000") + ("" if rise.half is None else f"\n± {rise.half:.3f}")
            ax.annotate(text, (columns[name], 1.02), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7.5)
    ax.set(xlim=(-0.5, len(COLUMNS) - 0.5), ylabel="held-out loss")
    ax.grid(False, axis="x")


def _networks(group) -> str:
    """How many networks of each fate, and what became of the tokens of those that are not alive."""
    networks, words = group.drop_duplicates("run_id"), []
    for name in FATES:
        states = Counter(networks.loc[networks["fate"] == name, "state"])
        parts = ", ".join(f"{STATES[state]} in {n}" for state, n in sorted(states.items()))
        words += [f"{sum(states.values())} {FATES[name]}" + f" ({parts})" * (name != "live")] if states else []
    return "; ".join(words)


def _caption(table) -> str:
    networks = table.drop_duplicates("run_id")
    behind = (networks["last_step"] - networks["crash_step"]).dropna()
    dead = f" The dead are examined {behind.min():g} to {behind.max():g} steps behind their crash step." if len(behind) else ""
    return (
        f"A point is one of {len(networks)} networks: the mean squared error of its answer for a "
        f"target token, held against that token's own velocity, over all tokens of {table['samples'].max()} held-out images with fixed "
        "noise and t; other tokens are of the image, and at the same t where nothing else is said. From left to right: by rate and seed, "
        f"the dead first. Above: what the loss of the dead rises by, mean over networks with the {100 * LEVEL:g} % interval (Student's). "
        "Dashed: the same of the best predictors that see so much (references.csv), fitted to training images; linear: a map for each t."
        f"{dead}\nautopsy.csv; {commits(networks['commit'])}."
    )
