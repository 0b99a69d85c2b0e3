"""What a training step costs in time and memory, by depth and scheme, beside a straightforward eager implementation."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from paper_figures.figure import NotDrawn, figure, some
from paper_figures.style import NEUTRAL, handle, legend, page, plain_log, scheme_look, scheme_order
from suite.evidence.bench import over_plain
from suite.evidence.words import called
from suite.records.schema import PROVENANCE
from suite.records.store import read

SAME = ("started", "hardware", *PROVENANCE)  # what rows must share before their timings may be compared
LOOKS = {"suite": ("-", 1.6, 5), "reference": ("--", 1.1, 3.5)}  # dashes, line width, marker size
COLUMNS = {"depth": "blocks", "rounds": "steps in turn", "plain_ms": "plain, ms", "time": "time", "memory": "memory"}
EDGES = (0.75, 2.1, 3.2, 4.1, 5.2)  # where the columns of the table end


@figure("cost", "Cost of a training step, by depth and scheme", ("bench",), ("bench",))
def cost(folder: Path, title: str):
    table = read(folder, "bench")
    steps = table[(table["phase"] == "step") & (table["device"] == "cpu") & (table["replicas"] == 1) & (table["status"] == "measured")]
    steps = some(steps[steps["setting"] != "wide"], "no step was measured")
    if mixed := [name for name in SAME if steps[name].nunique() > 1]:
        raise NotDrawn(f"the timings were not taken together ({', '.join(mixed)} differ); run bench again")
    fig, body = page(9.0, 6.0, title, _caption(table, steps))
    (time, memory), (over, costs) = body.subplots(2, 2, height_ratios=(1.25, 1))
    plain = steps[(steps["scheme"] == "plain") & (steps["variant"] == "suite")].set_index("depth")["median_ms"]
    for (scheme, variant), group in steps.sort_values("depth").groupby(["scheme", "variant"]):
        colour, marker = scheme_look(scheme)
        dashes, width, size = LOOKS[variant]
        look = {"color": colour, "linestyle": dashes, "linewidth": width, "marker": marker, "markersize": size, "zorder": 3}
        depths = group["depth"].astype(float)
        memory.plot(depths, group["peak_mib"] / 1024, **look)
        if variant == "suite" and scheme != "plain":  # its own milliseconds were taken minutes away from plain's
            over.plot(depths, 100 * (group["over_plain"] - 1), **look)
            time.plot(depths, group["over_plain"] * group["depth"].map(plain) / depths, **look)
        else:
            time.errorbar(depths, group["median_ms"] / depths, yerr=group["iqr_ms"] / depths / 2, elinewidth=0.8, capsize=2, **look)
    over.axhline(0, color=scheme_look("plain")[0], linewidth=1.6, zorder=2)
    time.set(ylim=(0, None), ylabel="ms per block and step", title="time of a step")
    plain_log(memory)
    memory.set(ylabel="GiB, the whole process", title="peak memory")
    over.set(ylabel="% over plain", title="time of a step over plain's, in turn")
    for ax in (time, memory, over):
        ax.set(xscale="log", xlabel="depth (blocks)")
        ax.xaxis.set_major_locator(FixedLocator([float(depth) for depth in sorted(set(steps["depth"]))]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    rounds = steps[(steps["scheme"] == "mvsplit") & (steps["variant"] == "suite")].set_index("depth")["rounds"]
    _table(costs, [row | {"rounds": rounds.get(row["depth"])} for row in over_plain(table)])
    looks = {scheme: scheme_look(scheme) for scheme in sorted(set(steps["scheme"]), key=scheme_order)}
    handles = [handle(called(scheme), color=colour, marker=marker, markersize=5, linewidth=1.6)
               for scheme, (colour, marker) in looks.items()]  # fmt: skip
    legend(body, [*handles, handle("eager reference", color=NEUTRAL, linestyle="--", linewidth=1.1)])
    return fig


def _table(ax, rows: list[dict]) -> None:
    """MV-Split over plain in numbers, one line a depth."""
    ax.axis("off")
    ax.set(xlim=(0, EDGES[-1]), ylim=(max(6, 2 + len(rows)), 0), title="MV-Split over plain, one step")
    for edge, (name, words) in zip(EDGES, COLUMNS.items(), strict=True):
        ax.text(edge, 0.75, words, ha="right", va="center", fontsize=9, color=NEUTRAL)
        for line, row in enumerate(rows):
            value = row[name]
            text = "–" if value is None else value if isinstance(value, str) else f"{value:.{int(name == 'plain_ms' and value < 100)}f}"
            weight = "bold" if name in ("time", "memory") else "normal"
            ax.text(edge, 1.9 + line, text, ha="right", va="center", fontsize=9.5, fontweight=weight)
    ax.plot([0.1, EDGES[-1]], [1.25, 1.25], color=NEUTRAL, linewidth=0.8)
    if not rows:
        ax.text(0.1, 1.9, "not measured", fontsize=9)


def _caption(table, steps) -> str:
    first, rounds = steps.iloc[0], sorted(set(steps["rounds"]))
    threads = f"{first.threads} thread{'s' if first.threads != 1 else ''}"
    gpu = sorted(set(table.loc[(table["device"] == "cuda") & (table["status"] == "measured"), "hardware"]))
    notes = [
        f"Medians of {' to '.join(f'{n}' for n in dict.fromkeys((rounds[0], rounds[-1])))} steps, each point in a process of its own,",
        "all in one call; bars: interquartile range. Over plain: median over steps taken in turn, one of plain and one of the scheme,",
        "so that a drift of the machine's speed does not count; of few steps it is rough. The time of a scheme of the suite is plain's",
        "times this ratio. Memory holds what Python and its imports take.",
        "Dashed: a straightforward eager implementation of the same scheme (tests/bench/reference.py).",
        f"GPU: measured too, in bench.csv ({', '.join(gpu)})." if gpu else "GPU: not measured.",
    ]
    source = (f"Width {first.width}, {first.image_tokens}+{first.caption_tokens} tokens, batch {first.batch}, {first['dtype']}, "
              f"{threads} on {first.hardware} ({first.cpu_isa}), torch {first.torch}, {first.compiler or 'no C++ compiler'}, "
              f"commit {first.commit or 'unknown'}, {first.started[:10]}.")
    return f"{' '.join(notes)}\n{source}"
