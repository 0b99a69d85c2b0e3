"""Figure 10: MV-Split on the attention merges alone, and where its gradient spikes go."""

from __future__ import annotations

from pathlib import Path

from matplotlib.lines import Line2D

from paper_figures.fig05_quality import main_setting
from paper_figures.fig09_spike_trace import draw_bars, draw_events, draw_trace
from paper_figures.fig12_full_loss import draw_losses
from paper_figures.loss_curves import loss_limits
from paper_figures.rows import caption, curves_of, load_runs, short_outcome
from paper_figures.spike_rows import families, fatal, notes_of
from paper_figures.style import crash_handle, legend, line_of, page, skip
from suite.records.tables import read

NAME = "fig10_attention_only"
TITLE = "Figure 10: MV-Split on attention alone"
INPUTS = ("runs", "curves", "spikes")
PROTOCOLS = ("anatomy",)
FINDING = ("In the paper (1000 layers) attention-only MV-Split crashes at step 7415, the loss rising from .81 to 2.12 in four steps, and "
           "the"
           " spike moves to the unprotected side: 14 of the top 15 families are W_2 (L32 to L55, .063 to .072, about 93% of the"
           " top-15 mass) and one is the final projection.")


def draw(folder: Path, protocol: str):
    runs = main_setting(load_runs(folder))
    curves, spikes = curves_of(folder, runs), read(folder, "spikes")
    runs = runs[runs["run_id"].isin(curves)]
    alone = runs[[attention_only(row) for row in runs.itertuples()]]
    if alone.empty:
        return skip(folder, NAME, "no run of MV-Split with sites=attn has a curve")
    shown = runs[alone_or_beside(runs)]
    row, step = chosen(alone, spikes)
    notes = [verdict(alone), *(notes_of(row, spikes, step) if step is not None else ["Their gradient norm never crossed the"
             " spike threshold."]), FINDING]
    width, limits = 9.0 if step is not None else 7.0, loss_limits(shown, curves)
    figure, body = page(width, 7.2 if step is not None else 4.4, TITLE, caption(shown, *notes))
    handles = _handles(shown)
    if step is None:
        ax = body.subplots()
        _losses(ax, shown, curves, limits)
    else:
        top = families(spikes, row.run_id, step)
        grid = body.add_gridspec(2, 2, height_ratios=(1.5, 1))
        fate = "before the crash" if row.crashed else "the largest; it came back"
        handles += draw_bars(body.add_subplot(grid[0, 0]), top, f"seed {row.seed}, step {step}: {fate}")
        handles += draw_trace(body, grid[0, 1].subgridspec(2, 1), curves[row.run_id], row, top)
        _losses(body.add_subplot(grid[1, 1]), shown, curves, limits)
        handles += draw_events(body.add_subplot(grid[1, 0]), spikes, row)
    legend(body, handles + [crash_handle()] * bool(shown["crashed"].any()), width)
    return figure


def look(row) -> dict:
    """The lines of this figure: the scheme's colour, and black for attention alone, which must stand out from the whole."""
    return {"color": "black", "linestyle": "-"} if attention_only(row) else {**line_of(row), "linestyle": "-"}


def _handles(shown) -> list:
    return [Line2D([], [], linewidth=1.8, label=row.label, **look(row)) for row in shown.drop_duplicates("label").itertuples()]


def attention_only(row) -> bool:
    """Whether a run is MV-Split at its attention merges alone."""
    return row.scheme == "mvsplit" and "sites=attn" in row.params.split(",")


def alone_or_beside(runs):
    """A mask: plain runs, and MV-Split whole or on attention alone."""
    return [row.scheme == "plain" or (row.scheme == "mvsplit" and "sites=ffn" not in row.params.split(","))
            for row in runs.itertuples()]


def chosen(alone, spikes):
    """(run, step of the spike to show): the first run whose crash has a traced spike, else the largest spike of any, else None."""
    for row in alone.itertuples():
        if steps := fatal(spikes, row):
            return row, steps[-1]
    rows = {row.run_id: row for row in alone.itertuples() if not row.crashed}
    seen = spikes[spikes["run_id"].isin(rows) & (spikes["rank"] == 1)]
    if seen.empty:
        return next(alone.itertuples()), None
    largest = seen.loc[seen["grad_norm"].idxmax()]
    return rows[largest["run_id"]], int(largest["step"])


def verdict(alone) -> str:
    """In one sentence: whether it crashed here."""
    crashed = alone[alone["crashed"]]
    words = ", ".join(f"seed {row.seed} {short_outcome(row)}" for row in crashed.itertuples())
    if crashed.empty:
        return (f"None of our {len(alone)} attention-only runs crashed in {int(alone['last_step'].min())} steps:"
                " at this depth and length the paper's failure is not reproduced.")
    return f"{len(crashed)} of {len(alone)} attention-only runs crashed here: {words}."


def _losses(ax, shown, curves, limits) -> None:
    draw_losses(ax, shown, curves, limits, look)
    ax.set(title="training loss beside plain and full MV-Split", xlabel="step", ylabel="loss")
