"""Who finds a death as it happens? Detectors in use beside ours, shown the same logs row by row, and scored alike.

    PYTHONPATH=.:results/detect OMP_NUM_THREADS=1 python results/detect/head_to_head.py --results results [--workers 2]

writes RESULTS/detect/head_to_head.csv: a row a detector and set of logs; the detectors are those of rivals.py, the scoring that of
`python -m suite detect --score`. What is there under today's rules is kept, so that a call goes on where the last was stopped.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path

from judge_all import PROTOCOLS
from rivals import RIVALS

from suite import environment
from suite.environment import ROOT
from suite.evidence.online import Seen, score, sets
from suite.identity.codedigest import file_digest
from suite.records.csvfile import read_rows, render
from suite.records.package import write_package
from suite.records.schema import TABLES
from suite.records.store import format_value

TABLE = TABLES["head_to_head"]
RULE = ("results/detect/rivals", "suite/evidence/online", "suite/detect/simulated", "suite/detect/change", "suite/detect/judge",
        "suite/diagnosis/watch")  # fmt: skip


@lru_cache
def shown(results: Path) -> dict[str, list[Seen]]:
    """The logs, by set; once a process."""
    return dict(sets(results, PROTOCOLS))


def measured(results: Path, name: str, logs: str) -> dict[str, object]:
    """The row of a detector and a set of logs."""
    watches, make = RIVALS[name]
    return {"logs": logs, "detector": name, "watches": watches, **score(make, shown(results)[logs], name).row()}


def asked(results: Path) -> list[tuple[str, str]]:
    """(detector, set of logs) of every row: one that watches the norm alone is not asked about logs without any."""
    return [(name, logs) for name, (watches, _) in RIVALS.items() for logs, cases in shown(results).items()
            if watches != "norm" or any(log.grad_norm is not None for log in cases)]  # fmt: skip


def rule_digest() -> str:
    """The digest of the files that make an alarm, and the score."""
    return "+".join(file_digest(ROOT / f"{name}.py") for name in RULE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread")
    args = parser.parse_args()
    path = args.results / "detect" / TABLE.path
    rows = [row for row in read_rows(path, TABLE) if row["rule_digest"] == rule_digest()] if path.exists() else []
    done = {(row["detector"], row["logs"]) for row in rows}
    with ProcessPoolExecutor(args.workers) as pool:
        todo = [pool.submit(measured, args.results, *pair) for pair in asked(args.results) if pair not in done]
        for one in as_completed(todo):
            row = one.result() | {"rule_digest": rule_digest(), **environment.provenance()}
            rows.append({column.name: format_value(row.get(column.name), column.type) for column in TABLE.columns})
            rows.sort(key=lambda row: [row[name] for name in TABLE.key])
            path.write_bytes(render(TABLE, rows))
            print(*(f"{name}={row[name]}" for name in (*TABLE.key, "died", "found", "early", "delay", "lived", "false_alarms")), flush=True)
    write_package(path.parent)


if __name__ == "__main__":
    main()
