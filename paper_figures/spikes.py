"""Figure 9, and what it shares with Figure 10: which weights carried the gradient spike that led a network into its
collapse."""

from __future__ import annotations

from pathlib import Path

from matplotlib.patches import Patch

from paper_figures.figure import figure, some
from paper_figures.runs import caption, crash_of, curves_of, load_runs, main_setting
from paper_figures.style import NEUTRAL, PALETTE, handle, legend, page, plain_log
from suite.evidence.spikes import SHALLOW, families, fatal, summary, until_crash
from suite.records.store import read

QKV, READ, OTHER = "Q, K, V", "FFN input W_13", "embedding, final, gates"
KINDS = {"Q": QKV, "K": QKV, "V": QKV, "WO": "attention writer W_O", "W13": READ, "W2": "FFN writer W_2"}
COLOURS = dict(zip((QKV, KINDS["WO"], READ, KINDS["W2"], OTHER), (PALETTE[i] for i in (0, 3, 8, 1, 2))))  # in the order of legends
AROUND = 15  # steps on either side of the event
MOST = 12  # spikes whose composition is shown
PAPER = (("Embed", .868), ("L2 Q", .686), ("L0 W13", .671), ("L1 W13", .487), ("L0 Q", .266), ("L0 W2", .256), ("L1 V", .232),
         ("L2 K", .222), ("L0 WO", .203), ("L1 WO", .202), ("L0 V", .198), ("L0 K", .195), ("L1 Q", .191), ("L1 W2", .170),
         ("L1 K", .121))  # fmt: skip
CONSTANT = {"color": "#8a8a8a", "linestyle": (0, (1, 1)), "linewidth": 1.4, "zorder": 1}
CRASH = {"color": NEUTRAL, "linestyle": (0, (4, 3)), "linewidth": 1.2, "zorder": 1}


def kinds(top):
    """Of each family of a spike its kind of weight, in the words of the legend."""
    return top["weight"].map(KINDS).fillna(OTHER)


def notes_of(row, spikes, step: int) -> list[str]:
    """What the picture of one spike says in numbers."""
    facts, crash, mine = summary(families(spikes, row.run_id, step)), crash_of(row), until_crash(spikes, row)
    lead = "" if crash is None else ", at the crash" if crash == step else f", {crash - step} before the crash"
    return [
        "A spike: the raw global gradient norm rises above 4 times its running median of 100 steps; it counts as a false alarm"
        f" unless the crash comes within {row.window} steps. Spikes of seed {row.seed}{' up to its crash' * (crash is not None)}:"
        f" {len(mine)}, false alarms: {mine['back'].sum()}.",
        f"At step {step}{lead}: the 15 largest families hold {facts['covered']:.0%} of the squared gradient norm; of these 15,"
        f" L0 to L{SHALLOW} and the embedding have {facts['shallow_share']:.0%} ({facts['shallow']} families), all W_O"
        f" {facts['WO_share']:.0%} ({facts['WO']}), all W_2 {facts['W2_share']:.0%} ({facts['W2']}).",
    ]


# ---- Figure 9

@figure("fig09_spike_trace", "Figure 9: the spike before the collapse of a plain network, traced to its weights",
        ("runs", "curves", "spikes"), ("anatomy",))  # fmt: skip
