"""A sweep: from nothing to a worker's first step, and the time of a run with one worker and with two.

The runs are the laptop protocol's at its three depths, of two schemes, at a learning rate at which none ends early.
"""

import subprocess
import sys

import pytest
from cases import FULL, case

from suite import environment
from suite.records.store import TABLES, Store, read_rows
from suite.sweep.worker_process import WorkerProcess

SCHEMES, DEPTHS, LR = "plain,mvsplit", "25,50,100", "1e-3"
EVALUATION = ("heldout", "sample", "score")


def cases(size):
    if size != FULL:
        return []
    return [case("worker_start", "mvsplit", 100), case("sweep", SCHEMES, None), case("sweep", SCHEMES, None, workers=2)]


def sweep(results, seed, depths=DEPTHS, workers=1):
    """Run `python -m suite run`, whole."""
    words = ["run", "--schemes", SCHEMES, "--depths", depths, "--lrs", LR, "--seeds", seed, "--workers", workers, "--results", results]
    done = subprocess.run([sys.executable, "-m", "suite", *map(str, words)], cwd=environment.ROOT, capture_output=True, text=True)
    if done.returncode:  # not an assert: pytest would put the command with this machine's paths into the table
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"suite run ended with exit status {done.returncode}: {last}")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder whose compile cache is filled: compilation is once per machine, and measured in bench_compile.py."""
    folder = tmp_path_factory.mktemp("sweep")
    sweep(folder, seed=0, depths="25")
    return folder


class FirstStep(Exception):
    """A worker has taken one."""


class Watch:
    """In place of `suite.sweep.progress.Progress`."""

    def step(self, run, step, loss):
        raise FirstStep

    def say(self, text):
        pass


def start(worker, run):
    with pytest.raises(FirstStep):
        worker.run([run], Watch())


def test_sweep(benchmark, results, case):
    if case["workers"] > environment.usable_cores():
        pytest.skip(f"needs {case['workers']} cores")
    benchmark.extra_info |= case | {"hardware": environment.cpu_model()}
    if case["phase"] == "worker_start":
        return worker_start(benchmark, results, case)
    seed = case["workers"]  # so that no sweep finds runs that another has done
    benchmark.pedantic(sweep, args=(results, seed, DEPTHS, case["workers"]), rounds=1)
    store = Store(results / "laptop")
    ids = {row["run_id"] for row in store.runs() if row["seed"] == str(seed)}
    rows = [row for row in read_rows(store.folder / "throughput.csv", TABLES["throughput"]) if row["run_id"] in ids]
    benchmark.extra_info |= {"divisor": len(ids), "evaluation_share": seconds(rows, EVALUATION) / seconds(rows, ("train",)),
                             "peak_mib": max(float(row["peak_mib"]) for row in rows)}  # fmt: skip


def seconds(rows, phases):
    return sum(float(row["seconds"]) for row in rows if row["phase"] in phases)


def worker_start(benchmark, results, case):
    from suite.isolation.catalogue import read
    from suite.sweep.plan import Selection, make_plan

    kind = read().get(case["scheme"]).file, "fp32"
    run, *_ = make_plan(Selection("laptop", schemes=(case["scheme"],), depths=(case["depth"],)))
    workers = []

    def fresh():
        workers.append(WorkerProcess(results, "digits", lambda run: kind))
        return (workers[-1], run), {}

    def end(*_):
        workers[-1].stop(force=True)

    benchmark.pedantic(start, setup=fresh, teardown=end, rounds=3)
    benchmark.extra_info["divisor"] = 1
