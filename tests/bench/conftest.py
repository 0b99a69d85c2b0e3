"""What the benchmarks share. A file bench_X.py has `cases(size)`, the rows it measures, and mostly `prepare(case)`, which a
process of its own calls (`child.py`). `python -m suite bench` runs all of them and makes the table."""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from suite import environment
from suite.records.schema import TABLES

sys.path.insert(0, str(Path(__file__).parent))  # bench files and their helpers import each other by name
from cases import FULL, QUICK, TINY  # noqa: E402
from child import Child  # noqa: E402

BENCH = TABLES["bench"]
MISSED = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--size", choices=(FULL, QUICK, TINY), default=FULL)


def pytest_configure(config):
    config.stash[MISSED] = []


def pytest_generate_tests(metafunc):
    cases = metafunc.module.cases(metafunc.config.getoption("--size"))
    metafunc.parametrize("case", cases, ids=["-".join(f"{case[key]}" for key in BENCH.key if case[key]) for case in cases])


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if isinstance(item.callspec.params["case"], dict)]  # not of a file without cases at this size
    items.sort(key=lambda item: item.module.__name__ != "bench_compile")  # the others then find its cache


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Remember what could not be measured: it is a row too."""
    report = yield
    case = item.callspec.params["case"]
    if report.when != "teardown" and not report.passed:
        why = report.longrepr[2] if report.skipped else f"{call.excinfo.typename}: {call.excinfo.value}"
        status = "not measured" if report.skipped else "failed"
        reason = " ".join(why.removeprefix("Skipped: ").split())[:300]
        item.config.stash[MISSED].append(case | {"status": status, "reason": reason})
    return report


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["missed"] = config.stash[MISSED]
    output_json["provenance"] = environment.provenance()


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The compile cache of this call, empty at its start."""
    return tmp_path_factory.mktemp("compile-cache")


@pytest.fixture
def measure(request, cache):
    """measure(case, rounds=…): time the file's `prepare(case)` in a fresh process, with its peak memory.

    warmup: calls not counted; calls: calls in a round; per: what one call does, where a row is about a part of it;
    beside: a case of `plain` that takes turns with this one, for a ratio that a drift of the machine's speed leaves alone.
    """

    def run(case, *, rounds, warmup=1, calls=1, per=1, beside=None):
        if case["device"] == "cuda" and not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        benchmark = request.getfixturevalue("benchmark")
        with ExitStack() as stack:
            child = stack.enter_context(Child(request.module.__name__, case, cache))
            other = beside and stack.enter_context(Child(request.module.__name__, beside, cache))
            turns = []

            def turn_of_other():
                start = time.perf_counter()
                other.call(calls)
                turns.append(time.perf_counter() - start)

            benchmark.pedantic(child.call, args=(calls,), rounds=rounds, warmup_rounds=warmup, setup=turn_of_other if other else None)
            benchmark.extra_info |= case | child.report() | {"divisor": calls * per}
            if other:
                own = benchmark.stats.stats.data
                benchmark.extra_info["over_plain"] = statistics.median(a / b for a, b in zip(own, turns[-len(own):], strict=True))

    return run
