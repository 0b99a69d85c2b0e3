"""The whole story in one picture: the loss of the deepest networks, and the fate of every scheme at every depth."""

from __future__ import annotations

from pathlib import Path

from paper_figures.loss_curves import curve_handles, curve_note, draw_curves, loss_limits
from paper_figures.outcomes import draw_grid
from paper_figures.rows import caption, curves_of, load_runs, main_lr
from paper_figures.style import legend, page, skip

NAME = "headline"
TITLE = "Which residual schemes keep a deep diffusion transformer trainable?"
INPUTS = ("runs", "curves")
PROTOCOLS = ("laptop",)
WIDTH, HEIGHT = 9.0, 4.3  # inches; on a page of 900 pixels a 9-point letter is 9 pixels wide and more


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    runs = runs[(runs["variant"] == 0) & (runs["lr"] == main_lr(runs))]
    curves = curves_of(folder, runs)
    shown = runs[runs["run_id"].isin(curves)]
    shown = shown[shown["depth"] == shown["depth"].max()]
    if shown.empty:
        return skip(folder, NAME, "no run has a curve")
    curves = {run_id: curves[run_id] for run_id in shown["run_id"]}
    limits = loss_limits(shown, curves)
    figure, body = page(WIDTH, HEIGHT, TITLE, caption(runs, curve_note(limits, curves)))
    left, right = body.subplots(1, 2, width_ratios=(1.1, 1))
    draw_curves(left, shown, curves, limits)
    left.set(title=f"training loss, {shown['depth'].iloc[0]} blocks", xlabel="step", ylabel="loss")
    draw_grid(right, runs, sorted(set(runs["depth"])), runs.drop_duplicates("label"))
    right.set_title("outcome; step of the crash, or final loss")
    legend(body, curve_handles(shown), WIDTH)
    return figure
