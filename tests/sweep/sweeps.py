"""What the sweep tests share: small sweeps of the smoke protocol, and what must be the same after them."""

from pathlib import Path

from suite.protocol import Run
from suite.records.schema import TABLES
from suite.records.store import Store, read_rows, table_files
from suite.sweep.plan import Selection, make_plan
from suite.sweep.sweep import Sweep

SCHEMES = ("plain", "rezero", "mvsplit")
WORDS = ["run", "--protocol", "smoke", "--schemes", ",".join(SCHEMES)]


def plan(schemes=SCHEMES, **more) -> list[Run]:
    return make_plan(Selection("smoke", schemes=schemes, **more))


def work(runs, results, *, workers=1, retry=False, replicas=1, **more) -> Sweep:
    """A sweep in this process, with real workers unless they are patched."""
    one = Sweep(runs, Path(results), workers=workers, features="digits", retry=retry, replicas=replicas, **more)
    one.run()
    return one


def tables(results) -> dict[str, bytes]:
    """Every file that must be the same: all but timings and lock files."""
    folder = Path(results) / "smoke"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in ("throughput.csv", ".lock")}


def left_over(results) -> list[str]:
    """What lies in .work besides the cache of compiled code."""
    return sorted(path.name for path in (Path(results) / ".work").iterdir())


def rows(results) -> dict[str, dict]:
    return {row["run_id"]: row for row in Store(Path(results) / "smoke").runs()}


def check_half_way(results, reference) -> None:
    """Whatever was killed when: every table reads, and what is done is done right."""
    if not (Path(results) / "smoke" / "runs.csv").exists():
        return
    truth = rows(reference)
    for run_id, row in rows(results).items():
        assert row == truth[run_id] if row["status"] == "done" else row["status"] in ("oom", "error"), row
    for table in TABLES.values():
        for path in table_files(Path(results) / "smoke", table):
            read_rows(path, table)


def steps_trained(results) -> list[int]:
    """Optimiser steps of each run in the process that finished it; fewer than 14 if it went on from a checkpoint."""
    found: dict[str, int] = {}
    for row in read_rows(Path(results) / "smoke" / "throughput.csv", TABLES["throughput"]):
        if row["phase"] in ("train", "compile"):
            found[row["run_id"]] = found.get(row["run_id"], 0) + int(row["count"])
    return sorted(found.values())
