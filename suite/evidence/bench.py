"""`python -m suite bench`: the benchmarks of tests/bench in a process of their own, their table, and the targets they
are held to.

Every number comes from one call on one machine; ratios are of medians. Nothing here imports torch.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from suite.environment import ROOT
from suite.records.schema import PROVENANCE, TABLES
from suite.records.store import format_table, format_value, read, read_rows, write_package, write_rows

FILES = ROOT / "tests" / "bench"
FOLDER = "bench"  # of a results folder; not a protocol
BENCH = TABLES["bench"]
PLAIN_CASE = {"device": "cpu", "variant": "suite", "setting": "digits", "workers": 1, "replicas": 1}


def bench(results: Path, size: str = "full", only: str = "") -> list[str]:
    """Measure, write `<results>/bench/bench.csv`, print the targets; returns one line per benchmark that failed.

    size: full (about 40 minutes on two idle cores), quick (about 5) or tiny (seconds, to test the machinery). only:
    of these the rows whose names, such as step-suite-plain-100-digits-cuda-1-120, fit pytest's -k; the table's others
    stay. Raises ValueError with one line where nothing could be measured.
    """
    folder = Path(results) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is refused before the measuring
    started = datetime.now(UTC).isoformat(timespec="seconds")
    rows = rows_of(measure(size, only), started)
    kept = read_rows(folder / BENCH.path, BENCH) if only and (folder / BENCH.path).exists() else []
    new = {_key(row) for row in rows}
    write_rows(folder / BENCH.path, BENCH, [row for row in kept if _key(row) not in new] + rows)
    write_package(folder)
    table = read(folder, "bench")
    if (table["device"] == "cpu").any():
        print(format_table(targets(table), ("figure", "measured", "target", "held")))
    if costs := over_plain(table):
        print("\nMV-Split over plain, one training step")
        print(format_table(costs, ("depth", "plain_ms", "mvsplit_ms", "time", "plain_mib", "mvsplit_mib", "memory")))
    if (table["status"][table["device"] == "cuda"] == "measured").any():
        print("\nOn a GPU: " + ", ".join(sorted(set(table["hardware"][table["device"] == "cuda"]) - {""})))
        print(format_table(gpu_targets(table), ("figure", "measured", "target", "held")))
    else:
        print("GPU: not measured")
    print(f"written to {folder / BENCH.path}")
    broken = [row for row in rows if row["status"] == "failed"]
    return [f"{row['phase']} {row['variant']} {row['scheme']} {row['depth'] or ''}: {row['reason']}" for row in broken]


def _key(row: dict) -> tuple[str, ...]:
    return tuple(format_value(row.get(column.name), column.type) for column in BENCH.columns if column.name in BENCH.key)


def measure(size: str, only: str = "") -> dict:
    """pytest-benchmark's JSON of all benchmarks, with one line of progress for each on standard error."""
    if not FILES.is_dir():
        raise ValueError(f"{FILES}: not here; the benchmarks come with a clone of the repository, not with the installed package")
    if find_spec("pytest_benchmark") is None:
        raise ValueError("pytest-benchmark is not installed; install this project's extra: pip install '.[test]'")
    files = [str(path) for path in sorted(FILES.glob("bench_*.py"))]
    with tempfile.TemporaryDirectory(prefix="screambench-") as folder:
        out = Path(folder) / "benchmarks.json"
        words = ["-o", "addopts=", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "--basetemp", f"{folder}/tmp", "--timeout=1800",
                 "--size", size, "-k", only, "-v", "--no-header", "--tb=line",
                 f"--benchmark-json={out}"]  # fmt: skip
        process = subprocess.Popen([sys.executable, "-m", "pytest", *words, *files], cwd=ROOT, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors="replace")  # fmt: skip
        try:
            said = [line.strip() for line in process.stdout if not _progress(line)]
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # pytest then ends what it started
        code = process.wait()
        if not out.exists() or code not in (0, 1):  # 1: some failed
            why = next((line for line in said if re.search(r"\w(Error|Exception)\b|^ERROR", line)), "see python -m pytest tests/bench")
            raise ValueError(f"nothing could be measured (pytest's exit status {code}): {why}")
        return json.loads(out.read_bytes())


def _progress(line: str) -> bool:
    found = re.search(r"::\w+\[(.*)\] (PASSED|SKIPPED|FAILED|ERROR).*\[ *(\d+)%\]", line)
    if found:
        word = {"PASSED": "", "SKIPPED": ": not measured"}.get(found[2], ": failed")
        print(f"{found[3]:>3} %  {found[1]}{word}", file=sys.stderr, flush=True)
    return bool(found)


def rows_of(report: dict, started: str) -> list[dict]:
    """The rows of the table from pytest-benchmark's JSON with what tests/bench/conftest.py adds to it."""
    names = {column.name for column in BENCH.columns}
    shared = {"started": started} | {name: report["provenance"][name] for name in PROVENANCE}
    rows = []
    for item in report["benchmarks"]:
        info, stats = item["extra_info"], item["stats"]
        if "divisor" not in info:  # it failed after its first round, and stands among the missed
            continue
        row = {name: value for name, value in info.items() if name in names} | {"status": "measured", "rounds": stats["rounds"]}
        row |= {"median_ms": 1e3 * stats["median"] / info["divisor"], "iqr_ms": 1e3 * stats["iqr"] / info["divisor"]}
        rows.append(row | shared)
    return rows + [row | shared for row in report["missed"]]


# ---- what the numbers say; table is the DataFrame of bench.csv

