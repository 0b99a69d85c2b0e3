"""Figure 2 of the paper: training loss, and the trunk's mean-to-centered ratio in every anchor layer of a plain run."""

from __future__ import annotations

from pathlib import Path

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from paper_figures.audit_rows import (
    BLOCKS,
    CRASH_LINE,
    anchors,
    audit_of,
    crash_line_handle,
    deep,
    dissected,
    log_axis,
    name_of,
    positive,
    uniform,
)
from paper_figures.loss_curves import curve_handles, curve_note, draw_curves, loss_limits
from paper_figures.rows import caption, curves_of, load_runs, main_lr
from paper_figures.style import legend, page, skip

NAME = "fig02_loss_and_rho"
TITLE = "Figure 2: training loss, and token mean against centered part by layer"
INPUTS = ("runs", "curves", "audit")
PROTOCOLS = ("anatomy", "anatomy64")
WIDTH, HEIGHT = 10.0, 4.3


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    curves = curves_of(folder, runs)
    run = _run_shown(folder, runs)
    if run is None or not curves:
        return skip(folder, NAME, "no run has a curve" if not curves else "no plain run was audited")
    shown = runs[(runs["lr"] == run.lr) & (runs["depth"] == run.depth) & runs["run_id"].isin(curves)]
    limits = loss_limits(shown, {name: curves[name] for name in shown["run_id"]})
    audit = audit_of(folder, runs, "plain", run.depth)
    audit = audit[(audit["run_id"] == run.run_id) & (audit["site"] == "attn")]
    fate = f"marked: its crash, step {run.crash_step}." if run.crashed else "it did not crash."
    figure, body = page(WIDTH, HEIGHT, TITLE, caption(
        shown, curve_note(limits, {name: curves[name] for name in shown["run_id"]}),
        f"Right: rho = ||mu(X)|| / ||c(X)|| of the trunk at the attention merge of {name_of(run)}, at the uniform "
        f"stride and at every step around a crash; {fate}",
        _note(audit, run), "Paper: rho reaches several thousand after the crash (400 blocks, 256 image tokens)."))
    left, right = body.subplots(1, 2)
    draw_curves(left, shown, curves, limits)
    left.set(title=f"training loss, {run.depth} blocks", xlabel="step", ylabel="loss")
    _ratio(right, audit, run)
    body.colorbar(ScalarMappable(Normalize(0, run.depth - 1), BLOCKS), ax=right, label="block")
    legend(body, curve_handles(shown) + [crash_line_handle("crash (right)")] * bool(run.crashed), WIDTH)
    return figure


def _run_shown(folder: Path, runs):
    """The dissected run, or the first audited plain run where none collapsed."""
    run, _ = dissected(folder, runs)
    if run is not None:
        return run
    audited = set(audit_of(folder, runs, "plain")["run_id"])
    plain = runs[(runs["scheme"] == "plain") & runs["run_id"].isin(audited)]
    main = plain[plain["lr"] == main_lr(plain)] if len(plain) else plain
    return next(main.itertuples(), None)


def _ratio(ax, audit, run) -> None:
    """rho against step, one line per layer that every audited step has."""
    for layer in anchors(audit):
        mine = audit[audit["layer"] == layer].sort_values("step")
        ax.plot(mine["step"], positive(mine["rho"]), color=BLOCKS(layer / max(1, run.depth - 1)), linewidth=1.1)
    log_axis(ax, "rho")
    ax.set(title="mean-to-centered ratio of the plain run", xlabel="step")
    if run.crashed:
        ax.axvline(run.crash_step, **CRASH_LINE)


def _note(audit, run) -> str:
    """The ratio before and after, in numbers: the deep blocks at the stride, where all steps count the same."""
    rows = deep(uniform(audit), run.depth)
    if not run.crashed:
        return f"Median over the last quarter of the blocks {rows['rho'].median():.2g}."
    steps = rows["step"]
    values = [rows.loc[inside, "rho"].median() for inside in (steps < run.crash_step, steps > run.crash_step)]
    return (f"Median over the last quarter of the blocks {values[0]:.2g} before and {values[1]:.2g} after, "
            f"at most {audit['rho'].max():.2g}.")
