"""Do outcomes depend on rounding? The same runs under other instruction sets, eager, and from weights moved by one unit in the last place.

    PYTHONPATH=. python results/rounding/measure.py --schemes plain,mvsplit --lrs 0.0107 --results results
    PYTHONPATH=. python results/rounding/measure.py --schemes plain --lrs 5.35e-3,6.15e-3 --seeds 0,1,2,3 --variants avx2 --results results

writes RESULTS/rounding/rounding.csv and goes on from what is there: one seed under every rounding, or an edge under another. Every
variant trains in a process of its own, two at a time: the instruction set is read when torch starts. A variant whose first 50 losses
are those of an earlier one is no other rounding, and does not count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from suite.environment import ROOT
from suite.protocol import short_hash
from suite.records.csvfile import read_rows, render
from suite.records.package import write_package
from suite.records.schema import TABLES
from suite.records.store import format_value

ROUNDING, EARLY = TABLES["rounding"], 50
VARIANTS = [  # isa, compiled, moved
    *((isa, compiled, 0) for isa in ("default", "avx2", "avx512") for compiled in (True, False)),
    ("default", True, 1), ("default", True, -1),
]  # fmt: skip
NAMES = {isa + "-eager" * (not compiled) + f"{moved:+d}" * bool(moved): (isa, compiled, moved) for isa, compiled, moved in VARIANTS}
KEY = ("scheme", "depth", "lr", "seed", "isa", "compiled", "moved")


def train(scheme: str, depth: int, lr: float, seed: int, compiled: bool, moved: int) -> dict[str, object]:
    """One run of the frontier protocol in this process; a row without `isa` and `counts`."""
    from dataclasses import replace

    import torch

    from suite import environment
    from suite.data.load import cached
    from suite.sweep.plan import Selection, make_plan
    from suite.training.trainer import Trainer

    torch.set_num_threads(1)
    (run,) = make_plan(Selection("frontier", schemes=(scheme,), depths=(depth,), lrs=(lr,), seeds=(seed,)))
    run = replace(run, compiled=compiled)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(run, cached(run.data), Path(folder))
        values = trainer.state.flat.values
        values.copy_(torch.from_numpy(nudged(values.numpy(), moved)))
        trainer.train()
    verdict = trainer.judge()
    early = ",".join(format_value(loss, "number") for _, loss, _ in trainer.state.curve[:EARLY])
    return {
        "scheme": scheme, "depth": depth, "lr": lr, "seed": seed, "compiled": compiled, "moved": moved, "horizon": run.protocol.horizon,
        "outcome": verdict.outcome, "crash_step": verdict.crash_step, "final_loss": verdict.final_loss,
        "heldout_loss": trainer.heldout_loss(), "early_digest": short_hash("d", early.encode(), 16), **environment.provenance(),
    }  # fmt: skip


def nudged(values: np.ndarray, moved: int) -> np.ndarray:
    """float32 values moved by that many units in the last place, up or down; zeros stay, since their last place is none."""
    out = values.copy()
    for _ in range(abs(moved)):
        out = np.where(out == 0, out, np.nextafter(out, np.float32(np.inf * moved)))
    return out


def variant(isa: str, words: list[str]) -> dict[str, object]:
    """`train` in a process with that instruction set."""
    own = {**os.environ, "ATEN_CPU_CAPABILITY": isa, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__, "--child", *words], env=own, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {**json.loads(done.stdout.splitlines()[-1]), "isa": isa}


def counted(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows with the cell `counts` of each: false where an earlier one of the same run (by VARIANTS) starts with its losses."""
    place = {(isa, format_value(compiled, "boolean"), str(moved)): i for i, (isa, compiled, moved) in enumerate(VARIANTS)}
    seen, out = set(), []
    for row in sorted(rows, key=lambda row: place[row["isa"], row["compiled"], row["moved"]]):
        start = tuple(row[name] for name in ("scheme", "depth", "lr", "seed", "early_digest"))
        out.append({**row, "counts": format_value(start not in seen, "boolean")})
        seen.add(start)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemes", required=True)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--lrs", required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--variants", default=",".join(NAMES), help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("results/local"))
    args = parser.parse_args()
    path = args.results / "rounding" / ROUNDING.path
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {tuple(row[name] for name in KEY) for row in (read_rows(path, ROUNDING) if path.exists() else [])}
    guard, kinds = threading.Lock(), {column.name: column.type for column in ROUNDING.columns}

    def one(task) -> None:
        scheme, lr, seed, (isa, compiled, moved) = task
        cells = (scheme, str(args.depth), f"{float(lr):.6g}", seed, isa, format_value(compiled, "boolean"), str(moved))
        if cells in known:
            return
        row = variant(isa, [scheme, str(args.depth), lr, seed, str(int(compiled)), str(moved)])
        fresh = {name: format_value(row.get(name), kind) for name, kind in kinds.items()}
        with guard:
            rows = counted([*(read_rows(path, ROUNDING) if path.exists() else []), {**fresh, "counts": ""}])
            path.write_bytes(render(ROUNDING, rows))
            write_package(path.parent)
        print(*cells, row["outcome"], row["crash_step"], row["final_loss"], flush=True)

    asked = (args.schemes.split(","), args.seeds.split(","), args.lrs.split(","), [NAMES[name] for name in args.variants.split(",")])
    tasks = [(scheme, lr, seed, kind) for scheme, seed, lr, kind in itertools.product(*asked)]
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(one, tasks))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        scheme, depth, lr, seed, compiled, moved = sys.argv[2:]
        print(json.dumps(train(scheme, int(depth), float(lr), int(seed), bool(int(compiled)), int(moved))))
    else:
        main()
