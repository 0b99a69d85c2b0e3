"""Figure 10: MV-Split on the attention merges alone, and where its gradient spikes go."""

from __future__ import annotations

from pathlib import Path

from paper_figures.figure import figure, some
from paper_figures.losses import SMOOTH, draw_curves, loss_limits
from paper_figures.runs import caption, curves_of, load_runs, main_setting, short_outcome
from paper_figures.spikes import draw_bars, draw_events, draw_trace, families, fatal, notes_of
from paper_figures.style import crash_handle, legend, line_of, page, scheme_handles
from suite.evidence.spikes import summary
from suite.records.store import read

PAPER = 0.93  # the share of W_2
FINDING = ("In the paper (1000 layers) attention-only MV-Split crashes at step 7415, the loss rising from .81 to 2.12 in four steps, and "
           "the spike moves to the unprotected side: 14 of the top 15 families are W_2 (L32 to L55, .063 to .072, "
           f"about {PAPER:.0%} of the top-15 mass) and one is the final projection.")


@figure("fig10_attention_only", "Figure 10: MV-Split on attention alone", ("runs", "curves", "spikes"), ("anatomy",))
def attention_alone(folder: Path, title: str):
    runs = main_setting(load_runs(folder))
    curves, spikes = curves_of(folder, runs), read(folder, "spikes")
    runs = runs[runs["run_id"].isin(curves)]
    alone = some(runs[[attention_only(row) for row in runs.itertuples()]], "no run of MV-Split with sites=attn has a curve")
    shown = runs[alone_or_beside(runs)]
    row, step = chosen(alone, spikes)
    calm, limits = step is None, loss_limits(shown, curves)
    notes = ["Their gradient norm never crossed the spike threshold."] if calm else notes_of(row, spikes, step)
    seen = f"{title}: {alone['crashed'].sum()} of {len(alone)} runs crashed"
    if not calm and row.crashed:
        seen += f"; W_2 has {summary(families(spikes, row.run_id, step))['W2_share']:.0%} of the spike (paper: {PAPER:.0%})"
    fig, body = page(7.0 if calm else 9.0, 4.4 if calm else 7.2, seen, caption(shown, verdict(alone), *notes, FINDING))
    handles = scheme_handles(shown, markers=False, look_of=look)
    if calm:
        ax = body.subplots()
    else:
        top = families(spikes, row.run_id, step)
        grid = body.add_gridspec(2, 2, height_ratios=(1.5, 1))
        fate = "before the crash" if row.crashed else "the largest; it came back"
        handles += draw_bars(body.add_subplot(grid[0, 0]), top, f"seed {row.seed}, step {step}: {fate}")
        handles += draw_trace(body, grid[0, 1].subgridspec(2, 1), curves[row.run_id], row, top)
        ax = body.add_subplot(grid[1, 1])
        handles += draw_events(body.add_subplot(grid[1, 0]), spikes, row)
    draw_curves(ax, shown, curves, limits, SMOOTH, look, apart=True)
    ax.set(title="training loss beside plain and full MV-Split", xlabel="step", ylabel="loss")
    legend(body, handles + [crash_handle()] * bool(shown["crashed"].any()))
    return fig


def look(row) -> dict:
    """The lines of this figure: the scheme's colour, and black for attention alone, which must stand out."""
    return {"color": "black", "linestyle": "-"} if attention_only(row) else {**line_of(row), "linestyle": "-"}


def attention_only(row) -> bool:
    """Whether a run is MV-Split at its attention merges alone."""
    return row.scheme == "mvsplit" and "sites=attn" in row.params.split(",")


def alone_or_beside(runs):
    """A mask: plain runs, and MV-Split whole or on attention alone."""
    return [row.scheme == "plain" or (row.scheme == "mvsplit" and "sites=ffn" not in row.params.split(","))
            for row in runs.itertuples()]


def chosen(alone, spikes):
    """(run, step of the spike to show): the first run whose crash has a traced spike, else the largest spike of any,
    else None."""
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
