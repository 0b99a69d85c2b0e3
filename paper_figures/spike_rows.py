"""What Figures 9 and 10 have in common: the spikes of a run, the one that precedes its crash, and what kinds of weights they are."""

from __future__ import annotations

import re

from paper_figures.fig05_quality import crash_of
from paper_figures.style import PALETTE

SHALLOW = 2  # the paper's families at the onset end at L2
QKV, READ, OTHER = "Q, K, V", "FFN input W_13", "embedding, final, gates"
KINDS = {"Q": QKV, "K": QKV, "V": QKV, "WO": "attention writer W_O", "W13": READ, "W2": "FFN writer W_2"}
COLOURS = dict(zip((QKV, KINDS["WO"], READ, KINDS["W2"], OTHER), (PALETTE[i] for i in (0, 3, 8, 1, 2))))  # in the order of legends


def events(spikes, run_id: str):
    """One row per spike of a run."""
    return spikes[(spikes["run_id"] == run_id) & (spikes["rank"] == 1)].sort_values("step")


def until_crash(spikes, row):
    """The spikes of a run up to its crash, or all where it had none: what comes later is no warning."""
    mine, crash = events(spikes, row.run_id), crash_of(row)
    return mine if crash is None else mine[mine["step"] <= crash]


def came_back(events_):
    """A mask: spikes that no crash followed within the confirmation window."""
    return events_["recovered"].fillna(False).astype(bool)


def fatal(spikes, row) -> list[int]:
    """Steps of the spikes in the window before a crash, the last being the one nearest to it."""
    if crash_of(row) is None:
        return []
    mine = until_crash(spikes, row)
    return [int(step) for step in mine.loc[~came_back(mine), "step"]]


def alarms(spikes, row) -> tuple[int, int]:
    """(spikes up to the crash or the end, those of them that came back)."""
    mine = until_crash(spikes, row)
    return len(mine), int(came_back(mine).sum())


def families(spikes, run_id: str, step: int):
    """The families of one spike, the largest first."""
    return spikes[(spikes["run_id"] == run_id) & (spikes["step"] == step)].sort_values("rank")


def place(family: str) -> tuple[int | None, str]:
    """(block or None, kind of weight) of a family."""
    match = re.fullmatch(r"L(\d+) (.+)", family)
    return (int(match[1]), match[2]) if match else (None, family)


def kind(family: str) -> str:
    """The kind of weight in the words of the legend."""
    return KINDS.get(place(family)[1], OTHER)


def shallow(family: str) -> bool:
    """Whether a family lies where the paper's onset lies: L0 to L2 or the embedding."""
    block, _ = place(family)
    return family == "Embed" or (block is not None and block <= SHALLOW)


def summary(top) -> dict[str, float]:
    """Of a spike's families: their part of the squared norm; how many, and what share of theirs, are shallow, W_O and W_2."""
    squares = top["family_grad_norm"] ** 2
    masks = {"shallow": [shallow(family) for family in top["family"]],
             **{name: [place(family)[1] == name for family in top["family"]] for name in ("WO", "W2")}}
    out = {"covered": squares.sum() / top["grad_norm"].iloc[0] ** 2}
    for name, mask in masks.items():
        out[name], out[f"{name}_share"] = sum(mask), float(squares[mask].sum() / squares.sum())
    return out


def by_kind(top) -> dict[str, float]:
    """Shares of the squared norm of a spike's families, by kind of weight."""
    squares = top["family_grad_norm"] ** 2
    return (squares.groupby(top["family"].map(kind)).sum() / squares.sum()).to_dict()


def notes_of(row, spikes, step: int) -> list[str]:
    """What the picture of one spike says in numbers."""
    facts, crash, (crossed, back) = summary(families(spikes, row.run_id, step)), crash_of(row), alarms(spikes, row)
    lead = "" if crash is None else ", at the crash" if crash == step else f", {crash - step} before the crash"
    return [
        "A spike: the raw global gradient norm rises above 4 times its running median of 100 steps; it counts as a false alarm"
        f" unless the crash comes within {row.window} steps. Spikes of seed {row.seed}{' up to its crash' * (crash is not None)}:"
        f" {crossed}, false alarms: {back}.",
        f"At step {step}{lead}: the 15 largest families hold {facts['covered']:.0%} of the squared gradient norm; of these 15,"
        f" L0 to L{SHALLOW} and the embedding have {facts['shallow_share']:.0%} ({facts['shallow']} families), all W_O"
        f" {facts['WO_share']:.0%} ({facts['WO']}), all W_2 {facts['W2_share']:.0%} ({facts['W2']}).",
    ]