def spike_trace(folder: Path, title: str):
    runs = main_setting(load_runs(folder))
    curves, spikes = curves_of(folder, runs), read(folder, "spikes")
    traced = [row for row in runs[runs["scheme"] == "plain"].itertuples() if fatal(spikes, row) and row.run_id in curves]
    row = some(traced, "no plain run that crashed has a traced gradient spike")[0]
    step = fatal(spikes, row)[-1]
    top = families(spikes, row.run_id, step)
    fig, body = page(9.0, 7.3, f"{title.partition(':')[0]}{_seen(top)}", caption(runs, *_notes(traced, spikes, step)))
    grid = body.add_gridspec(2, 1, height_ratios=(2.2, 1))
    bars, paper, right = grid[0].subgridspec(1, 3, width_ratios=(1, 0.9, 1.35))
    handles = draw_bars(body.add_subplot(bars), top, f"seed {row.seed}, step {step},\n{row.depth} blocks")
    ax = body.add_subplot(paper)
    _bars(ax, [name for name, _ in PAPER], [value for _, value in PAPER], ["#b5b5b5"] * len(PAPER))
    ax.set_title("the paper, step 26423,\n400 blocks", color=NEUTRAL)
    handles += draw_trace(body, right.subgridspec(2, 1), curves[row.run_id], row, top)
    left, right = grid[1].subgridspec(1, 2)
    handles += draw_events(body.add_subplot(left), spikes, row)
    handles += _composition(body.add_subplot(right), spikes, row)
    legend(body, handles)
    return fig


def _seen(top) -> str:
    """What the picture shows, for its title: where the families of the spike lie, which in the paper are all shallow."""
    shallow = summary(top)["shallow"]
    where = f"L0 to L{SHALLOW} or the embedding"
    return (f": the weights of the last spike before a plain run's collapse lie in {where}" if shallow == len(top) else
            f", unlike the paper's: {shallow} of the last spike's {len(top)} largest gradients lie in {where}")


def _notes(traced, spikes, step: int) -> list[str]:
    others = []
    for row in traced[1:]:
        last = fatal(spikes, row)[-1]
        facts = summary(families(spikes, row.run_id, last))
        others.append(f"seed {row.seed}: step {last}, crash {crash_of(row)}, {facts['shallow']} families in L0 to L2 or the"
                      f" embedding with {facts['shallow_share']:.0%}, all W_O {facts['WO_share']:.0%}, all W_2 {facts['W2_share']:.0%}")
    return [
        *notes_of(traced[0], spikes, step),
        *[f"The other plain runs at their last spike: {'; '.join(others)}."] * bool(others),
        f"Lower right: shares of the squared norm of those 15 families at the last spikes (at most {MOST}) of the window; in numbers,"
        " the share of L0 to L2 and the embedding in percent.",
        "In the paper (400 layers, half the learning rate, step 26423) all 15 lie in L0 to L2 and the embedding: the onset is mixed"
        " and shallow, and the escalation 7 to 14 steps later moves to W_O and W_2; its names and values are paired by their order."
        " Its per-rank losses have no counterpart in a single process.",
    ]


def draw_bars(ax, top, title: str) -> list:
    """The families of one spike, the largest on top, coloured by kind of weight; returns the legend entries."""
    _bars(ax, list(top["family"]), list(top["family_grad_norm"]), [COLOURS[name] for name in kinds(top)])
    ax.set_title(title)
    return [Patch(color=colour, label=name) for name, colour in COLOURS.items() if name in set(kinds(top))]


def _bars(ax, names, values, colours) -> None:
    ax.barh(range(len(names)), values, color=colours, height=0.72, zorder=2)
    for y, value in enumerate(values):
        ax.text(value, y, f" {value:.3f}", va="center", fontsize=8)
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1.25 * max(values)), xlabel="gradient norm (raw)")
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")


