"""Figure 5: sample quality along training, and the gradient norm that reaches the optimiser."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
from matplotlib.lines import Line2D

from paper_figures.rows import caption, curves_of, load_runs
from paper_figures.style import NEUTRAL, crash_handle, legend, line_of, page, plain_log, scheme_handles, scheme_look, skip
from suite.presets import PROTOCOLS as PRESETS
from suite.records.tables import REAL, read

NAME = "fig05_quality"
TITLE = "Figure 5: sample quality and post-clip gradient norm along training"
INPUTS = ("runs", "curves", "quality")
PROTOCOLS = ("anatomy",)
SMOOTH = 51  # steps in the running median of the gradient norm
FLOOR = {"color": NEUTRAL, "linestyle": (0, (4, 3)), "linewidth": 1, "zorder": 1}
METRICS = {"fid": "FID (log scale)", "inception_score": "score (digit classifier)"}


def draw(folder: Path, protocol: str):
    runs = main_setting(load_runs(folder))
    scored, floor, features = scores_of(folder, runs)
    curves = curves_of(folder, runs)
    if scored.empty:
        return skip(folder, NAME, "no run has a FID")
    shown = runs[runs["run_id"].isin(curves)]
    labels = list(shown["label"].drop_duplicates())
    clip = PRESETS[protocol].clip if protocol in PRESETS else 1.0
    width = max(9.0, 0.6 + 1.4 * len(labels))
    figure, body = page(width, 6.4, TITLE, caption(runs, *_notes(scored, floor, features, clip)))
    grid = body.add_gridspec(2, 1, height_ratios=(1.25, 1))
    for cell, metric in zip(grid[0].subgridspec(1, 2), METRICS):
        draw_scores(body.add_subplot(cell), scored, runs, metric, floor)
    if labels:
        first = None
        for cell, label in zip(grid[1].subgridspec(1, len(labels)), labels):
            ax = body.add_subplot(cell, sharey=first, sharex=first)
            _norms(ax, shown[shown["label"] == label], curves, clip)
            ax.tick_params(labelleft=first is None)
            if first is None:
                ax.set_ylabel("gradient norm, clipped")
                first = ax
    handles = scheme_handles(runs[runs["label"].isin(set(scored["label"]) | set(labels))], markers=True)
    handles.append(Line2D([], [], label="real against real", **FLOOR))
    legend(body, handles + [crash_handle()] * bool(runs["crashed"].any()), width)
    return figure


def main_setting(runs):
    """The runs at the commonest depth and learning rate, the deepest of several: figures of the anatomy show one setting."""
    counts = Counter(zip(runs["depth"], runs["lr"]))
    depth, lr = max(counts, key=lambda setting: (counts[setting], setting))
    chosen = runs[(runs["depth"] == depth) & (runs["lr"] == lr)].copy()
    chosen.attrs = dict(runs.attrs)
    return chosen


def crash_of(row) -> int | None:
    """The crash step of a run, if it crashed."""
    return int(row.crash_step) if row.crashed and pd.notna(row.crash_step) else None


def scores_of(folder: Path, runs):
    """Scores of weights that had not crashed yet with the columns of their run, the real-against-real row or None, and the
    feature network of both. A score taken after a crash, before anyone could know of it, is no sample quality: left out."""
    quality = read(folder, "quality")
    scored = quality[quality["fid"].notna()]
    features = scored.loc[scored["run_id"].isin(runs["run_id"]), "fid_features"].mode()
    scored = scored[scored["fid_features"] == (features[0] if len(features) else "")]
    real = scored[scored["run_id"] == REAL]
    scored = scored.merge(runs[["run_id", "label", "scheme", "variant", "seed", "crash_step", "horizon"]], on="run_id")
    scored = scored.astype({"step": float, "crash_step": float, "horizon": float})
    scored = scored[~(scored["step"] >= scored["crash_step"])].sort_values(["run_id", "step"])
    return scored, real.iloc[0] if len(real) else None, features[0] if len(features) else ""


def noise_note(scored) -> str:
    """How far FID moves in the few steps between the horizon and the end of a run: a scale for differences."""
    late = scored[scored["step"] >= scored["horizon"]].groupby("run_id")["fid"]
    moves = (late.last() - late.first())[late.count() > 1].abs()
    return f" From the horizon to the end of a run (the confirmation window) FID moves by {moves.mean():.2f}." if len(moves) else ""


def draw_scores(ax, scored, runs, metric: str, floor) -> None:
    """A small marker per run and checkpoint, a line through the means of the living runs, crashes as X on the top edge."""
    for label, group in scored.groupby("label", sort=False):
        row = next(runs[runs["label"] == label].itertuples())
        colour, marker = scheme_look(row.scheme)
        ax.plot(group["step"], group[metric], linestyle="", marker=marker, color=colour, markersize=4.5, alpha=0.45,
                markeredgewidth=0, zorder=3)
        means = group.groupby("step")[metric].mean()
        ax.plot(means.index, means, linewidth=1.6, zorder=4, marker=marker, markersize=3, **line_of(row))
    for row in runs[runs["crashed"] & runs["crash_step"].notna()].itertuples():
        ax.plot(row.crash_step, 1.0, "X", transform=ax.get_xaxis_transform(), color=scheme_look(row.scheme)[0],
                markersize=9, markeredgecolor="white", clip_on=False, zorder=6)
    if floor is not None and floor[metric] == floor[metric]:
        ax.axhline(floor[metric], **FLOOR)
    if metric == "fid" and (scored["fid"] > 0).all():
        plain_log(ax)
    ax.set(xlabel="step", ylabel=METRICS[metric])
    ax.set_xlim(left=0)


def _norms(ax, runs, curves, clip: float) -> None:
    """Gradient norm after clipping, faint, with its running median; and in numbers what it was before any crash."""
    before = []
    for row in runs.itertuples():
        curve = curves[row.run_id]
        norm, look = curve["grad_norm"].clip(lower=1e-12, upper=clip), line_of(row)
        ax.plot(curve["step"], norm, color=look["color"], linewidth=0.4, alpha=0.25, rasterized=True, zorder=2)
        ax.plot(curve["step"], norm.rolling(SMOOTH, center=True, min_periods=1).median(), linewidth=1.3, zorder=3, **look)
        if (crash := crash_of(row)) is not None:
            ax.plot(crash, 1.0, "X", transform=ax.get_xaxis_transform(), color=look["color"], markersize=9,
                    markeredgecolor="white", clip_on=False, zorder=6)
            norm = norm[(curve["step"] < crash).to_numpy()]
        before += list(norm.dropna())
    plain_log(ax)
    if before:
        clipped = sum(norm >= clip for norm in before) / len(before)
        ax.text(0.04, 0.04, f"median {sorted(before)[len(before) // 2]:.2f}\nclipped {clipped:.0%}", fontsize=8,
                transform=ax.transAxes, zorder=5, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1})
    ax.set_title(runs["label"].iloc[0], fontsize=8.5)
    ax.set(xlabel="step")
    ax.tick_params(labelsize=8)


def _notes(scored, floor, features: str, clip: float) -> list[str]:
    n = "/".join(f"{int(n)}" for n in sorted(set(scored["fid_n"].dropna())))
    what = (f"FID is on a small digit classifier's 16 features with n={n} samples, not Inception's FID"
            if features.startswith("digits") else f"FID is on the features {features} with n={n} samples")
    real = "" if floor is None else f" Dashed: real against real, FID {floor['fid']:.2g}, score {floor['inception_score']:.3g}."
    return [
        f"{what}; compare it with nothing but itself.{real}{noise_note(scored)}",
        "Small markers: runs; lines: means of the runs not crashed by then; scores taken after a crash are left out; X: crash.",
        f"Lower row: min(gradient norm, clip {clip:g}), raw and running median of {SMOOTH} steps; the numbers are of the steps"
        " before any crash.",
        "The paper (FID-50K, ImageNet) has at its step 50k: LayerScale 2.90, MV-Split 2.60, MV-Split of 1000 layers 2.77; plain at"
        " half the learning rate leads with 3.22 at 20k and is gone at 30k; an arrow reads 1.7x, without saying what of.",
    ]