def measured(table, phase: str, column: str = "median_ms", by: str = "scheme", **where):
    """A column of the measured rows of a phase that fit, indexed by another; None fits an empty cell."""
    rows = table[(table["phase"] == phase) & (table["status"] == "measured")]
    for name, wanted in where.items():
        rows = rows[rows[name].isna() if wanted is None else rows[name] == wanted]
    return rows.set_index(by)[column].dropna()


def on_cpu(table, phase: str, depth: int | None = None, column: str = "median_ms", **where):
    """The same on the CPU; where nothing else is asked for, of single runs by one worker of our code on digits."""
    return measured(table, phase, column, depth=depth, **PLAIN_CASE | where)


def targets(table) -> list[dict]:
    """Columns figure, measured, target and held (yes, no, not measured), one row per target of the project."""
    step, deep = (on_cpu(table, "step", depth) for depth in (100, 1000))
    share, deep_share = (mine / on_cpu(table, "step", depth, variant="reference") for mine, depth in ((step, 100), (deep, 1000)))
    peak, wide = (on_cpu(table, "step", 1000, "peak_mib", setting=setting) / 1024 for setting in ("digits", "wide"))
    cold, warm = on_cpu(table, "first_step_cold", 10) / 1e3, on_cpu(table, "first_step_warm", 25) / 1e3
    one, two = (on_cpu(table, "sweep", workers=n) for n in (1, 2))
    over = _with_plain(on_cpu(table, "step", 100, "over_plain"))
    return [
        _target("step at depth 100, MV-Split, over the reference's", share.filter(["mvsplit"]), 0.38, "<= 0.38 (aim 0.27)"),
        _target("step at depth 100, worst scheme, over its reference's", share, 0.38),
        _target("step at depth 100, slowest scheme over the fastest", over / over.min(), 1.15),
        _target("step at depth 1000, worst scheme, over its reference's", deep_share, 0.35),
        _target("peak memory at depth 1000, worst scheme, GiB", peak, 3.0, "< 3"),
        _target("step at depth 1000 over step at depth 100, worst scheme", deep / step, 10.5),
        _target("first step with an empty compile cache, worst scheme, s", cold, 10.0),
        _target("the same in a new process at another depth, over it", warm / cold, 0.5, "<= 0.5 (nothing compiled again)"),
        _target("start of a worker to its first step, s", on_cpu(table, "worker_start", 100) / 1e3, 6.0),
        _target("runs per hour of two workers over one", one / two, 1.85, most=False),
        _target("evaluation over training, laptop protocol", on_cpu(table, "sweep", column="evaluation_share"), 0.5),
        _target("peak memory of 1000 blocks, width 64, 64+4 tokens, batch 32, GiB", wide, 4.0),
    ]


def gpu_targets(table) -> list[dict]:
    """The same, of one H100."""
    gpu = table[table["device"] == "cuda"]

    def best(depth):
        found = measured(gpu, "step", by="replicas", scheme="plain", variant="suite", depth=depth)
        return found.sort_values()[:1].rename("{} runs as one".format)

    deep = [best(depth) for depth in (100, 400)]
    over = deep[1] / deep[0].iloc[0] if len(deep[0]) else deep[1]
    return [
        _target("step of 100 blocks at the best number of replicas, ms a run", deep[0], 0.6),
        _target("the same at 400 blocks, over it", over, 4.2),
        _target("held-out loss at 100 blocks, ms a run", measured(gpu, "heldout", depth=100, replicas=120), 20.0),
        _target("256 samples at 100 blocks, s a run", measured(gpu, "sample", depth=100, replicas=120) * 256 / 1e3, 2.0),
    ]  # fmt: skip


def _target(figure: str, values, bound: float, text: str = "", most: bool = True) -> dict:
    """The worst of the values against an upper (or lower) bound."""
    row = {"figure": figure, "target": text or f"{'<=' if most else '>='} {bound:g}"}
    values = values.dropna()
    if values.empty:
        return row | {"measured": "-", "held": "not measured"}
    worst = values.max() if most else values.min()
    name = values.idxmax() if most else values.idxmin()
    held = worst < bound if text.startswith("< ") else worst <= bound if most else worst >= bound
    return row | {"measured": f"{worst:.3g}" + f" ({name})" * ("," not in name), "held": "yes" if held else "no"}


def over_plain(table) -> list[dict]:
    """What a step of MV-Split costs over one of plain: milliseconds and MiB of both, and the differences in percent,
    by depth.

    The difference in time is of steps taken in turn; the milliseconds are of each scheme alone, minutes apart.
    """
    out = []
    for depth in sorted(set(table.loc[table["phase"] == "step", "depth"].dropna())):
        time, memory, over = (on_cpu(table, "step", depth, column) for column in ("median_ms", "peak_mib", "over_plain"))
        if {"plain", "mvsplit"} <= set(time.index):
            out.append({"depth": int(depth), "plain_ms": time["plain"], "mvsplit_ms": time["mvsplit"], "time": _more(_with_plain(over)),
                        "plain_mib": memory.get("plain"), "mvsplit_mib": memory.get("mvsplit"), "memory": _more(memory)})  # fmt: skip
    return out


def _with_plain(over):
    """Ratios to plain, by scheme, with plain's own; empty where none was measured."""
    return over.reindex([*over.index, "plain"], fill_value=1.0) if len(over) else over


def _more(values) -> str | None:
    both = {"plain", "mvsplit"} <= set(values.index)
    return f"{round(100 * (values['mvsplit'] / values['plain'] - 1)):+d} %" if both else None
