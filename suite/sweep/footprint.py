"""About how many bytes the tables of a plan take: results are committed, and a repository has its limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from suite.protocol import Protocol, Run
from suite.records.csvfile import LARGEST
from suite.records.schema import TABLES
from suite.verdict.signature import SIGNATURE_EARLY, SIGNATURE_LATE

# Bytes of a line and of a picture, means over the committed tables (tests/sweep/test_footprint.py recomputes them)
LINE = {"runs": 380, "curves": 34, "evals": 25, "audit": 170, "quality": 100, "probe": 58, "throughput": 56}
SEGMENT_LINE = 85  # of the audit's rows over image or caption tokens, which have a few columns only
PICTURE = 13_000
PACKED = 0.34  # of the bytes of a spread table's file that is too large and so compressed
PHASES, PROBED = 5, 45  # lines of throughput.csv and probe.csv a run
WINDOW_BEFORE, FULL_BEFORE = 60, 30  # steps of the audit around a crash (suite/diagnosis/auditor.py)
FULL_EVERY = 4


def of_run(run: Run) -> tuple[int, int]:
    """(bytes of a run that lives, bytes that the audit of its death would add), before any file is compressed."""
    tables, death = _by_table(run)
    return sum(tables.values()), death


def _by_table(run: Run) -> tuple[dict[str, int], int]:
    p, lines = run.protocol, {"runs": 1, "curves": run.protocol.length, "evals": _evals(run.protocol), "throughput": PHASES}
    some = min(run.depth, p.audit_layers)
    full = run.depth if run.scheme in p.audit_full and run.seed == p.seeds[0] else 0
    death = 0
    if p.audit_every:
        strides = p.length // p.audit_every + 1
        lines["audit"] = 2 * (some * strides + (full - some) * (strides // FULL_EVERY) * bool(full))
        around = FULL_BEFORE + 1 + SIGNATURE_LATE
        death = 2 * LINE["audit"] * (some * (WINDOW_BEFORE - FULL_BEFORE) + (full or some) * around)
        death += 0 if full else 4 * SEGMENT_LINE * some * (SIGNATURE_EARLY + 1 + SIGNATURE_LATE)
    if p.fid_samples:
        lines["quality"] = 1 + sum(step <= p.length for step in p.quality_at)
    if p.probe:
        lines["probe"] = PROBED
    return {name: LINE[name] * n for name, n in lines.items()} | {"samples": PICTURE * bool(p.fid_samples)}, death


def _evals(p: Protocol) -> int:
    return p.length // p.heldout_every + 1


def said(runs: Sequence[Run]) -> str:
    """What these runs will add to the tables, in words; "" where there are none."""
    if not runs:
        return ""
    files, death = Counter(), 0
    for run in runs:
        tables, dying = _by_table(run)
        files.update({(name, run.scheme, run.depth): size for name, size in tables.items()})
        death = max(death, dying)
    spread = [name for name, table in TABLES.items() if table.spread]
    total = sum(round(size * PACKED) if name in spread and size > LARGEST else size for (name, _, _), size in files.items())
    more = f", and up to {_mb(death)} for each run that dies" if death else ""
    return f"; the rest will add about {_mb(total)} to the tables{more}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 50_000 else f"{size / 1e3:.0f} kB"
