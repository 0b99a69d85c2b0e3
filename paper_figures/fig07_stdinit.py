"""Figure 7 of the paper (appendix B): with standard init and no gates the tokens are alike from the first steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paper_figures.audit import SITES, audit_of, deep, heat, log_axis, medians, positive, power, uniform
from paper_figures.figure import figure, some
from paper_figures.runs import caption, load_runs, short_outcome
from paper_figures.style import PALETTE, handle, legend, page

FIRST, LAST = 10, 690  # the paper's checkpoints
FRONT = 0.9  # its white contour
LINES = {"retention": (PALETTE[0], "o"), "var_gain": (PALETTE[1], "s"), "row_div": (PALETTE[2], "^")}
MODES = {("attn", "g_mean"): (PALETTE[0], "-"), ("attn", "g_ctr"): (PALETTE[0], (0, (3, 1.5))),
         ("ffn", "g_mean"): (PALETTE[1], "-"), ("ffn", "g_ctr"): (PALETTE[1], (0, (3, 1.5)))}  # fmt: skip


@figure("fig07_stdinit", "Figure 7: standard writer init, from the start", ("runs", "audit"), ("stdinit",))
def standard_init(folder: Path, title: str):
    runs = load_runs(folder)
    audit = audit_of(folder, runs)
    audit = audit[audit["step"].between(FIRST, LAST)]
    shown = runs[runs["run_id"].isin(audit["run_id"])]
    shown = some(shown[shown["depth"] == shown["depth"].max()], f"no run was audited between steps {FIRST} and {LAST}")
    shown = shown.sort_values(["lr", "seed"], kind="stable").drop_duplicates("label").sort_index()
    rows = {row.run_id: uniform(audit[audit["run_id"] == row.run_id]) for row in shown.itertuples()}
    blocks = max(part["layer"].nunique() for part in rows.values())
    fig, body = page(11.0, 0.9 + 3.2 * len(shown), f"{title.partition(':')[0]}{_seen(shown, rows)}", caption(
        shown, f"Checkpoints: steps {FIRST} to {LAST} at the audit's stride, {blocks} blocks. (a) token cosine "
        f"similarity of the trunk at the attention merge, contour at {FRONT}; (b) and (c) medians over checkpoints; "
        "log axis with gaps for exact zeros.",
        *(_words(row, rows[row.run_id]) for row in shown.itertuples()),
        "Paper (128 blocks, 256 image tokens): TCS about .3 to above .9 in a front over depth, retention and var_gain "
        "within 0 to 1, row_div 0 to .06 (not zero), and in deep blocks g_mean above g_ctr by several orders of "
        "magnitude."))  # fmt: skip
    axes = body.subplots(len(shown), 3, squeeze=False, sharey="col", width_ratios=(1.25, 1, 1))
    for (similarity, contraction, modes), row in zip(axes, shown.itertuples(), strict=True):
        by_depth = rows[row.run_id].drop(columns="run_id").groupby(["site", "layer"]).median()  # over the checkpoints
        body.colorbar(_similarity(similarity, rows[row.run_id], row.depth), ax=similarity, label="TCS", pad=0.01)
        for metric, (colour, marker) in LINES.items():
            series = by_depth.loc["attn", metric]
            contraction.plot(series.index, series, color=colour, marker=marker, markersize=4, label=metric, linewidth=1.3)
        contraction.set(xlabel="block", ylabel="ratio", ylim=(0, None))
        for (site, metric), (colour, dashes) in MODES.items():
            series = positive(by_depth.loc[site, metric])
            modes.plot(series.index, series, color=colour, linestyle=dashes, linewidth=1.4)
        log_axis(modes, "Frobenius norm")
        modes.set_xlabel("block")
        similarity.set_title(f"(a) {row.label}, {row.writers} writers: {short_outcome(row)}", loc="left")
        contraction.set_title("(b) attention and branch", loc="left")
        modes.set_title("(c) writer gradients", loc="left")
    handles = [handle(f"{metric} (b)", color=colour, marker=marker, markersize=4) for metric, (colour, marker) in LINES.items()]
    handles += [handle(f"{metric} {SITES[site]} (c)", color=colour, linestyle=dashes) for (site, metric), (colour, dashes) in MODES.items()]
    legend(body, handles)
    return fig


def _similarity(ax, rows, depth: int):
    mesh, table = heat(ax, rows[rows["site"] == "attn"])
    if min(table.shape) > 1 and table.min().min() < FRONT < table.max().max():
        ax.contour(table.columns, table.index, table, levels=[FRONT], colors="white", linewidths=1.6)
    ax.set(xlabel="step", ylim=(-0.5, depth - 0.5))
    return mesh


def _seen(shown, rows) -> str:
    """What the picture shows, for its title: whether the tokens become alike."""
    alike = {row.label: _deep_tcs(rows[row.run_id], row.depth) for row in shown.itertuples()}
    front = [label for label, tcs in alike.items() if (tcs > FRONT).any()]
    if front:
        return f": with standard writer init the tokens of {', '.join(front)} become alike"
    top = max(tcs.max() for tcs in alike.values())
    return f", unlike the paper's: with standard writer init the tokens stay apart (deep TCS at most {top:.2f})"


def _deep_tcs(rows, depth: int):
    """Median token cosine similarity of the last quarter of the blocks, by step."""
    rows = deep(rows, depth)
    return medians(rows[rows["site"] == "attn"], "tcs")


def _words(row, rows) -> str:
    """One run in numbers: the front, and how far the mean part outweighs the centered one in the deep blocks."""
    rows, tcs = deep(rows, row.depth), _deep_tcs(rows, row.depth)
    reached = tcs.index[tcs > FRONT]
    front = f"passes {FRONT} at step {reached[0]}" if len(reached) else f"never passes {FRONT}"
    powers = []
    for site in SITES:
        mean, centered = rows.loc[rows["site"] == site, ["g_mean", "g_ctr"]].median()
        powers.append(power(np.log10(mean / centered)) if min(mean, centered) > 0 else "undefined")
    return (f"{row.label}: deep TCS (last quarter) {front}, median {tcs.median():.3g}; deep g_mean / "
            f"g_ctr {powers[0]} (W_O), {powers[1]} (W_2).")