def draw_trace(body, cells, curve, row, top) -> list:
    """Loss and raw gradient norm around the spike and the crash; returns the legend entries."""
    step, threshold, crash = int(top["step"].iloc[0]), top["threshold"].iloc[0], crash_of(row)
    ends = (step, step if crash is None else crash)
    near = curve[(curve["step"] >= min(ends) - AROUND) & (curve["step"] <= max(ends) + AROUND)]
    above = body.add_subplot(cells[0, 0])
    below = body.add_subplot(cells[1, 0], sharex=above)
    above.plot(near["step"], near["loss"], ".-", color=NEUTRAL, linewidth=1.2)
    below.plot(near["step"], near["grad_norm"], ".-", color=NEUTRAL, linewidth=1.2)
    below.plot(step, threshold, "_", color="black", markersize=16, markeredgewidth=1.5)
    for ax in (above, below):
        ax.axvline(step, color=NEUTRAL, linestyle=":", linewidth=1.2, zorder=1)
        if crash is not None:
            ax.axvline(crash, **CRASH)
    marks = {step: f"spike {step}"} if crash is None else {step: f"spike {step}", crash: f"crash {crash}"}
    if crash is not None and crash - step < 6:  # side by side they would not fit
        marks = {step: f"spike {step}, crash {crash}" if crash > step else f"spike and crash {step}"}
    for x, words in marks.items():
        above.text(x, 1.02, words, ha="center", va="bottom", fontsize=8.5, transform=above.get_xaxis_transform())
    if row.constant_loss == row.constant_loss:
        above.axhline(row.constant_loss, **CONSTANT)
    plain_log(below)
    above.tick_params(labelbottom=False)
    above.set(ylabel="loss")
    below.set(ylabel="gradient norm (raw)", xlabel="step")
    return [handle("constant predictor", **CONSTANT),
            handle("spike threshold", color="black", marker="_", markersize=14, markeredgewidth=1.5, linestyle="")]  # fmt: skip


def draw_events(ax, spikes, row) -> list:
    """Every spike of the run up to its crash, as a multiple of its threshold; returns the legend entries."""
    mine, crash, handles = until_crash(spikes, row), crash_of(row), []
    back = mine["back"]
    for mask, colour, label in ((back, "#9a9a9a", "spike that came back"),
                                (~back, "black", f"spike, crash within {row.window} steps")):
        if mask.any():
            steps, heights = mine.loc[mask, "step"], mine.loc[mask, "grad_norm"] / mine.loc[mask, "threshold"]
            ax.vlines(steps, 1, heights, color=colour, linewidth=1)
            handles += ax.plot(steps, heights, "o", color=colour, markersize=4.5, label=label, linestyle="")
    if crash is not None:
        ax.axvline(crash, **CRASH)
        handles.append(handle("crash of this run", **CRASH))
    ax.set_title(f"spikes: {len(mine)}, came back: {back.sum()} ({back.mean() if len(mine) else 0:.0%} false alarms)")
    plain_log(ax)
    ax.set(xlim=(0, (int(row.last_step) if crash is None else crash) * 1.03), xlabel="step", ylabel="norm / threshold")
    ax.set_ylim(0.95, 1.25 * max(2.0, (mine["grad_norm"] / mine["threshold"]).max()))
    return handles


def _composition(ax, spikes, row) -> list:
    """The kinds of weights in each spike before the crash, with the shallow share; returns the legend entries."""
    steps, seen = fatal(spikes, row)[-MOST:], set()
    for x, step in enumerate(steps):
        top, bottom = families(spikes, row.run_id, step), 0.0
        shares = top.groupby(kinds(top))["square"].sum() / top["square"].sum()
        for name in (name for name in COLOURS if name in shares):
            ax.bar(x, shares[name], bottom=bottom, color=COLOURS[name], width=0.8, zorder=2)
            bottom += shares[name]
            seen.add(name)
        ax.text(x, 1.02, f"{100 * summary(top)['shallow_share']:.0f}", ha="center", va="bottom", fontsize=8)
    ax.set_xticks(range(len(steps)), [f"{step}" for step in steps], rotation=90 if len(steps) > 6 else 0)
    ax.set(ylim=(0, 1.15), xlim=(-0.6, max(3, len(steps)) - 0.4), xlabel="step of the spike", ylabel="share",
           title="top 15 of each spike before the crash (L0–L2, Embed in %)")
    ax.title.set_fontsize(9)
    ax.set_yticks([0, 0.5, 1])
    ax.grid(False, axis="x")
    return [Patch(color=COLOURS[name], label=name) for name in COLOURS if name in seen]
