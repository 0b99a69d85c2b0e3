"""Figure 3 of the paper: the collapse of one plain run in six panels, at every step from 30 before to 30 after."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paper_figures import audit
from paper_figures.figure import figure
from paper_figures.runs import caption, curves_of, load_runs
from paper_figures.style import NEUTRAL, PALETTE, handle, inner_legend, legend, page, scheme_look
from suite.protocol import evenly

LAYERS = 5
PAPER = {("attn", "g_mean"): 155, ("ffn", "g_mean"): 61, ("attn", "g_ctr"): 1, ("ffn", "g_ctr"): 3}
COLOURS = {"attn": PALETTE[0], "ffn": PALETTE[1]}
DASHES = {"g_mean": "-", "g_ctr": (0, (3, 1.5))}
WEIGHTS = {"wo_grad": ("W_O", PALETTE[0], "-"), "q_grad": ("W_Q", PALETTE[3], "-"), "k_grad": ("W_K", PALETTE[9], (0, (3, 1.5)))}


@figure("fig03_anatomy", "Figure 3: anatomy of a collapse", ("runs", "curves", "audit"), ("anatomy", "anatomy64"))
def anatomy(folder: Path, title: str):
    runs = load_runs(folder)
    event = audit.dissected(folder, runs)
    run, crash = event.run, event.crash
    mine = runs[runs["run_id"] == run.run_id]
    attn = event.window[event.window["site"] == "attn"]
    rows = {site: audit.deep(event.window[event.window["site"] == site], run.depth) for site in audit.SITES}
    fig, body = page(10.5, 9.2, f"{title} (plain, {run.depth} blocks)", caption(
        mine, f"Shown: {audit.name_of(run)}: of the plain runs that collapsed, the first seed at the learning rate that most runs share.",
        f"Dashed line: crash_step {crash}, from which the loss stays up. Deep: median over the audited blocks of the "
        f"last quarter of the depth. Event: step {event.step}, the largest deep g_mean of attention W_O within {audit.EVENT} "
        f"steps of the crash; factors: value at the event over the median of steps up to {audit.EVENT + 1} before the crash.",
        _extinction(rows["attn"], crash), "Panels d to f: trunk at the attention merge. Log axes leave gaps for exact zeros."))  # fmt: skip
    axes = body.subplots(3, 2, sharex=True)
    layers = evenly(attn["layer"].unique(), LAYERS)
    colours = dict(zip(layers, audit.BLOCKS(np.linspace(0, 1, len(layers))), strict=True))  # from the bottom up
    _loss(axes[0, 0], curves_of(folder, mine).get(run.run_id), crash)
    _modes(axes[0, 1], rows, event)
    _gradients(axes[1, 0], rows["attn"])
    _ratios(axes[1, 1], attn, colours)
    _by_layer(axes[2, 0], attn, "mu_eff", colours)
    axes[2, 0].axhline(1, color=NEUTRAL, linewidth=0.8, linestyle=":")
    axes[2, 0].set_ylabel("mu_eff")
    mesh, _ = audit.heat(axes[2, 1], attn)
    body.colorbar(mesh, ax=axes[2, 1], label="TCS", pad=0.01)
    titles = ("loss (left) and raw gradient norm (right)", "writer gradient: mean and centered part, deep blocks",
              "gradients of the attention weights, deep blocks", "r_tr (solid, left) and rho (dashed, right)",
              "contraction by attention, where below 1", "token cosine similarity")  # fmt: skip
    for ax, letter, words in zip(axes.flat, "abcdef", titles, strict=True):
        ax.set_title(f"({letter}) {words}", loc="left")
        ax.axvline(crash, **audit.CRASH_LINE)
        ax.set_xlim(crash - audit.AROUND, crash + audit.AROUND)
    for ax in axes[2]:
        ax.set_xlabel("step")
    mark = handle(f"event, step {event.step}", linestyle="", marker="v", color=NEUTRAL, markersize=7)
    blocks = [handle(f"block {layer} (d, e)", color=colour) for layer, colour in colours.items()]
    legend(body, [*blocks, audit.crash_line_handle(f"crash, step {crash}"), mark])
    return fig


def _twin(ax, label: str):
    """An axis of its own on the right."""
    twin = ax.twinx()
    twin.grid(False)
    twin.spines["right"].set_visible(True)
    audit.log_axis(twin, label)
    return twin


def _loss(ax, curve, crash: int) -> None:
    ax.set_ylabel("loss")
    if curve is None:
        return
    curve = curve[(curve["step"] - crash).abs() <= audit.AROUND]
    colour = scheme_look("plain")[0]
    ax.plot(curve["step"], curve["loss"], color=colour, linewidth=1.6)
    _twin(ax, "gradient norm").plot(curve["step"], audit.positive(curve["grad_norm"]), color=NEUTRAL, linewidth=1.1, alpha=0.8)
    ax.yaxis.label.set_color(colour)


def _median(ax, rows, metric: str, **look) -> None:
    series = audit.positive(audit.medians(rows, metric))
    ax.plot(series.index, series, linewidth=1.5, **look)


def _modes(ax, rows, event) -> None:
    handles = []
    for (site, metric), printed in PAPER.items():
        look, times = {"color": COLOURS[site], "linestyle": DASHES[metric]}, event.factor(rows[site], metric)
        _median(ax, rows[site], metric, **look)
        handles.append(handle(f"{metric} {audit.SITES[site]}: {times:.3g}x (paper {printed}x)", linewidth=1.5, **look))
    audit.log_axis(ax, "Frobenius norm")
    low, high = ax.get_ylim()
    ax.set_ylim(low * (low / high) ** 0.4, high)  # room for the legend
    ax.plot(event.step, 1, "v", color=NEUTRAL, markersize=7, clip_on=False, zorder=5, transform=ax.get_xaxis_transform())
    inner_legend(ax, "lower left", handles)


def _gradients(ax, rows) -> None:
    for metric, (label, colour, dashes) in WEIGHTS.items():
        _median(ax, rows, metric, label=label, color=colour, linestyle=dashes)
    audit.log_axis(ax, "root mean square")
    inner_legend(ax, "lower left")


def _by_layer(ax, attn, metric: str, colours, **look) -> None:
    for layer, colour in colours.items():
        mine = attn[attn["layer"] == layer].sort_values("step")
        ax.plot(mine["step"], mine[metric], color=colour, linewidth=1.3, **look)


def _ratios(ax, attn, colours) -> None:
    _by_layer(ax, attn, "r_tr", colours)
    ax.set_ylabel("r_tr = ||branch|| / ||trunk||")
    twin = _twin(ax, "rho")
    _by_layer(twin, attn.assign(rho=audit.positive(attn["rho"])), "rho", colours, linestyle=(0, (3, 1.5)), alpha=0.75)
    ax.set_zorder(twin.get_zorder() + 1)
    ax.patch.set_visible(False)


def _extinction(rows, crash: int) -> str:
    """How far the Q and K gradients fell, in powers of ten."""
    orders = []
    for metric in ("q_grad", "k_grad"):
        series = audit.medians(rows, metric)
        usual, left = series[audit.before(series.index, crash)].median(), series[series.index > crash + audit.EVENT].median()
        if not (usual > 0 and left > 0):
            return "The Q or K gradients are exactly 0 before or after."
        orders.append(np.log10(left / usual))
    return (f"Deep Q and K gradients change by {audit.power(orders[0])} and {audit.power(orders[1])} (median of the steps more "
            f"than {audit.EVENT} after the crash over the median before); paper: about 10^-4.")
