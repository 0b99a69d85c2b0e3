"""How long runs live once they are healthy: survival curves of the anatomy, with the number of runs at risk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paper_figures.figure import NotDrawn, figure, some
from paper_figures.runs import caption, load_runs
from paper_figures.style import CONSTANT, bare, legend, line_of, page, scheme_handles
from suite.evidence.hazard import CUT, HEALTHY, kaplan_meier, watched, with_health

ENOUGH = 4  # runs that a band needs, and one curve of the figure
EVERY = 500  # steps between two counts of the runs at risk
PLACES = ("hottest rate below the edge", "second hottest")


@figure("survival", "How long runs live once they are healthy", ("runs", "evals"), ("anatomy", "anatomy64"))
def survival(folder: Path, title: str):
    """Kaplan-Meier curves, each scheme at its own two rates below its edge, numbers at risk below."""
    runs = load_runs(folder)
    runs = some(runs[runs["status"] == "done"], "no run is done")
    if runs["protocol_version"].iloc[0] < 4:
        raise NotDrawn("these runs are not of the rates below the edge")
    health = with_health(folder).set_index("run_id")["healthy_from"]
    runs = runs.assign(healthy_from=runs["run_id"].map(health))
    runs["place"] = runs.groupby(["scheme", "depth"])["lr"].rank("dense", ascending=False).astype(int) - 1
    places, depths = sorted(set(runs["place"])), sorted(set(runs["depth"]))
    entered = watched(runs)
    if max(len(watched(mine)) for _, mine in runs.groupby(["depth", "label", "lr"])) < ENOUGH:
        raise NotDrawn(f"no curve would be of {ENOUGH} runs or more")
    fig, body = page(5.6 * len(depths), 3.3 * len(places), title, caption(
        runs, f"Kaplan-Meier: the share of runs that still live, of those that have been healthy (held-out loss below {HEALTHY:g} c), each "
        "at risk from the step of its first good measurement on (late entry), so runs that never became healthy are left out: "
        f"{len(entered)} of {len(runs)} count, {int(entered['died'].sum())} of them died, whatever their loss just before. Bands: 95 %, "
        f"pointwise (Greenwood, of log(-log)); none where all live or none does, or of fewer than {ENOUGH} runs. Each scheme at its own "
        f"rates; dashed: MV-Split on attention alone, at MV-Split's rate. The vertical line is step {CUT}, at which the hazards are split. "
        "Below: runs at risk, entered and not yet dead or at their horizon."))  # fmt: skip
    grid = body.add_gridspec(2 * len(places), len(depths), height_ratios=[3, 1] * len(places))
    for y, place in enumerate(places):
        for x, depth in enumerate(depths):
            cell = runs[(runs["place"] == place) & (runs["depth"] == depth)]
            ax, counts = body.add_subplot(grid[2 * y, x]), body.add_subplot(grid[2 * y + 1, x])
            ax.set_title(f"{depth} blocks, {PLACES[place] if place < len(PLACES) else f'rate {place + 1}'}")
            _panel(ax, counts, cell, float(runs["horizon"].max()))
            ax.set_ylabel("share alive" if not x else "")
    legend(body, scheme_handles(runs, markers=False))
    return fig


def _panel(ax, counts, cell, horizon: float) -> None:
    """The curves of a depth's schemes, and the numbers at risk in an axis of their own."""
    steps, rows = np.arange(0, horizon + 1, EVERY), []
    ax.axvline(CUT, **CONSTANT)
    for label, mine in cell.groupby("label", sort=False):
        look, known = line_of(next(mine.itertuples())), watched(mine)
        curve = kaplan_meier(known["entry"], known["end"], known["died"])
        at = np.r_[known["entry"].min() if len(known) else horizon, curve.index, horizon]
        left = np.r_[1.0, curve["survival"], curve["survival"].iloc[-1] if len(curve) else 1.0]
        ax.step(at, left, where="post", linewidth=1.8, **look)
        if len(curve) and len(known) >= ENOUGH:
            low, high = (np.r_[curve[end], curve[end].iloc[-1]] for end in ("low", "high"))
            ax.fill_between(np.r_[curve.index, horizon], low, high, step="post", color=look["color"], alpha=0.12, linewidth=0)
        risk = [int(((known["entry"] <= step) & (known["end"] > step)).sum()) for step in steps[:-1]]
        risk.append(int((known["end"] >= horizon).sum()))
        rows.append((f"{label}, {mine['lr'].iloc[0]:g}", risk, look["color"]))
    ax.set(xlim=(0, horizon), ylim=(-0.03, 1.05), xticks=steps, xlabel="step")
    for y, (label, risk, colour) in enumerate(rows):
        counts.text(-0.05, y, label, transform=counts.get_yaxis_transform(), ha="right", va="center", fontsize=8, color=colour)
        for step, n in zip(steps, risk):
            counts.text(step, y, n, ha="center", va="center", fontsize=8.5, color=colour)
    counts.set(xlim=(0, horizon), ylim=(len(rows) - 0.5, -0.5), xticks=[], yticks=[], xlabel="runs at risk")
    bare(counts)
