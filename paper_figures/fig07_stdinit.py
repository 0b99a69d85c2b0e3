"""Figure 7 of the paper (appendix B): with standard init and no gates the tokens are alike from the first steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paper_figures.audit_rows import SITES, audit_of, edges, log_axis, positive, power, uniform
from paper_figures.rows import caption, load_runs, short_outcome
from paper_figures.style import PALETTE, page, skip

NAME = "fig07_stdinit"
TITLE = "Figure 7: standard writer init, from the start"
INPUTS = ("runs", "audit")
PROTOCOLS = ("stdinit",)
WIDTH = 11.0
FIRST, LAST = 10, 690  # the paper's checkpoints
FRONT = 0.9  # its white contour
LINES = {"retention": ("retention", PALETTE[0], "o"), "var_gain": ("var_gain", PALETTE[1], "s"),
         "row_div": ("row_div", PALETTE[2], "^")}
MODES = {("attn", "g_mean"): (PALETTE[0], "-"), ("attn", "g_ctr"): (PALETTE[0], (0, (3, 1.5))),
         ("ffn", "g_mean"): (PALETTE[1], "-"), ("ffn", "g_ctr"): (PALETTE[1], (0, (3, 1.5)))}


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    audit = audit_of(folder, runs)
    audit = audit[(audit["step"] >= FIRST) & (audit["step"] <= LAST)]
    depth = runs.loc[runs["run_id"].isin(audit["run_id"]), "depth"].max()
    shown = runs[runs["run_id"].isin(audit["run_id"]) & (runs["depth"] == depth)]
    shown = shown.sort_values(["lr", "seed"], kind="stable").drop_duplicates("label").sort_index()
    if shown.empty:
        return skip(folder, NAME, f"no run was audited between steps {FIRST} and {LAST}")
    rows = {row.run_id: uniform(audit[audit["run_id"] == row.run_id]) for row in shown.itertuples()}
    blocks = max(part["layer"].nunique() for part in rows.values())
    figure, body = page(WIDTH, 0.6 + 3.3 * len(shown), TITLE, caption(
        shown, f"Checkpoints: steps {FIRST} to {LAST} at the audit's stride, {blocks} blocks. (a) token cosine "
        f"similarity of the trunk at the attention merge, contour at {FRONT}; (b) and (c) medians over checkpoints; "
        "log axis with gaps for exact zeros.",
        *(_words(row, rows[row.run_id]) for row in shown.itertuples()),
        "Paper (128 blocks, 256 image tokens): TCS about .3 to above .9 in a front over depth, retention and var_gain "
        "within 0 to 1, row_div 0 to .06 (not zero), and in deep blocks g_mean above g_ctr by several orders of "
        "magnitude."))
    axes = body.subplots(len(shown), 3, squeeze=False, width_ratios=(1.25, 1, 1))
    for line, row in zip(axes, shown.itertuples(), strict=True):
        mesh = _heat(line[0], rows[row.run_id], row.depth)
        body.colorbar(mesh, ax=line[0], label="TCS", pad=0.01)
        _contraction(line[1], rows[row.run_id])
        _modes(line[2], rows[row.run_id])
        words = f"{row.scheme}, {row.writers} writers"
        line[0].set_title(f"(a) {words}: {short_outcome(row)}", loc="left")
        line[1].set_title("(b) attention and branch", loc="left")
        line[2].set_title("(c) writer gradients", loc="left")
        for ax in line[1:]:
            ax.set_xlabel("block")
        line[0].set_xlabel("step")
    return figure


def by_depth(rows, site: str, metric: str):
    """Median over the checkpoints of a metric, by block."""
    return rows[rows["site"] == site].groupby("layer")[metric].median()


def _heat(ax, rows, depth: int):
    """TCS by step and block, each audited block standing for those nearest to it."""
    table = rows[rows["site"] == "attn"].pivot(index="layer", columns="step", values="tcs")
    mesh = ax.pcolormesh(edges(table.columns), edges(table.index), table, cmap="magma", vmin=0, vmax=1, rasterized=True)
    if min(table.shape) > 1 and table.min().min() < FRONT < table.max().max():
        ax.contour(table.columns, table.index, table, levels=[FRONT], colors="white", linewidths=1.6)
    ax.grid(False)
    ax.set(ylabel="block", ylim=(-0.5, depth - 0.5))
    return mesh


def _contraction(ax, rows) -> None:
    for metric, (label, colour, marker) in LINES.items():
        series = by_depth(rows, "attn", metric)
        ax.plot(series.index, series, color=colour, marker=marker, markersize=4, label=label, linewidth=1.3)
    ax.set_ylim(0, 1.3 * ax.get_ylim()[1])  # room for the legend
    ax.set_ylabel("ratio")
    _legend(ax, "upper right")


def _modes(ax, rows) -> None:
    for (site, metric), (colour, dashes) in MODES.items():
        series = positive(by_depth(rows, site, metric))
        ax.plot(series.index, series, color=colour, linestyle=dashes, label=f"{metric} {SITES[site]}", linewidth=1.4)
    log_axis(ax, "Frobenius norm")
    _legend(ax)


def _legend(ax, loc: str = "best") -> None:
    ax.legend(fontsize=8, handlelength=1.8, labelspacing=0.25, frameon=True, framealpha=0.8, edgecolor="none", loc=loc)


def _words(row, rows) -> str:
    """One run in numbers: the front, and how far the mean part outweighs the centered one in the deep blocks."""
    deep = rows[rows["layer"] >= 0.75 * row.depth]
    tcs = deep[deep["site"] == "attn"].groupby("step")["tcs"].median()
    reached = tcs.index[tcs > FRONT]
    front = f"passes {FRONT} at step {reached[0]}" if len(reached) else f"never passes {FRONT}"
    powers = []
    for site in SITES:
        parts = [deep[deep["site"] == site][metric].median() for metric in ("g_mean", "g_ctr")]
        powers.append(power(np.log10(parts[0] / parts[1])) if min(parts) > 0 else "undefined")
    return (f"{row.scheme} {row.writers}: deep TCS (last quarter) {front}, median {tcs.median():.3g}; deep g_mean / "
            f"g_ctr {powers[0]} (W_O), {powers[1]} (W_2).")
