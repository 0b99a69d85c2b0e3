"""How every figure looks: colours and markers, the page with its caption, and saving the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import math
import textwrap
from functools import cache
from pathlib import Path

import matplotlib as mpl
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from paper_figures.digest import digest
from suite.files import write_whole
from suite.protocol import SCHEMES

RC = {
    **sns.axes_style("ticks"), "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "font.size": 10,
    "font.family": ["DejaVu Sans"], "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9,
    "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False, "axes.linewidth": 0.8, "hatch.linewidth": 0.5,
    "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False, "figure.dpi": 150,
    "image.interpolation": "nearest",
}  # fmt: skip
PALETTE = sns.color_palette("colorblind").as_hex()
PROJECT = {  # vermilion, orange, green, pink, blue
    "plain": (PALETTE[3], "o"), "layerscale": (PALETTE[1], "D"), "rezero": (PALETTE[2], "s"),
    "deepnorm": (PALETTE[4], "^"), "mvsplit": (PALETTE[0], "v"),
}  # fmt: skip
OTHERS, OTHER_MARKERS = (PALETTE[9], "#222222", "#6f3a9c", "#77770a", "#6b3e12"), "<>*hp"  # for schemes of plugins
LINES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 2, 1, 2, 1, 2)))  # variants of a scheme, its main one first
NEUTRAL = "#444444"
CONSTANT = {"color": NEUTRAL, "linestyle": (0, (4, 3)), "linewidth": 1, "zorder": 1}  # a level to compare with
SHOWS = "ScreamBench data "  # what stands in a file before the digest of what it shows
KINDS = ("png", "pdf")

OUTCOMES = {  # name in the tables: words, base colour, share of colour, hatch
    "survived": ("survived", PALETTE[2], 0.35, ""),
    "stuck": ("stuck", PALETTE[5], 0.35, "OO"),
    "collapsed": ("collapsed", PALETTE[3], 0.50, "//"),
    "degraded": ("degraded", PALETTE[1], 0.40, "\\\\"),
    "untrained": ("untrained", PALETTE[4], 0.45, "xx"),
    "nonfinite": ("nonfinite", PALETTE[0], 0.40, ".."),
    "too_short": ("too short", PALETTE[8], 0.35, "--"),
    "oom": ("oom", PALETTE[7], 0.55, "++"),
    "timeout": ("timeout", PALETTE[7], 0.55, "||"),
    "error": ("error", PALETTE[7], 0.55, "oo"),
}


def scheme_look(scheme: str) -> tuple[str, str]:
    """Colour and marker of a scheme: fixed for the five, and for any other a function of its name alone."""
    if scheme in PROJECT:
        return PROJECT[scheme]
    number = int(hashlib.sha256(scheme.encode()).hexdigest(), 16)
    return OTHERS[number % len(OTHERS)], OTHER_MARKERS[number // len(OTHERS) % len(OTHER_MARKERS)]


def scheme_order(scheme: str) -> tuple:
    """Sorting key: the five in the project's order, then the others by name."""
    return (SCHEMES.index(scheme) if scheme in SCHEMES else len(SCHEMES), scheme)


def line_of(row) -> dict:
    """Keywords of a line for a row of `rows.load_runs`: colour by scheme, dashes by variant."""
    return {"color": scheme_look(row.scheme)[0], "linestyle": LINES[row.variant % len(LINES)]}


def outcome_patch(outcome: str, **where) -> dict:
    """Keywords of a patch for an outcome: a tint under black text, and a hatch for those who see no hue."""
    _, colour, share, hatch = OUTCOMES[outcome]
    tint = tuple(1 - share * (1 - channel) for channel in to_rgb(colour))
    edge = tuple(1 - min(1, share * 1.6) * (1 - channel) for channel in to_rgb(colour))
    return {"facecolor": tint, "edgecolor": edge, "hatch": hatch, "linewidth": 0, **where}


def outcome_handles(outcomes) -> list[Patch]:
    """Legend entries of the outcomes that occur."""
    return [Patch(label=OUTCOMES[name][0], **outcome_patch(name)) for name in OUTCOMES if name in set(outcomes)]


def handle(label: str, **look) -> Line2D:
    """One legend entry."""
    return Line2D([], [], label=label, **look)


def scheme_handles(runs, markers: bool, look_of=line_of) -> list[Line2D]:
    """One legend entry per scheme and variant that occurs, in the order of the rows."""
    return [handle(row.label, linewidth=1.8, marker=scheme_look(row.scheme)[1] if markers else None, **look_of(row))
            for row in runs.drop_duplicates("label").itertuples()]  # fmt: skip


def crash_handle(label: str = "crash") -> Line2D:
    """The legend entry of a crash mark."""
    return handle(label, linestyle="", marker="X", markersize=9, color=NEUTRAL, markeredgecolor="white")


