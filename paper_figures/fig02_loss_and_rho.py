"""Figure 2 of the paper: training loss, and the trunk's mean-to-centered ratio in every anchor layer of a plain run."""

from __future__ import annotations

from pathlib import Path

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from paper_figures import audit
from paper_figures.figure import figure, some
from paper_figures.losses import curve_handles, curve_note, draw_curves, loss_limits
from paper_figures.runs import caption, curves_of, load_runs, main_lr
from paper_figures.style import legend, page


@figure("fig02_loss_and_rho", "Figure 2: training loss, and token mean against centered part by layer", ("runs", "curves", "audit"),
        ("anatomy", "anatomy64"))  # fmt: skip
def loss_and_rho(folder: Path, title: str):
    runs = load_runs(folder)
    curves = some(curves_of(folder, runs), "no run has a curve")
    run = audit.dissected_or_none(folder, runs) or _first_audited(folder, runs)
    shown = runs[(runs["lr"] == run.lr) & (runs["depth"] == run.depth) & runs["run_id"].isin(curves)]
    curves = {name: curves[name] for name in shown["run_id"]}
    limits = loss_limits(shown, curves)
    mine = audit.audit_of(folder, shown[shown["run_id"] == run.run_id], "plain", run.depth).query("site == 'attn'")
    fate = f"marked: its crash, step {run.crash_step}." if run.crashed else "it did not crash."
    fig, body = page(10.0, 4.3, title, caption(
        shown, curve_note(limits, curves),
        f"Right: rho = ||mu(X)|| / ||c(X)|| of the trunk at the attention merge of {audit.name_of(run)}, at the uniform "
        f"stride and at every step around a crash; {fate}",
        _note(mine, run), "Paper: rho reaches several thousand after the crash (400 blocks, 256 image tokens)."))  # fmt: skip
    left, right = body.subplots(1, 2)
    draw_curves(left, shown, curves, limits)
    left.set(title=f"training loss, {run.depth} blocks", xlabel="step", ylabel="loss")
    _ratio(right, mine, run)
    body.colorbar(ScalarMappable(Normalize(0, run.depth - 1), audit.BLOCKS), ax=right, label="block")
    legend(body, curve_handles(shown) + [audit.crash_line_handle("crash (right)")] * bool(run.crashed))
    return fig


def _first_audited(folder: Path, runs):
    """The first audited plain run, for where none collapsed."""
    plain = runs[runs["scheme"] == "plain"]
    plain = some(plain[plain["run_id"].isin(audit.audit_of(folder, plain, "plain")["run_id"])], "no plain run was audited")
    return next(plain[plain["lr"] == main_lr(plain)].itertuples())


def _ratio(ax, rows, run) -> None:
    """rho against step, one line per layer that every audited step has."""
    for layer in audit.anchors(rows):
        mine = rows[rows["layer"] == layer].sort_values("step")
        ax.plot(mine["step"], audit.positive(mine["rho"]), color=audit.BLOCKS(layer / max(1, run.depth - 1)), linewidth=1.1)
    audit.log_axis(ax, "rho")
    ax.set(title="mean-to-centered ratio of the plain run", xlabel="step")
    if run.crashed:
        ax.axvline(run.crash_step, **audit.CRASH_LINE)


def _note(mine, run) -> str:
    """The ratio before and after, in numbers: the deep blocks at the stride, where all steps count the same."""
    rows = audit.deep(audit.uniform(mine), run.depth)
    if not run.crashed:
        return f"Median over the last quarter of the blocks {rows['rho'].median():.2g}."
    steps = rows["step"]
    values = [rows.loc[inside, "rho"].median() for inside in (steps < run.crash_step, steps > run.crash_step)]
    return (f"Median over the last quarter of the blocks {values[0]:.2g} before and {values[1]:.2g} after, "
            f"at most {mine['rho'].max():.2g}.")
