"""Figure 3 of the paper: the collapse of one plain run in six panels, at every step from 30 before to 30 after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D

from paper_figures.audit_rows import (
    AROUND,
    BLOCKS,
    CRASH_LINE,
    EVENT,
    SITES,
    before,
    crash_line_handle,
    deep,
    dissected,
    edges,
    event_step,
    factor,
    log_axis,
    medians,
    name_of,
    positive,
    power,
    spread,
)
from paper_figures.rows import caption, curves_of, load_runs
from paper_figures.style import NEUTRAL, PALETTE, legend, page, scheme_look, skip

NAME = "fig03_anatomy"
TITLE = "Figure 3: anatomy of a collapse"
INPUTS = ("runs", "curves", "audit")
PROTOCOLS = ("anatomy", "anatomy64")
WIDTH, HEIGHT = 10.5, 9.2
LAYERS = 5
PAPER = {("attn", "g_mean"): 155, ("ffn", "g_mean"): 61, ("attn", "g_ctr"): 1, ("ffn", "g_ctr"): 3}
COLOURS = {"attn": PALETTE[0], "ffn": PALETTE[1]}
DASHES = {"g_mean": "-", "g_ctr": (0, (3, 1.5))}


def draw(folder: Path, protocol: str):
    runs = load_runs(folder)
    run, window = dissected(folder, runs)
    if run is None:
        return skip(folder, NAME, "no collapsed plain run was audited at every step around its crash")
    crash, event = int(run.crash_step), event_step(window, run.depth, int(run.crash_step))
    mine = runs[runs["run_id"] == run.run_id]
    curves = curves_of(folder, mine)
    attn = window[window["site"] == "attn"]
    figure, body = page(WIDTH, HEIGHT, f"{TITLE} (plain, {run.depth} blocks)", caption(
        mine, f"Shown: {name_of(run)}: of the plain runs that collapsed, the first seed at the learning rate that most runs share.",
        f"Dashed line: crash_step {crash}, from which the loss stays up. Deep: median over the audited blocks of the "
        f"last quarter of the depth. Event: step {event}, the largest deep g_mean of attention W_O within {EVENT} "
        f"steps of the crash; factors: value at the event over the median of steps up to {EVENT + 1} before the crash.",
        *_extinction(deep(attn, run.depth), crash),
        "Panels d to f: trunk at the attention merge. Log axes leave gaps for exact zeros."))
    axes = body.subplots(3, 2, sharex=True)
    legend_layers = spread(attn["layer"].unique(), LAYERS)
    _loss(axes[0, 0], curves.get(run.run_id), crash)
    _modes(axes[0, 1], window, run.depth, event, crash)
    _gradients(axes[1, 0], deep(attn, run.depth))
    _ratios(axes[1, 1], attn, legend_layers)
    _contraction(axes[2, 0], attn, legend_layers)
    mesh = _similarity(axes[2, 1], attn)
    body.colorbar(mesh, ax=axes[2, 1], label="TCS", pad=0.01)
    for ax, letter in zip(axes.flat, "abcdef", strict=True):
        title, _ = ax.get_title(), ax.set_title("")
        ax.set_title(f"({letter}) {title}", loc="left")
        ax.axvline(crash, **CRASH_LINE)
        ax.set_xlim(crash - AROUND, crash + AROUND)
    for ax in axes[2]:
        ax.set_xlabel("step")
    mark = Line2D([], [], linestyle="", marker="v", color=NEUTRAL, markersize=7, label=f"event, step {event}")
    blocks = [Line2D([], [], color=colour, label=f"block {layer} (d, e)") for layer, colour in _colours(legend_layers)]
    legend(body, [*blocks, crash_line_handle(f"crash, step {crash}"), mark], WIDTH)
    return figure


def _inner_legend(ax, handles) -> None:
    """A legend inside its panel, on a veil of white."""
    box = ax.legend(handles=handles, fontsize=8, handlelength=1.8, borderpad=0.2, labelspacing=0.25, frameon=True,
                    framealpha=0.8, edgecolor="none", loc="lower left")
    box.set_zorder(10)


def _loss(ax, curve, crash: int) -> None:
    ax.set_title("loss (left) and raw gradient norm (right)")
    ax.set_ylabel("loss")
    if curve is None:
        return
    curve = curve[(curve["step"] - crash).abs() <= AROUND]
    colour = scheme_look("plain")[0]
    ax.plot(curve["step"], curve["loss"], color=colour, linewidth=1.6)
    twin = ax.twinx()
    twin.plot(curve["step"], positive(curve["grad_norm"]), color=NEUTRAL, linewidth=1.1, alpha=0.8)
    _log_twin(twin, "gradient norm")
    ax.yaxis.label.set_color(colour)


def _log_twin(twin, label: str) -> None:
    log_axis(twin, label)
    twin.grid(False)
    twin.spines["right"].set_visible(True)


def _modes(ax, window, depth: int, event: int, crash: int) -> None:
    ax.set_title("writer gradient: mean and centered part, deep blocks")
    handles = []
    for (site, metric), printed in PAPER.items():
        rows = deep(window[window["site"] == site], depth)
        look = {"color": COLOURS[site], "linestyle": DASHES[metric], "linewidth": 1.5}
        series = positive(medians(rows, metric))
        ax.plot(series.index, series, **look)
        times = factor(rows, metric, event, crash)
        label = f"{metric} {SITES[site]}: {times:.3g}x (paper {printed}x)"
        handles.append(Line2D([], [], label=label, **look))
    log_axis(ax, "Frobenius norm")
    low, high = ax.get_ylim()
    ax.set_ylim(low * (low / high) ** 0.4, high)  # room for the legend
    ax.plot(event, 1, "v", color=NEUTRAL, markersize=7, clip_on=False, zorder=5, transform=ax.get_xaxis_transform())
    _inner_legend(ax, handles)


def _gradients(ax, rows) -> None:
    ax.set_title("gradients of the attention weights, deep blocks")
    kinds = {"wo_grad": ("W_O", PALETTE[0], "-"), "q_grad": ("W_Q", PALETTE[3], "-"),
             "k_grad": ("W_K", PALETTE[9], (0, (3, 1.5)))}
    for metric, (label, colour, dashes) in kinds.items():
        series = positive(medians(rows, metric))
        ax.plot(series.index, series, color=colour, linestyle=dashes, label=label, linewidth=1.5)
    log_axis(ax, "root mean square")
    _inner_legend(ax, ax.get_legend_handles_labels()[0])


def _colours(layers):
    """Each layer with its colour, from the bottom up."""
    return zip(layers, BLOCKS(np.linspace(0, 1, len(layers))), strict=True)


def _by_layer(ax, attn, metric: str, layers, **look) -> None:
    for layer, colour in _colours(layers):
        mine = attn[attn["layer"] == layer].sort_values("step")
        ax.plot(mine["step"], mine[metric], color=colour, linewidth=1.3, **look)


def _ratios(ax, attn, layers) -> None:
    ax.set_title("r_tr (solid, left) and rho (dashed, right)")
    _by_layer(ax, attn, "r_tr", layers)
    ax.set_ylabel("r_tr = ||branch|| / ||trunk||")
    twin = ax.twinx()
    _by_layer(twin, attn.assign(rho=positive(attn["rho"])), "rho", layers, linestyle=(0, (3, 1.5)), alpha=0.75)
    _log_twin(twin, "rho")
    ax.set_zorder(twin.get_zorder() + 1)
    ax.patch.set_visible(False)


def _contraction(ax, attn, layers) -> None:
    ax.set_title("contraction by attention, where below 1")
    _by_layer(ax, attn, "mu_eff", layers)
    ax.axhline(1, color=NEUTRAL, linewidth=0.8, linestyle=":")
    ax.set_ylabel("mu_eff")


def _similarity(ax, attn):
    ax.set_title("token cosine similarity")
    table = attn.pivot(index="layer", columns="step", values="tcs")
    ax.grid(False)
    ax.set_ylabel("block")
    return ax.pcolormesh(edges(table.columns), edges(table.index), table, cmap="magma", vmin=0, vmax=1, rasterized=True)


def _extinction(rows, crash: int) -> list[str]:
    """How far the Q and K gradients fell, in powers of ten."""
    orders = []
    for metric in ("q_grad", "k_grad"):
        series = medians(rows, metric)
        after = series[series.index > crash + EVENT]
        usual, left = series[before(series.index, crash)].median(), after.median()
        if not (usual > 0 and left > 0):
            return ["The Q or K gradients are exactly 0 before or after."]
        orders.append(np.log10(left / usual))
    return [f"Deep Q and K gradients change by {power(orders[0])} and {power(orders[1])} (median of the steps more "
            f"than {EVENT} after the crash over the median before); paper: about 10^-4."]