def mark_crash(ax, step: float, colour: str, level: float | None = None) -> None:
    """The mark of a crash at its step: at a level of the y axis, or on the top edge where the axis shows no loss."""
    where = ax.get_xaxis_transform() if level is None else ax.transData
    ax.plot(step, 1.0 if level is None else level, "X", transform=where, color=colour, markersize=9, markeredgecolor="white", zorder=6,
            clip_on=False)  # fmt: skip


def bare(ax) -> None:
    """An axis without grid, ticks and frame, for cells."""
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def legend(body, handles) -> None:
    """One legend below all panels, of each label once, in as many columns as fit the page."""
    handles = list({entry.get_label(): entry for entry in handles}.values())
    longest = max((_width(entry.get_label(), 9) for entry in handles), default=1) + 0.65
    columns = max(1, min(len(handles), int((body.figure.get_figwidth() - 0.3) / longest)))
    columns = math.ceil(len(handles) / math.ceil(len(handles) / columns))  # rows of even length
    body.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.2, columnspacing=1.2)


def inner_legend(ax, loc: str, handles=None) -> None:
    """A legend inside its panel, on a veil of white."""
    ax.legend(handles=handles, fontsize=8, handlelength=1.8, labelspacing=0.25, frameon=True, framealpha=0.8, edgecolor="none",
              loc=loc).set_zorder(10)  # fmt: skip


def page(width: float, height: float, title: str, caption: str):
    """(figure, body): a body of that size in inches with a title, and below it a caption that takes what it needs; its
    second line, where the numbers come from, is smaller."""
    words, _, source = caption.partition("\n")
    lines, small = wrap(words, width - 0.3, 8) if words else [], wrap(source, width - 0.3, 7) if source else []
    foot_height = 0.14 * len(lines) + 0.125 * len(small) + 0.15
    figure = Figure(figsize=(width, height + foot_height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.05)
    body, foot = figure.subfigures(2, 1, height_ratios=(height, foot_height))
    for at, part, size in ((0, lines, 8), (0.14 * len(lines) + 0.04 * bool(lines), small, 7)):
        if part:
            foot.text(0.15 / width, 1 - at / foot_height, "\n".join(part), va="top", fontsize=size, color=NEUTRAL, linespacing=1.2)
    body.suptitle("\n".join(wrap(title, width - 0.3, 12)), x=0.15 / width, ha="left", fontsize=12, fontweight="bold")
    return figure, body


def caption_of(figure) -> str:
    """The caption of a page on one line."""
    return " ".join(" ".join(text.get_text() for text in figure.subfigs[-1].texts).split())


@cache
def _width(text: str, size: float) -> float:
    """Width of one line of text in inches, unhinted and not bold."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / 72


def wrap(text: str, width: float, size: float) -> list[str]:
    """Lines of text of that font size, none wider than `width` inches; words too long for a line are cut."""
    letters = int(width * 72 / (0.4 * size))
    while letters > 1:
        lines = textwrap.wrap(text, letters, break_on_hyphens=False) or [""]
        longest = sorted(lines, key=len, reverse=True)  # first, since the first that is too wide ends the look, and measuring takes long
        if all(_width(line, size) * (1.15 if size > 10 else 1.04) <= width for line in longest):  # titles are bold
            break
        letters -= 1
    return lines


def _settle(figure: Figure) -> None:
    """Lay the page out once and round the result: the last bits of the solver's answer differ between processes."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for part in figure.subfigs:
        part.bbox_relative.p0, part.bbox_relative.p1 = part.bbox_relative.get_points().round(5)
    for ax in figure.axes:
        ax.set_position(Bbox(ax.get_position(original=True).get_points().round(5)))


def shows(figure: Figure) -> str:
    """The mark of what a figure shows, as it stands in its files. To be made before the figure is laid out."""
    return SHOWS + digest(figure)


def plain_log(ax, subs=(1, 2, 5), which: str = "y") -> None:
    """A logarithmic x or y axis with plain numbers at these multiples of powers of ten."""
    ax.set(**{f"{which}scale": "log"})
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write STEM.png and STEM.pdf. A file that would not change is left alone."""
    files = {stem.with_name(f"{stem.name}.{kind}"): data for kind, data in rendered(figure).items()}
    for path, data in files.items():
        if not path.exists() or path.read_bytes() != data:
            write_whole(path, data)
    return list(files)


def rendered(figure: Figure) -> dict[str, bytes]:
    """A figure as a file of each of KINDS (png: 150 dpi), with the mark of what it shows, and no date."""
    mark = shows(figure)
    _settle(figure)
    words = {"png": {"Software": None, "Description": mark},
             "pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Subject": mark}}  # fmt: skip
    out = {kind: io.BytesIO() for kind in KINDS}
    for kind, data in out.items():
        figure.savefig(data, format=kind, dpi=150, metadata=words[kind])
    return {kind: data.getvalue() for kind, data in out.items()}


def context():
    """Matplotlib's own defaults and ours, whatever the user's matplotlibrc says."""
    return mpl.style.context(["default", RC])
