"""Figure 4 of the paper: how much the tokens' gradients add up against how much they could, before and at the event."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paper_figures.audit import EVENT, SITES, audit_of, before, dissected, name_of
from paper_figures.figure import figure
from paper_figures.runs import caption, load_runs
from paper_figures.style import CONSTANT, handle, legend, page, scheme_look
from suite.evidence.events import ACTIVE, through_origin

FEW = 5  # points below which no line is fitted: two lie on a line whatever they are
NEAR = 0.5  # of the envelope, that a block must reach for the paper's picture to be seen here
PAPER = {"attn": ((0.169, 0.306), (0.961, 0.808)), "ffn": ((0.126, 0.499), (0.985, 0.829))}  # slope, R2: before, at t*
GREY = "#9a9a9a"


@figure("fig04_amplification", "Figure 4: amplification A of the writer gradients against its envelope", ("runs", "audit"),
        ("anatomy", "anatomy64"))  # fmt: skip
def amplification(folder: Path, title: str):
    runs = load_runs(folder)
    run, _, crash, event = dissected(folder, runs)
    mine = runs[runs["run_id"] == run.run_id]
    room = int(run.image_tokens + run.caption_tokens) - 1  # T - 1
    audit = audit_of(folder, mine, "plain", run.depth)
    audit = audit.assign(x=room * audit["kappa_hat"], y=audit["amplification"] - 1).dropna(subset=["x", "y"])
    clouds = {site: (rows[before(rows["step"], crash)], rows[rows["step"] == event]) for site, rows in audit.groupby("site")}
    fig, body = page(9.5, 4.8, f"{title.partition(':')[0]}{_seen(rows for _, rows in clouds.values())}", caption(
        mine, f"Shown: {name_of(run)}. Grey: every audited block and step up to {EVENT + 1} before the crash at step "
        f"{crash}. Coloured: all audited blocks at the event, step {event}, the largest deep g_mean of attention W_O "
        f"within {EVENT} steps of the crash; filled where active (A - 1 > {ACTIVE}). A is per sample, averaged "
        f"over the batch; T = {room + 1} tokens, so A - 1 cannot pass T - 1 (right-hand scale).",
        f"Slopes are least squares through the origin, where Eq. 30 puts the line, of {FEW} points or more; R2 is 1 - residuals / variance "
        "about the mean, and below 0 where the mean alone does better. The event's line is fitted to the active blocks, as "
        "in the paper (T = 256, step 3400), which does not say whether its lines pass through the origin.",
        *(_peak(SITES[site], *(rows["y"] + 1 for rows in clouds[site])) for site in SITES)))  # fmt: skip
    axes = body.subplots(1, 2, sharex=True, sharey=True)
    colour = scheme_look("plain")[0]
    limit = 1.08 * max(audit["x"].max(), audit["y"].max())
    for ax, site in zip(axes, SITES, strict=True):
        _panel(ax, *clouds[site], site, colour, limit)
        ax.set(title=SITES[site], xlabel="(T - 1) kappa_hat", xlim=(0, limit), ylabel="A - 1" if site == "attn" else "",
               ylim=(-0.1 * limit, limit))  # fmt: skip
        share = ax.secondary_yaxis("right", functions=(lambda y: y / room, lambda y: y * room))
        share.set_ylabel("share of T - 1" if site == "ffn" else "")
        share.tick_params(labelsize=8)
    dot = {"linestyle": "", "marker": "o", "color": colour}
    legend(body, [
        handle("before the event", linestyle="", marker=".", color=GREY, markersize=8),
        handle(f"active at the event (step {event})", markersize=6, markeredgecolor="white", **dot),
        handle("not active at the event", markerfacecolor="none", markersize=5, **dot),
        handle("full coherence, y = x", **CONSTANT),
    ])  # fmt: skip
    return fig


def _panel(ax, usual, event, site: str, colour, limit: float) -> None:
    """Both clouds of one site with their lines, slopes and the paper's."""
    active = event[event["y"] > ACTIVE]
    idle = event[event["y"] <= ACTIVE]
    ax.plot(usual["x"], usual["y"], ".", color=GREY, markersize=3, alpha=0.35, markeredgewidth=0, rasterized=True)
    ax.plot(idle["x"], idle["y"], "o", color=colour, markerfacecolor="none", markersize=4.5, markeredgewidth=0.9)
    ax.plot(active["x"], active["y"], "o", color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.6)
    ends = np.array([0, limit])
    ax.plot(ends, ends, **CONSTANT)
    text = []
    clouds = (("before", usual, "#6f6f6f"), ("active at t*", active, colour))
    for (name, rows, shade), paper in zip(clouds, PAPER[site], strict=True):
        slope, fit = through_origin(rows["x"], rows["y"])
        if fitted := len(rows) >= FEW and slope == slope:
            ax.plot(ends, slope * ends, color=shade, linewidth=1.5, zorder=4)
        ours = f"slope {slope:.3f}, R2 {fit:.3f}" if fitted else "too few for a line"
        text.append(f"{name} (n={len(rows)}): {ours}\n    paper: slope {paper[0]:.3f}, R2 {paper[1]:.3f}")
    text.append(f"active: {len(active)} of {len(event)} blocks at t*")
    ax.text(0.03, 0.97, "\n".join(text), transform=ax.transAxes, va="top", fontsize=8, linespacing=1.3, zorder=6,
            bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2})


def _seen(events) -> str:
    """What the picture shows, for its title: how near the blocks come to the envelope."""
    nearest = max((rows["y"] / rows["x"]).max() for rows in events)
    if nearest >= NEAR:
        return f": at the event A - 1 reaches {nearest:.0%} of its envelope"
    return f", unlike the paper's: at the event A - 1 stays below {np.ceil(100 * nearest):.0f} % of its envelope in every block"


def _peak(site: str, usual, now) -> str:
    """The median and the largest A of a site before and at the event, in one sentence."""
    change = "falls" if now.median() < usual.median() else "rises"
    return (f"{site}: the median A {change} from {usual.median():.2g} to {now.median():.2g} (largest at the "
            f"event {now.max():.3g}, before {usual.max():.3g}; paper 168).")
