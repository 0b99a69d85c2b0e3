"""Runs trained as one model in a sweep: the same rows as alone but for `replicas` and `group`, kept whole, resumed and repeated."""

import random
import shutil
from collections import Counter

import pytest
import torch
from sweeps import left_over, plan, rows, steps_trained, tables, work

from suite.evidence import rerun
from suite.records.checks import check_folder
from suite.records.completeness import check_parts
from suite.records.schema import TABLES
from suite.records.store import read_rows, table_files
from suite.sweep import execute as execute_module
from suite.sweep import record as record_module
from suite.sweep import sweep as sweep_module
from suite.sweep.execute import execute
from suite.sweep.groups import group_id, group_order, in_groups
from suite.sweep.plan import Selection, make_plan
from suite.sweep.work_folder import record_path, save_record, work_folder
from suite.sweep.worker_process import WorkerProcess
from suite.training.checkpoint import CheckpointWarning


def runs(schemes=("plain", "mvsplit"), seeds=(0, 1), **more):
    return plan(schemes, depths=(2,), lrs=(1e-3, 1e-2), seeds=seeds, **more)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    work(runs(), folder, replicas=1)
    return folder


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouped")
    work(runs(), folder, replicas=3)
    return folder


def test_groups_are_even_and_stay_what_they_were_as_others_are_done():
    many = plan(("plain", "rezero"), depths=(2, 3), lrs=(1e-3, 3e-3), seeds=tuple(range(13)))
    for size in (1, 2, 3, 5, 12, 26, 40):
        groups = in_groups(many, size)
        assert sorted(run.run_id for group in groups for run in group) == sorted(run.run_id for run in many)
        for group in groups:
            assert len({(run.scheme, run.depth) for run in group}) == 1 and len(group) <= size
        for of in (("plain", 2), ("rezero", 3)):
            sizes = [len(group) for group in groups if (group[0].scheme, group[0].depth) == of]
            assert max(sizes) - min(sizes) <= 1 and len(sizes) == -(-26 // size)
        rest, order = list(groups), random.Random(size)
        while rest:
            rest = order.sample(rest, len(rest) // 2)
            left = [run for run in many if any(run in group for group in rest)]
            assert Counter(map(group_id, in_groups(left, size))) == Counter(map(group_id, rest))


def test_a_grouped_sweep_changes_no_row_but_within_rounding(alone, grouped):
    a, b = rows(alone), rows(grouped)
    assert a.keys() == b.keys() and not check_folder(grouped / "smoke") and not check_parts(grouped / "smoke")
    sizes = Counter(row["group"] for row in b.values())
    assert sorted(sizes.values()) == [2, 2, 2, 2] and {row["replicas"] for row in b.values()} == {"2"}
    assert {(row["replicas"], row["group"]) for row in a.values()} == {("1", "")}
    numbers = {c.name for c in TABLES["runs"].columns if c.type == "number"}
    for run_id, row in a.items():
        for name, cell in row.items():
            if name in numbers:
                assert cell == b[run_id][name] or float(cell) == pytest.approx(float(b[run_id][name]), rel=2e-3), name
            elif name not in ("replicas", "group", "curve_digest", "rows_digest"):
                assert cell == b[run_id][name], name
    for name, table in TABLES.items():
        ones, others = ([row for p in table_files(f / "smoke", table) for row in read_rows(p, table)] for f in (alone, grouped))
        assert len(ones) == len(others)
        if name in ("curves", "evals", "quality"):
            for one, other in zip(ones, others, strict=True):
                for column in table.columns:
                    x, y = one[column.name], other[column.name]
                    assert x == y or float(x) == pytest.approx(float(y), rel=2e-2), (name, column.name)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the promise is within rounding")
def test_a_compiled_grouped_sweep_gives_the_bytes_of_runs_alone(tmp_path):
    """On a CPU the compiled block has one code for any number of runs, so grouping moves nothing at all."""
    some = make_plan(Selection("laptop", schemes=("plain",), depths=(4,), seeds=(0, 1, 2)))
    work(some, tmp_path / "a", replicas=1)
    work(some, tmp_path / "b", replicas=3)
    for table in TABLES.values():
        for path in table_files(tmp_path / "a" / "laptop", table):
            if table.name == "throughput":
                continue
            other = tmp_path / "b" / path.relative_to(tmp_path / "a")
            for one, two in zip(read_rows(path, table), read_rows(other, table), strict=True):
                free = {"replicas", "group", "rows_digest"}
                assert {k: v for k, v in one.items() if k not in free} == {k: v for k, v in two.items() if k not in free}


def test_an_interrupted_group_keeps_its_members_apart_from_the_tables_until_it_is_whole(grouped, tmp_path, inline, monkeypatch):
    """Killed between the ends of two runs: nothing in the tables, nothing trained twice, and the same tables at the end."""
    saved = execute_module.save_record
    left = [3]

    def dies(record, results):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        saved(record, results)

    monkeypatch.setattr(execute_module, "save_record", dies)
    with pytest.raises(KeyboardInterrupt):
        work(runs(), tmp_path, replicas=3)
    assert len(rows(tmp_path)) == 2 and len(left_over(tmp_path)) >= 2
    monkeypatch.setattr(execute_module, "save_record", saved)
    work(runs(), tmp_path, replicas=3)
    assert tables(tmp_path) == tables(grouped)
    assert left_over(tmp_path) == []
    assert sum(n < 14 for n in steps_trained(tmp_path)) == 1  # the one that had trained to its end but was not measured


def test_a_run_that_breaks_after_training_leaves_the_others(grouped, tmp_path, inline, monkeypatch):
    victim = runs()[1].run_id
    score = record_module.final_quality

    def breaks(trainer, *rest):
        if trainer.run.run_id == victim:
            raise RuntimeError("no paint")
        return score(trainer, *rest)

    monkeypatch.setattr(record_module, "final_quality", breaks)
    work(runs(), tmp_path, replicas=3)
    found, truth = rows(tmp_path), rows(grouped)
    assert found[victim]["status"] == "error" and found[victim]["reason"] == "RuntimeError: no paint"
    assert found[victim]["replicas"] == "2" and found[victim]["group"] == truth[victim]["group"]
    assert {k: v for k, v in found.items() if k != victim} == {k: v for k, v in truth.items() if k != victim}
    assert "no paint" in (work_folder(tmp_path, victim) / "error.txt").read_text() and not record_path(tmp_path, victim).exists()
    monkeypatch.setattr(record_module, "final_quality", score)
    work(runs(), tmp_path, replicas=3, retry=True)
    assert rows(tmp_path)[victim]["status"] == "done" and rows(tmp_path)[victim]["replicas"] == "1"


def test_a_group_too_large_for_the_memory_says_so(tmp_path, monkeypatch):
    answer = {"event": "failed", "status": "oom", "reason": "CUDA out of memory"}
    monkeypatch.setattr(WorkerProcess, "run", lambda self, group, progress: answer)
    work(runs(("plain",)), tmp_path, replicas=4)
    found = rows(tmp_path).values()
    assert len(found) == 4 and {row["status"] for row in found} == {"oom"}
    assert {row["reason"] for row in found} == {"CUDA out of memory; 4 runs were trained as one: call with a smaller --replicas"}


def test_a_checkpoint_of_another_group_is_not_gone_on_from(tmp_path, inline, monkeypatch):
    """On a GPU another width rounds otherwise, and a run must have one width for all its steps."""
    monkeypatch.setattr(execute_module, "_record", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        work(runs(("plain",)), tmp_path, replicas=4)
    monkeypatch.undo()
    monkeypatch.setattr(WorkerProcess, "run", lambda self, group, _: save_record(execute(group[0], tmp_path, "digits"), tmp_path) or {})
    with pytest.warns(CheckpointWarning, match=f"belongs to run .* of group {group_id(sorted(runs(('plain',)), key=group_order))}"):
        work(runs(("plain",)), tmp_path, replicas=1)
    assert steps_trained(tmp_path) == [14] * 4


def test_rerun_repeats_the_group(grouped, tmp_path, monkeypatch):
    sweeps = []
    whole = sweep_module.Sweep

    def watch(wanted, *rest, **more):
        sweeps.append((len(wanted), more["replicas"]))
        return whole(wanted, *rest, **more)

    monkeypatch.setattr(sweep_module, "Sweep", watch)
    results = tmp_path / "results"
    shutil.copytree(grouped, results)
    again = rerun.rerun(results, 1, 0, 1)
    assert again[0]["compared"] == "bytes" and again[0]["agrees"] and sweeps == [(0, 1), (2, 2)]
    # with one member gone the group cannot be repeated, and what is alone is compared as on another machine
    table = results / "smoke" / "runs.csv"
    lines = table.read_text().splitlines(keepends=True)
    by_group = Counter(row["group"] for row in rows(results).values())
    assert set(by_group.values()) == {2}
    table.write_text("".join([lines[0], *(lines[1:2])]))
    (alone,) = rerun.rerun(results, 1, 0, 1)
    assert alone["compared"] == "outcome and early loss" and alone["agrees"] and "replicas, group" in alone["why"]
