"""Held-out loss and sample quality (FID) at the end of training, by depth."""

from __future__ import annotations

from pathlib import Path

from matplotlib.lines import Line2D

from paper_figures.rows import caption, load_runs
from paper_figures.style import NEUTRAL, crash_handle, legend, line_of, page, plain_log, scheme_handles, scheme_look, skip
from suite.records.tables import REAL, read

NAME = "heldout"
TITLE = "Held-out loss and sample quality by depth"
INPUTS = ("runs", "quality")
PROTOCOLS = None


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    runs, floor, features = _with_fid(runs, read(folder, "quality"))
    if runs["heldout_loss"].isna().all() and runs["fid"].isna().all():
        return skip(folder, NAME, "no run has a held-out loss or a FID")
    lrs, depths = sorted(set(runs["lr"])), sorted(set(runs["depth"]))
    scored = [lr for lr in lrs if runs.loc[runs["lr"] == lr, "fid"].notna().any()]
    panels = [("heldout_loss", lr) for lr in lrs] + [("fid", lr) for lr in scored]
    wide = 1.3 + max(0.95, 0.22 * runs["label"].nunique()) * len(depths)
    columns = min(len(panels), max(2, int(12.4 / wide)))
    columns = min(columns, len(lrs)) if scored == lrs and len(lrs) > 1 else columns  # a rate's FID below its loss
    width = min(13.0, max(6.5, 0.6 + columns * wide))
    lines = -(-len(panels) // columns)
    figure, body = page(width, 1.0 + 3.0 * lines, TITLE if scored else "Held-out loss by depth",
                        caption(runs, *_notes(runs, features, scored, lrs)))
    axes = body.subplots(lines, columns, squeeze=False).flatten()
    first = {}
    for ax, (metric, lr) in zip(axes, panels, strict=False):
        if first.setdefault(metric, ax) is not ax:
            ax.sharey(first[metric])
        title = {"heldout_loss": "held-out loss", "fid": "FID of samples"}[metric]
        _panel(ax, runs[runs["lr"] == lr], runs.drop_duplicates("label"), metric, depths)
        ax.set_ylabel({"heldout_loss": "held-out loss at the horizon", "fid": f"FID ({features}, log scale)"}[metric])
        ax.child_axes[0].set_title(title + (f", learning rate {lr:g}" if len(lrs) > 1 else ""))
        if metric == "fid":
            if min((line.get_ydata().min() for line in ax.lines if len(line.get_ydata())), default=0) > 0:
                plain_log(ax)
            if floor == floor:
                ax.axhline(floor, color=NEUTRAL, linestyle=(0, (4, 3)), linewidth=1)
    for ax in axes[len(panels):]:
        ax.remove()
    handles = scheme_handles(runs, markers=True) + [crash_handle(_gone(runs, " "))] * bool(runs["gone"].any())
    if scored and floor == floor:
        label = "real against real (FID)"
        handles.append(Line2D([], [], color=NEUTRAL, linestyle=(0, (4, 3)), linewidth=1, label=label))
    legend(body, handles, width)
    return figure


def _with_fid(runs, quality):
    """Runs with the last `fid` each has; the real-against-real floor; and the one feature network that both are of."""
    scored = quality[quality["fid"].notna()]
    of_runs = scored[scored["run_id"].isin(runs["run_id"])]
    features = of_runs["fid_features"].mode()[0] if len(of_runs) else ""
    scored = scored[scored["fid_features"] == features].sort_values("step")
    last = scored.groupby("run_id")[["fid", "fid_n"]].last()
    floor = last["fid"].get(REAL, float("nan"))
    return runs.join(last, on="run_id"), floor, features


def _panel(ax, runs, looks, metric, depths) -> None:
    """One marker per run, a line through the means, and on the top edge a strip for runs that are dead or untrained."""
    strip = ax.inset_axes([0, 1.0, 1, 0.11], sharex=ax)
    strip.set(ylim=(0, 1), facecolor="#f1f1f1")
    strip.set_yticks([0.5], [_gone(runs, "\n")], fontsize=7.5)
    strip.tick_params(length=0, labelbottom=False)
    strip.grid(False)
    for side in ("bottom", "left"):
        strip.spines[side].set_visible(False)
    at_depth = {depth: [label for label in looks["label"] if label in set(group)] for depth, group in runs.groupby("depth")["label"]}
    for look in looks.itertuples():
        mine = runs[runs["label"] == look.label]
        colour, marker = scheme_look(look.scheme)
        x = {depth: depths.index(depth) + _beside(look.label, labels, len(looks))
             for depth, labels in at_depth.items() if look.label in labels}  # fmt: skip
        alive = mine[~mine["gone"] & mine[metric].notna()]
        ax.plot(alive["depth"].map(x), alive[metric], linestyle="", marker=marker, color=colour, markersize=6.5,
                markeredgecolor="white", markeredgewidth=0.6, zorder=4)
        means = alive.groupby("depth")[metric].mean()
        ax.plot([x[depth] for depth in means.index], means, linewidth=1.2, alpha=0.7, zorder=3, **line_of(look))
        for depth, group in mine.groupby("depth"):
            gone, seen = int(group["gone"].sum()), int((group["status"] == "done").sum())
            if not gone:
                continue
            strip.plot(x[depth], 0.5, "X", color=colour, alpha=1.0 if gone == seen else 0.5, markersize=9,
                       markeredgecolor="white", zorder=5)
    ax.set_xticks(range(len(depths)), [f"{depth}" for depth in depths])
    ax.set(xlim=(-0.5, len(depths) - 0.5), xlabel="depth (blocks)")


def _gone(runs, blank: str) -> str:
    """What a mark on the strip says of a run, of a panel's or a figure's."""
    return "dead" if runs["crashed"].sum() == runs["gone"].sum() else f"dead or{blank}untrained"


def _beside(label: str, labels: list[str], most: int) -> float:
    """How far beside its depth's tick a label's marks lie, so that those at one depth stand side by side about it."""
    return (labels.index(label) - (len(labels) - 1) / 2) * 0.6 / max(5, most)


def _notes(runs, features: str, scored: list[float], lrs: list[float]) -> list[str]:
    notes = ["Lines join the means of runs that lived; one that is dead, or never trained, has only a mark on the top edge."]  # fmt: skip
    if runs[runs["status"] == "done"].groupby(["label", "depth", "lr"])["gone"].nunique().gt(1).any():
        notes.append("A pale mark: some of the seeds.")
    if not scored:
        return notes
    if scored != lrs:
        notes.append("Samples are scored at one rate." if len(scored) == 1 else f"Samples are scored at {len(scored)} of the rates.")
    n = "/".join(f"{n}" for n in sorted(set(runs["fid_n"].dropna())))
    if features.startswith("digits"):
        notes.append(f"FID is on a small digit classifier's 16 features with n={n} samples and is not Inception's FID.")
    else:
        notes.append(f"FID is on the features {features} with n={n} samples; do not compare it across networks or n.")
    return notes
