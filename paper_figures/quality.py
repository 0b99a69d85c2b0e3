"""Figure 5 and Table 1: sample quality along training, and the gradient norm that reaches the optimiser."""

from __future__ import annotations

from pathlib import Path

from paper_figures import style
from paper_figures.figure import figure, some
from paper_figures.runs import caption, crash_of, curves_of, load_runs, main_setting, until_horizon
from suite.presets import PROTOCOLS
from suite.records.store import REAL, read

SMOOTH = 51  # steps in the running median of the gradient norm
METRICS = {"fid": "FID (log scale)", "inception_score": "score (digit classifier)"}


# ---- scores

def of_one_network(quality, runs):
    """The rows that have a FID, all of the one feature network that most of these runs' are of, and its name."""
    scored = quality[quality["fid"].notna()]
    features = next(iter(scored.loc[scored["run_id"].isin(runs["run_id"]), "fid_features"].mode()), "")
    return scored[scored["fid_features"] == features], features


def scores_of(folder: Path, runs):
    """Scores of weights that had not crashed yet with the columns of their run, the real-against-real row or None,
    and the feature network of both. A score taken after a crash, before anyone could know of it, is no sample
    quality: left out."""
    scored, features = of_one_network(read(folder, "quality"), runs)
    real = scored[scored["run_id"] == REAL]
    scored = scored.merge(runs[["run_id", "label", "scheme", "variant", "seed", "crash_step", "horizon"]], on="run_id")
    scored = scored.astype({"step": float, "crash_step": float, "horizon": float})
    scored = scored[~(scored["step"] >= scored["crash_step"])].sort_values(["run_id", "step"])
    return scored, real.iloc[0] if len(real) else None, features


def features_note(what: str, scored, features: str, ours: str, others: str) -> str:
    """Of what features and how many samples; and what follows, for our own digit classifier and for others."""
    n = "/".join(f"{n:.0f}" for n in sorted(set(scored["fid_n"].dropna())))
    if features.startswith("digits"):
        return f"{what} on a small digit classifier's 16 features with n={n} samples{ours}"
    return f"{what} on the features {features} with n={n} samples{others}"


def noise_note(scored) -> str:
    """How far FID moves in the few steps between the horizon and the end of a run: a scale for differences."""
    late = scored[scored["step"] >= scored["horizon"]].groupby("run_id")["fid"]
    moves = (late.last() - late.first())[late.count() > 1].abs()
    return f" From the horizon to the end of a run (the confirmation window) FID moves by {moves.mean():.2f}." if len(moves) else ""


# ---- Figure 5

@figure("fig05_quality", "Figure 5: sample quality and post-clip gradient norm along training", ("runs", "curves", "quality"), ("anatomy",))
def quality(folder: Path, title: str):
    runs = main_setting(load_runs(folder))
    scored, floor, features = scores_of(folder, runs)
    some(scored, "no run has a FID")
    curves = curves_of(folder, runs)
    shown = runs[runs["run_id"].isin(curves)]
    labels, noise = list(shown["label"].drop_duplicates()), noise_note(scored)
    scored = scored[~(scored["step"] > scored["horizon"])]  # the last score of a run is behind its horizon
    clip = PROTOCOLS[folder.name].clip if folder.name in PROTOCOLS else 1.0
    width = max(9.0, 0.6 + 1.4 * len(labels))
    fig, body = style.page(width, 6.4, title, caption(runs, *_notes(scored, runs, floor, features, clip), noise.strip()))
    above, below = body.add_gridspec(2, 1, height_ratios=(1.25, 1))
    for cell, metric in zip(above.subgridspec(1, 2), METRICS):
        draw_scores(body.add_subplot(cell), scored, runs, metric, floor)
    first = None
    for cell, label in zip(below.subgridspec(1, len(labels)), labels) if labels else ():
        ax = body.add_subplot(cell, sharey=first, sharex=first)
        _norms(ax, shown[shown["label"] == label], curves, clip)
        ax.tick_params(labelleft=first is None)
        ax.set_title("\n".join(style.wrap(label, (width - 0.6) / len(labels) - 0.1, 9)), fontsize=9)
        ax.set_ylabel("gradient norm, clipped" if first is None else "")
        first = first or ax
    handles = style.scheme_handles(runs[runs["label"].isin(set(scored["label"]) | set(labels))], markers=True)
    handles.append(style.handle("real against real", **style.CONSTANT))
    style.legend(body, handles + [style.crash_handle()] * bool(runs["crashed"].any()))
    return fig


