"""Table 1: FID and score at the checkpoints, rendered beside the paper's own."""

from __future__ import annotations

from pathlib import Path

from paper_figures.figure import figure, some
from paper_figures.quality import features_note, noise_note, scores_of
from paper_figures.runs import caption, load_runs, main_setting
from paper_figures.style import NEUTRAL, page, scheme_look

PAPER_STEPS = ("10k", "20k", "30k", "40k", "50k")
PAPER = {  # "400 layers, ...": FID/IS at PAPER_STEPS; "—" after a crash
    "plain, learning rate η": ("—",) * 5,
    "plain, η/2": ("5.92 / 108.6", "3.22 / 152.2", "—", "—", "—"),
    "LayerScale": ("14.08 / 59.2", "6.50 / 96.6", "4.09 / 130.5", "3.33 / 149.6", "2.90 / 165.5"),
    "MV-Split": ("7.23 / 89.8", "3.64 / 139.9", "3.09 / 166.5", "2.79 / 182.0", "2.60 / 185.5"),
    "MV-Split, 1000 layers": ("5.47 / 117.3", "2.92 / 178.2", "2.68 / 196.6", "2.64 / 209.4", "2.77 / 217.3"),
}
GREY = "#767676"
ROW, NAMES, COLUMN = 0.38, 2.75, 1.28  # inches: height of a row, width of the names and of a column


@figure("table1_quality", "Table 1: FID and score at the checkpoints", ("runs", "quality"), ("anatomy",))
def table1(folder: Path, title: str):
    runs = main_setting(load_runs(folder))
    scored, floor, features = scores_of(folder, runs)
    noise = noise_note(scored)
    scored = scored[scored["step"] <= scored["horizon"].fillna(float("inf"))]  # the last row of a run is past its horizon
    steps = some(sorted(set(scored["step"])), "no run has a FID")
    cells = table(runs, scored, steps)
    width = max(9.0, 0.6 + NAMES + COLUMN * max(len(steps), 5))
    rows = len(cells) + 0.85 * len(PAPER) + 3.0 + 0.8 * (floor is not None)
    fig, body = page(width, 0.5 + ROW * rows, title, caption(runs, *_notes(scored, features, noise)))
    ax = body.subplots()
    ax.set(xlim=(-0.07, width - 0.25), ylim=(rows, -0.1))
    ax.axis("off")
    y = _header(ax, 0, "this project", [f"step {step:g}" for step in steps], "black")
    for label, row in cells.items():
        scheme = runs.loc[runs["label"] == label, "scheme"].iloc[0]
        ax.text(0, y, label, va="center", fontsize=10, fontweight="bold", color=scheme_look(scheme)[0])
        ax.text(NAMES - 0.2, y, f"{row['n']}", va="center", ha="right", fontsize=10)
        for i, step in enumerate(steps):
            fid, main, small = row[step]
            known = [other[step][0] for other in cells.values() if other[step][0] is not None]
            weight = "bold" if len(known) > 1 and fid == min(known) else "normal"
            ax.text(_x(i), y - 0.13 * bool(small), main, va="center", ha="center", fontsize=10, fontweight=weight)
            ax.text(_x(i), y + 0.27, small, va="center", ha="center", fontsize=7.5, color=NEUTRAL)
        y += 1
    if floor is not None:
        ax.text(0, y, f"real samples: {floor['fid']:.2f} / {floor['inception_score']:.2f}", va="center", fontsize=9, color=NEUTRAL)
    y = _header(ax, y + 0.2 + 0.8 * (floor is not None), "the paper", [f"step {step}" for step in PAPER_STEPS], GREY)
    look = {"va": "center", "fontsize": 9.5, "color": GREY}
    for name, values in PAPER.items():
        ax.text(0, y, name, **look)
        ax.text(NAMES - 0.2, y, "1", ha="right", **look)
        for i, value in enumerate(values):
            ax.text(_x(i), y, value, ha="center", **look)
        y += 0.85
    return fig


def table(runs, scored, steps) -> dict[str, dict]:
    """By label: n, and at each step (mean FID or None, the cell's first line, its second)."""
    out = {}
    for label, group in runs[runs["status"] == "done"].groupby("label", sort=False):
        out[label] = {"n": len(group)}
        for step in steps:
            at = scored[(scored["label"] == label) & (scored["step"] == step)]
            dead = int(((group["crash_step"].astype(float) <= step) | (group["gone"] & ~group["crashed"])).sum())
            if at.empty:
                out[label][step] = (None, "—" if dead else "", f"{dead}/{len(group)} lost" if 0 < dead < len(group) else "")
                continue
            fid, low, high = at["fid"].mean(), at["fid"].min(), at["fid"].max()
            small = f"{low:.2f}–{high:.2f}" if len(at) > 1 else ""
            small = "; ".join(filter(None, [small, f"{dead}/{len(group)} lost" * bool(dead)]))
            out[label][step] = (fid, f"{fid:.2f} / {at['inception_score'].mean():.2f}", small)
    return out


def _x(i: int) -> float:
    return NAMES + COLUMN * (i + 0.5)


def _header(ax, y: float, left: str, columns, colour: str) -> float:
    """A head line with rules above and below it; returns the height of the first row."""
    ax.text(0, y + 0.45, left, va="center", fontsize=10, fontweight="bold", color=colour)
    ax.text(NAMES - 0.2, y + 0.45, "runs", va="center", ha="right", fontsize=9, color=colour)
    for i, column in enumerate(columns):
        ax.text(_x(i), y + 0.45, column, va="center", ha="center", fontsize=9.5, color=colour)
    for at, width in ((y, 1.2), (y + 0.85, 0.7)):
        ax.plot([0, _x(len(columns) - 0.5)], [at, at], color=colour, linewidth=width, clip_on=False)
    return y + 1.4


def _notes(scored, features: str, noise: str) -> list[str]:
    return [
        "Cells: FID (lower is better) / score (higher is better), means of the runs not lost by then, below them the range of FID"
        f" over seeds; bold: lowest FID of the column; dash: lost, that is dead by then or untrained.{noise}",
        features_note("FID and score are", scored, features, ", not Inception's", "")
        + "; the paper's are FID-50K and Inception score on ImageNet 256x256, one run each, and comparable in their order only.",
        "In the paper (400 layers, but for its last row) plain at η/2 beats 400-layer MV-Split at 10k and 20k, before its crash.",
    ]
