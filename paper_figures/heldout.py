"""Held-out loss and sample quality (FID) at the end of training, by depth."""

from __future__ import annotations

from pathlib import Path

from paper_figures.figure import figure, some
from paper_figures.quality import features_note, of_one_network
from paper_figures.runs import caption, load_runs
from paper_figures.style import CONSTANT, crash_handle, handle, legend, line_of, page, plain_log, scheme_handles, scheme_look
from suite.records.store import REAL, read

COMPANY = 2  # schemes that a panel must compare
METRICS = {"heldout_loss": ("held-out loss", "held-out loss at the horizon"), "fid": ("FID of samples", "FID ({}, log scale)")}


@figure("heldout", "Held-out loss and sample quality by depth", ("runs", "quality"))
def heldout(folder: Path, title: str):
    runs = load_runs(folder)
    scored, features = of_one_network(read(folder, "quality"), runs)
    last = scored.sort_values("step").groupby("run_id")[["fid", "fid_n"]].last()
    runs, floor = runs.join(last, on="run_id"), last["fid"].get(REAL, float("nan"))
    lrs, depths = sorted(set(runs["lr"])), sorted(set(runs["depth"]))
    panels = [(metric, lr) for metric in METRICS for lr in lrs if _has_a_course(runs[runs["lr"] == lr], metric)]
    some(panels, f"at no rate {COMPANY} schemes have a living run at each of two depths")
    scored, lrs = ([lr for metric, lr in panels if metric == name] for name in ("fid", "heldout_loss"))
    wide = 1.1 + max(0.95, 0.19 * runs["label"].nunique()) * len(depths)
    columns = min(len(panels), max(2, int(12.9 / wide)))
    columns = min(columns, len(lrs)) if scored == lrs and len(lrs) > 1 else columns  # a rate's FID below its loss
    lines = -(-len(panels) // columns)
    fig, body = page(min(13.0, max(6.5, 0.6 + columns * wide)), 1.0 + 3.0 * lines, title if scored else "Held-out loss by depth",
                     caption(runs, *_notes(runs, features, scored, lrs)))  # fmt: skip
    axes = body.subplots(lines, columns, squeeze=False).flatten()
    first = {}
    for ax, (metric, lr) in zip(axes, panels, strict=False):
        if first.setdefault(metric, ax) is not ax:
            ax.sharey(first[metric])
        words, label = METRICS[metric]
        _panel(ax, runs[runs["lr"] == lr], runs.drop_duplicates("label"), metric, depths)
        ax.set_ylabel(label.format(features))
        ax.child_axes[0].set_title(words + (f", rate {lr:g}" if runs["lr"].nunique() > 1 else ""), fontsize=9.5)
        if metric == "fid":
            if min((line.get_ydata().min() for line in ax.lines if len(line.get_ydata())), default=0) > 0:
                plain_log(ax)
            if floor == floor:
                ax.axhline(floor, **CONSTANT)
    for ax in axes[len(panels) :]:
        ax.remove()
    handles = scheme_handles(runs, markers=True) + [crash_handle(_gone(runs, " "))] * bool(runs["gone"].any())
    legend(body, handles + [handle("real against real (FID)", **CONSTANT)] * bool(scored and floor == floor))
    return fig


def _has_a_course(runs, metric: str) -> bool:
    """Whether a panel shows more than scattered points: schemes to compare, each with living runs at two depths."""
    alive = runs[~runs["gone"] & runs[metric].notna()]
    return (alive.groupby("label")["depth"].nunique() > 1).sum() >= COMPANY


def _panel(ax, runs, looks, metric, depths) -> None:
    """One marker per run, a line through the means of cells that lost no run, and on the top edge a strip for the dead and untrained."""
    strip = ax.inset_axes([0, 1.0, 1, 0.11], sharex=ax)
    strip.set(ylim=(0, 1), facecolor="#f1f1f1")
    strip.set_yticks([0.5], [_gone(runs, "\n")], fontsize=7.5)
    strip.tick_params(length=0, labelbottom=False)
    strip.grid(False)
    for side in ("bottom", "left"):
        strip.spines[side].set_visible(False)
    for look in looks.itertuples():
        mine = runs[runs["label"] == look.label]
        colour, marker = scheme_look(look.scheme)
        x = {depth: depths.index(depth) + _beside(look.label, looks, set(runs.loc[runs["depth"] == depth, "label"]))
             for depth in set(mine["depth"])}  # fmt: skip
        alive = mine[~mine["gone"] & mine[metric].notna()]
        ax.plot(alive["depth"].map(x), alive[metric], linestyle="", marker=marker, color=colour, markersize=6.5,
                markeredgecolor="white", markeredgewidth=0.6, zorder=4)  # fmt: skip
        whole = ~mine.groupby("depth")["gone"].any()  # a mean of those that lived would be too good
        means = alive.groupby("depth")[metric].mean().reindex(whole.index).where(whole)
        ax.plot([x[depth] for depth in means.index], means, linewidth=1.2, alpha=0.7, zorder=3, **line_of(look))
        for depth, group in mine.groupby("depth"):
            if group["gone"].any():
                every = group["gone"].sum() == (group["status"] == "done").sum()
                strip.plot(x[depth], 0.5, "X", color=colour, alpha=1.0 if every else 0.5, markersize=9, markeredgecolor="white", zorder=5)
    ax.set_xticks(range(len(depths)), [f"{depth}" for depth in depths])
    ax.set(xlim=(-0.5, len(depths) - 0.5), xlabel="depth (blocks)")


def _gone(runs, blank: str) -> str:
    """What a mark on the strip says of a run, of a panel's or a figure's."""
    return "dead" if runs["crashed"].sum() == runs["gone"].sum() else f"dead or{blank}untrained"


def _beside(label: str, looks, there: set[str]) -> float:
    """How far beside its depth's tick a label's marks lie, so that those that are there stand side by side about it."""
    labels = [each for each in looks["label"] if each in there]
    return (labels.index(label) - (len(labels) - 1) / 2) * 0.6 / max(5, len(looks))


def _notes(runs, features: str, scored: list[float], lrs: list[float]) -> list[str]:
    notes = ["Lines join the means of cells in which every run lived; one that is dead, or never trained, has only a mark on the top edge."]
    if runs[runs["status"] == "done"].groupby(["label", "depth", "lr"])["gone"].nunique().gt(1).any():
        notes.append("A pale mark: some of the seeds.")
    if scored and scored != lrs:
        notes.append("Samples are scored at one rate." if len(scored) == 1 else f"Samples are scored at {len(scored)} of the rates.")
    ours, others = " and is not Inception's FID.", "; do not compare it across networks or n."
    return notes + [features_note("FID is", runs, features, ours, others)] * bool(scored)