def draw_scores(ax, scored, runs, metric: str, floor) -> None:
    """A line per run, which ends with its last checkpoint before a crash; crashes as X on the top edge. No mean: it would
    be of other runs at every checkpoint."""
    for row in runs.itertuples():
        mine = scored[scored["run_id"] == row.run_id]
        ax.plot(mine["step"], mine[metric], linewidth=1.0, alpha=0.75, marker=style.scheme_look(row.scheme)[1], markersize=4.5,
                markeredgewidth=0, zorder=3, **style.line_of(row))  # fmt: skip
        if (crash := crash_of(row)) is not None:
            style.mark_crash(ax, crash, style.scheme_look(row.scheme)[0])
    if floor is not None and floor[metric] == floor[metric]:
        ax.axhline(floor[metric], **style.CONSTANT)
    if metric == "fid" and (scored["fid"] > 0).all():
        style.plain_log(ax)
    ax.set(xlabel="step", ylabel=METRICS[metric])
    ax.set_xlim(left=0)


def _norms(ax, runs, curves, clip: float) -> None:
    """Gradient norm after clipping, faint, with its running median; and in numbers what it was before any crash."""
    before = []
    for row in runs.itertuples():
        curve = until_horizon(curves[row.run_id], row)
        norm, look = curve["grad_norm"].clip(lower=1e-12, upper=clip), style.line_of(row)
        ax.plot(curve["step"], norm, color=look["color"], linewidth=0.4, alpha=0.25, rasterized=True, zorder=2)
        ax.plot(curve["step"], norm.rolling(SMOOTH, center=True, min_periods=1).median(), linewidth=1.3, zorder=3, **look)
        if (crash := crash_of(row)) is not None:
            style.mark_crash(ax, crash, look["color"])
            norm = norm[curve["step"] < crash]
        before += list(norm.dropna())
    style.plain_log(ax)
    if before:
        clipped = sum(norm >= clip for norm in before) / len(before)
        ax.text(0.04, 0.04, f"median {sorted(before)[len(before) // 2]:.2f}\nclipped {clipped:.0%}", fontsize=8,
                transform=ax.transAxes, zorder=5, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1})  # fmt: skip
    ax.set(xlabel="step")
    ax.tick_params(labelsize=8)


def _notes(scored, runs, floor, features: str, clip: float) -> list[str]:
    steps = sorted(set(scored["step"]))
    counts = scored.groupby(["label", "step"]).size().unstack(fill_value=0)
    left = [f"{label} {', '.join(map(str, counts.loc[label]))} of {n}" for label, n in runs.groupby("label", sort=False).size().items()
            if label in counts.index]  # fmt: skip
    real = "" if floor is None else f" Dashed: real against real, FID {floor['fid']:.2g}, score {floor['inception_score']:.3g}."
    return [
        f"A line is a run, up to its last checkpoint before a crash (X). Runs left at {', '.join(f'{step:g}' for step in steps)} steps: "
        f"{'; '.join(left)}.",
        features_note("FID is", scored, features, ", not Inception's FID", "") + f"; compare it with nothing but itself.{real}",
        f"Lower row: min(gradient norm, clip {clip:g}), raw and running median of {SMOOTH} steps; the numbers are of the steps"
        " before any crash.",
        "The paper (FID-50K, ImageNet) has at its step 50k: LayerScale 2.90, MV-Split 2.60, MV-Split of 1000 layers 2.77; plain at"
        " half the learning rate leads with 3.22 at 20k and is gone at 30k; an arrow reads 1.7x, without saying what of.",
    ]
