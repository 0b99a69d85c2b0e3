"""The tables keep their contract: exact round trips, byte-stable merges, atomic adds, and one-line errors for everything else."""

import csv
import gzip
import json
import multiprocessing
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from suite import files
from suite.environment import ROOT
from suite.records import csvfile
from suite.records import store as tables
from suite.records.beside import compare
from suite.records.byrun import curve_digest
from suite.records.checks import check_folder
from suite.records.schema import SCHEMA_VERSION, TABLES
from suite.records.store import (
    Store,
    TableError,
    format_table,
    format_value,
    put_rows,
    read,
    read_rows,
    write_rows,
)
from suite.verdict.outcome import DEAD

CURVES, EVALS, RUNS = TABLES["curves"], TABLES["evals"], TABLES["runs"]


def record(run_id="a1", *, scheme="plain", depth=4, outcome="survived", lr=0.006, seed=0, **run):
    """A complete small record."""
    row = {"run_id": run_id, "protocol": "smoke", "protocol_version": 1, "scheme": scheme, "arm": "controlled", "writers": "zero",
           "depth": depth, "lr": lr, "seed": seed, "data": "digits", "status": "done", "outcome": outcome, "final_loss": 0.7}
    return {
        "run": row | run,
        "curve": [{"step": s, "loss": 2 / (s + 3), "grad_norm": 1.0} for s in range(12)],
        "evals": [{"step": 0, "heldout_loss": 2.0}],
        "quality": [{"run_id": "real", "fid": 0.5, "fid_status": "ok"}, {"step": 11, "fid": 3.25, "fid_status": "ok"}],
        "throughput": [{"phase": "train", "count": 12, "seconds": 0.5, "hardware": "x, y"}],
        "audit": [{"step": 0, "layer": 0, "site": "attn", "segment": "all", "window": False, "rho": float("inf")}],
        "spikes": [{"step": 3, "rank": 1, "family": "L2 Q", "recovered": True}],
        "probe": [{"step": 11, "feature": "input_stats", "r2": 0.41}],
    }


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(Path(folder).rglob("*"))
            if path.is_file() and path.name != ".lock"}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "smoke")
    store.add(record())
    return store


@pytest.mark.parametrize(("value", "kind", "text"), [
    (None, "number", ""), (True, "boolean", "true"), (np.bool_(False), "boolean", "false"), (np.int64(7), "integer", "7"),
    (1 / 3, "number", "0.333333"), (np.float32(0.1), "number", "0.1"), (1e-13, "number", "1e-13"), (3, "number", "3"),
    (float("nan"), "number", "nan"), (float("inf"), "number", "inf"), (-float("inf"), "number", "-inf"), ("a b", "string", "a b"),
])
def test_format_value(value, kind, text):
    assert format_value(value, kind) == text


@pytest.mark.parametrize(("value", "kind"), [("a\nb", "string"), (1.0, "integer"), (True, "integer"), (1, "boolean"),
                                             (False, "number"), ([1], "number"), (3, "string"), (1j, "number")])
def test_format_value_refuses(value, kind):
    with pytest.raises(ValueError):
        format_value(value, kind)


def test_dictionary_is_complete():
    for table in TABLES.values():
        names = [column.name for column in table.columns]
        assert len(names) == len(set(names)) and {*table.key, *table.order} <= set(names)
        for column in table.columns:
            assert column.type in ("string", "integer", "number", "boolean"), column
            assert len(column.meaning) > 10 and "\n" not in column.meaning, column
            assert bool(column.unit) == (column.type in ("integer", "number")), column


def test_imports_stay_light():
    code = "import sys, suite.records.store; print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=ROOT).stdout.strip() == "[]"


def test_round_trip(store):
    assert check_folder(store.folder) == []
    assert store.done_ids() == {"a1"} and store.failed_ids() == set()
    runs = read(store.folder, "runs")
    assert runs.loc[0, ["run_id", "depth", "lr", "params"]].tolist() == ["a1", 4, 0.006, ""]
    assert runs["depth"].dtype == "int64" and runs["crash_step"].isna().all()
    curve = read(store.folder, "curves", scheme="plain", depth=4)
    assert curve["step"].tolist() == list(range(12)) and curve["loss"][1] == 0.5
    assert len(read(store.folder, "curves", scheme="other")) == 0
    audit = read(store.folder, "audit")
    assert audit["rho"][0] == float("inf") and audit["window"].dtype == bool and audit["tcs"].isna().all()
    assert read(store.folder, "throughput")["hardware"][0] == "x, y"
    assert read(store.folder, "quality")["step"].isna().tolist() == [False, True]
    assert set(contents(store.folder)) == {"audit/plain-L4/a1.csv.gz", "curves/plain-L4/a1.csv.gz", "datapackage.json", "evals.csv",
                                           "probe.csv", "quality.csv", "runs.csv", "spikes.csv", "throughput.csv"}


def test_read_without_results(tmp_path):
    assert read(tmp_path, "spikes").columns.tolist() == [c.name for c in TABLES["spikes"].columns]
    with pytest.raises(TableError, match="no such table"):
        read(tmp_path, "runs")


def test_order_of_adding_does_not_matter(tmp_path):
    records = [record("a1", seed=10), record("b2", seed=9), record("c3", lr=0.01), record("d4", depth=16), record("e5", scheme="mv")]
    for name, some in (("one", records), ("two", records[::-1] + records[:2])):
        for each in some:
            Store(tmp_path / name).add(each)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    rows = read_rows(tmp_path / "one" / "runs.csv", RUNS)
    assert [row["run_id"] for row in rows] == ["e5", "b2", "a1", "c3", "d4"]  # scheme, then depth, lr, seed as numbers
    package = json.loads((tmp_path / "one" / "datapackage.json").read_text())
    curves = next(r for r in package["resources"] if r["name"] == "curves")
    assert curves["path"] == "curves/*-L*/*.csv.gz" and read(tmp_path / "one", "curves")["run_id"].unique().tolist() == [
        "e5", "a1", "b2", "c3", "d4"]  # fmt: skip


def test_add_is_idempotent_and_does_not_rewrite(store):
    before, stamps = contents(store.folder), {p: p.stat().st_mtime_ns for p in store.folder.rglob("*.csv*")}
    store.add(record())
    assert contents(store.folder) == before
    assert {p: p.stat().st_mtime_ns for p in store.folder.rglob("*.csv*")} == stamps


def test_putting_rows_keeps_the_text_of_other_rows(tmp_path):
    path = tmp_path / "evals.csv"
    path.write_text('run_id,step,heldout_loss\na,0,0.50000000000\n"b,""x",5,1E+1\nc,1,nan\n')
    put_rows(path, EVALS, [{"run_id": "bb", "step": 10, "heldout_loss": 1.0}, {"run_id": "bb", "step": 9}], drop_run_ids=["c"])
    assert path.read_text() == 'run_id,step,heldout_loss\na,0,0.50000000000\n"b,""x",5,1E+1\nbb,9,\nbb,10,1\n'
    write_rows(path, EVALS, [])
    assert not path.exists()


def test_replaced_run_leaves_nothing_behind(store, tmp_path):
    store.add(record() | {"spikes": [], "probe": [], "audit": [], "curve": record()["curve"][:3]})
    fresh = Store(tmp_path / "fresh")
    fresh.add(record() | {"spikes": [], "probe": [], "audit": [], "curve": record()["curve"][:3]})
    assert contents(store.folder) == contents(fresh.folder)
    assert check_folder(store.folder) == []


BROKEN = {
    "empty": ("", "file is empty"),
    "truncated": ("run_id,step,heldout_loss\na,0,1.2", ":2: last line is cut off"),
    "ragged": ("run_id,step,heldout_loss\na,0,1\nb,0\n", ":3: 2 cells where the header has 3"),
    "blank line": ("run_id,step,heldout_loss\n\na,0,1\n", ":2: 0 cells"),
    "missing column": ("run_id,step\na,0\n", r":1: header: missing \['heldout_loss'\]"),
    "extra column": ("run_id,step,heldout_loss,x\na,0,1,2\n", r":1: header: extra \['x'\]"),
    "other order": ("step,run_id,heldout_loss\n0,a,1\n", ":1: header: columns repeated or in another order"),
    "duplicate": ("run_id,step,heldout_loss\na,0,1\na,1,1\na,0,2\n", ":4: duplicate key .*first on line 2"),
    "type": ("run_id,step,heldout_loss\na,0,1\na,1,NaN\n", ":3: heldout_loss 'NaN' is not of type number"),
    "integer": ("run_id,step,heldout_loss\na,1.0,1\n", ":2: step '1.0' is not of type integer"),
    "required": ("run_id,step,heldout_loss\n,1,1\n", ":2: run_id '' is empty but required"),
    "quote": ('run_id,step,heldout_loss\n"a,1,1\nb,1,1\n', "a quote is left open|not CSV"),
    "byte order mark": ("\ufeffrun_id,step,heldout_loss\na,1,1\n", ":1: starts with a byte order mark"),
    "line ends": ("run_id,step,heldout_loss\r\na,1,1\r\n", ":1: holds carriage returns"),
    "encoding": (b"run_id,step,heldout_loss\na,1,1\n\xff,1,1\n", ":3: not UTF-8"),
    "nul": ("run_id,step,heldout_loss\na\0,1,1\n", ":2: .*(control character|NUL)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path, name):
    data, match = BROKEN[name]
    path = tmp_path / "evals.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(TableError, match=match) as error:
        read_rows(path, EVALS)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value) and "; " in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_enum_and_bad_records_write_nothing(store):
    before = contents(store.folder)
    for change, match in [({"run": record("b")["run"] | {"arm": "own"}}, "arm 'own' is not one of controlled, native"),
                          ({"curve": [{"step": 1.5}]}, "step: 1.5 is not of type integer"), ({"evals": [{"stpe": 1}]}, "unknown columns"),
                          ({"evals": [{"step": 1}, {"step": 1}]}, "duplicate key"), ({"curves": []}, "unknown parts"),
                          ({"evals": [{"step": 1, "run_id": "a1"}]}, "holds rows of"), ({"run": record("real")["run"]}, "reserved"),
                          ({"run": record("b", scheme="../x")["run"]}, "cannot name a file")]:
        with pytest.raises(TableError, match=match):
            store.add(record("b") | change)
    assert contents(store.folder) == before


def test_any_reason_is_kept_as_one_line(store):
    store.add(record("b", status="error", outcome=None, reason="boom\n\x1b[31m at\u00a0line\r3 " + "x" * 999))
    row = next(row for row in store.runs() if row["run_id"] == "b")
    assert row["reason"].startswith("boom [31m at line 3 xxx") and len(row["reason"]) == 300
    assert store.failed_ids() == {"b"} and check_folder(store.folder) == []


def test_schema_version_is_checked(store):
    package = store.folder / "datapackage.json"
    good = package.read_text()
    package.write_text(good.replace(f'"schema_version": "{SCHEMA_VERSION}"', '"schema_version": "0"'))
    for act in (lambda: read(store.folder, "runs"), lambda: read(store.folder, "audit"), lambda: store.add(record("b")),
                lambda: tables.write_package(store.folder)):
        with pytest.raises(TableError, match=f"schema version '0', this code reads '{SCHEMA_VERSION}'"):
            act()
    assert len(check_folder(store.folder)) == 1
    package.write_text(good.replace('"name": "heldout_loss"', '"name": "other"'))
    with pytest.raises(TableError, match="columns of evals differ"):
        read(store.folder, "evals")
    for text in ("", "[]", f'{{"schema_version": "{SCHEMA_VERSION}", "resources": [3]}}', "[" * 100_000):
        package.write_text(text)
        with pytest.raises(TableError, match="not a data package"):
            read(store.folder, "evals")


@pytest.mark.parametrize("at", ["audit/plain-L8/b2.csv.gz", "curves/plain-L8/b2.csv.gz", "throughput.csv", "runs.csv", "datapackage.json"])
def test_killed_add_is_not_done_and_is_repaired(store, tmp_path, monkeypatch, at):
    """The kill comes when the temporary file is written, before it is put in place."""
    real_replace = files.os.replace

    def kill(source, target):
        if Path(target) == store.folder / at:
            raise KeyboardInterrupt
        real_replace(source, target)

    monkeypatch.setattr(files.os, "replace", kill)
    second = record("b2", depth=8, outcome="collapsed", crash_step=7, confirmed=True)
    (store.folder / "datapackage.json").unlink()  # else it is as it should be, and not written
    with pytest.raises(KeyboardInterrupt):
        store.add(second)
    monkeypatch.undo()
    # runs.csv is the commit point: only datapackage.json comes after it.
    assert Store(store.folder).done_ids() == ({"a1"} if at != "datapackage.json" else {"a1", "b2"})
    store.add(second)
    fresh = Store(tmp_path / "fresh")
    for each in (record(), second):
        fresh.add(each)
    assert check_folder(store.folder) == [] and store.done_ids() == {"a1", "b2"}
    assert contents(store.folder) == contents(fresh.folder)  # no temporary file is left either


def test_done_needs_all_that_the_row_was_written_for(store):
    """Its curve, its rows of every other table but the clock's, and its own cells."""
    whole = contents(store.folder)
    path = store.folder / "curves/plain-L4/a1.csv.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"a1,1,0.5,1", b"a1,1,0.5,1.5")))
    assert store.done_ids() == set()
    assert any("curve differs from its digest" in problem for problem in check_folder(store.folder))
    path.unlink()
    assert store.done_ids() == set()
    assert any("curve is missing" in problem for problem in check_folder(store.folder))
    path.write_bytes(whole["curves/plain-L4/a1.csv.gz"])
    for name, old, new in (("evals.csv", b"0,2\n", b"0,2.5\n"), ("runs.csv", b",0.006,", b",0.007,"), ("probe.csv", b"0.41", b"0.42"),
                           ("throughput.csv", b"0.5", b"0.6")):  # fmt: skip
        assert old in whole[name]
        (store.folder / name).write_bytes(whole[name].replace(old, new))
        assert store.done_ids() == ({"a1"} if name == "throughput.csv" else set())
        (store.folder / name).write_bytes(whole[name])
    assert store.done_ids() == {"a1"}


def test_curve_digest_is_that_of_the_committed_text(store):
    curve = read(store.folder, "curves")  # from the rounded table
    raw = record()["curve"]  # from the raw values
    named = [{"run_id": "a1"} | row for row in raw]
    digest = curve_digest(csvfile.render(CURVES, csvfile.as_text("a1", CURVES, curve.to_dict("records"))))
    assert digest == curve_digest(csvfile.render(CURVES, csvfile.as_text("a1", CURVES, named))) == store.runs()[0]["curve_digest"]
    assert re.fullmatch("d[0-9a-f]{15}", digest)


@pytest.mark.parametrize(("file", "old", "new", "problem"), [
    ("evals.csv", "a1,0", "zz,0", "rows of run zz, which is not in runs.csv"),
    ("quality.csv", "3.25,,,,,,ok", "3.25,,,,,,crashed", "has a fid although its status is crashed"),
    ("runs.csv", ",done,", ",oom,", "status oom with outcome 'survived'"),
    ("runs.csv", ",4,0.006,", ",5,0.006,", "belongs to another file"),
    ("spikes.csv", "L2 Q", '"L2 Q"', "not sorted, or quoted otherwise"),
    ("spikes.csv", "true", "yes", "recovered 'yes' is not of type boolean"),
    ("datapackage.json", "crash", "crush", "missing or not up to date"),
])
def test_check_folder_finds(store, file, old, new, problem):
    path = store.folder / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert any(problem in line for line in check_folder(store.folder)), check_folder(store.folder)


def test_check_folder_finds_foreign_files_and_no_results(store, tmp_path):
    (store.folder / "curves" / "plain-L4.csv").write_text("x\n")
    assert [line for line in check_folder(store.folder) if "no table of" in line]
    assert any("runs.csv: missing" in line for line in check_folder(tmp_path / "nothing"))


def _add_some(folder, name):
    for i in range(6):
        Store(folder).add(record(f"{name}{i}", seed=i))


def test_two_processes_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_some, args=(tmp_path / "smoke", name)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert Store(tmp_path / "smoke").done_ids() == {f"{name}{i}" for name in "ab" for i in range(6)}
    assert check_folder(tmp_path / "smoke") == []


def test_a_folder_is_checked_while_nobody_writes(store, monkeypatch):
    """`collect` beside a sweep: between two tables of one run being written, a folder looks broken."""
    half, go_on, found = threading.Event(), threading.Event(), []

    def slow(path, *args, **more):
        if path.name == "runs.csv":
            half.set()
            go_on.wait(30)
        csvfile.put_rows(path, *args, **more)

    def look():
        with Store(store.folder).still():
            found.append(check_folder(store.folder))

    monkeypatch.setattr(tables, "put_rows", slow)
    writer = threading.Thread(target=store.add, args=(record("b2", depth=9),))
    reader = threading.Thread(target=look)
    writer.start()
    assert half.wait(30) and check_folder(store.folder) != []
    reader.start()
    reader.join(0.3)
    assert reader.is_alive() and not found
    go_on.set()
    writer.join(30)
    reader.join(30)
    assert found == [[]]


def test_looking_writes_nothing(store):
    (store.folder / ".lock").unlink()
    with store.still(), Store(store.folder).still():  # any number may look at once
        pass
    assert not (store.folder / ".lock").exists()
    with store.lock():
        pass
    with store.still(), Store(store.folder).still():
        pass


def test_lock_nests(store):
    with store.lock(), store.lock():
        store.add(record("b2"))
    assert store.done_ids() == {"a1", "b2"}


def test_compare_and_format(tmp_path):
    mine, theirs = Store(tmp_path / "mine"), Store(tmp_path / "theirs")
    mine.add(record("a", outcome="collapsed", crash_step=165, final_loss=2.0))
    mine.add(record("b", depth=8))
    for seed, step in ((0, 210), (1, 170), (2, None)):
        outcome = "collapsed" if step else "survived"
        theirs.add(record(f"c{seed}", seed=seed, outcome=outcome, crash_step=step, final_loss=float("nan") if step else 0.7))
    rows = compare(mine.folder, theirs.folder)
    assert [(r["depth"], r["mine_outcome"], r["committed_outcome"], r["agree"]) for r in rows] == [
        ("4", "collapsed", "collapsed 2/3, survived 1/3", True), ("8", "survived", "", None)]
    assert (rows[0]["mine_crash_step"], rows[0]["committed_crash_step"], rows[1]["committed_runs"]) == (165, 190, 0)
    assert format_table(rows, ["scheme", "depth", "mine_crash_step", "agree"]).split("\n") == [
        "scheme  depth  mine_crash_step  agree", "plain   4                  165   true", "plain   8                    -      -"]
    assert compare(mine.folder, tmp_path / "none")[0]["agree"] is None


GOOD = b'run_id,step,heldout_loss\na,0,1.5\na,1,nan\n"b,c",0,\nd,3,-inf\n'


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 3), st.binary(max_size=3)), max_size=4), st.integers(0, len(GOOD)))
@example([(0, 0, b"\xef\xbb\xbf")], len(GOOD))
def test_mutated_files_are_read_or_refused(tmp_path_factory, edits, cut):
    """Whatever happens to the bytes: a well-formed table or a one-line TableError, and never another exception."""
    data = GOOD[:cut] if cut % 4 == 0 else GOOD
    for at, drop, insert in edits:
        data = data[:at] + insert + data[at + drop:]
    path = tmp_path_factory.getbasetemp() / "evals.csv"
    path.write_bytes(data)
    try:
        rows = read_rows(path, EVALS)
    except TableError as error:
        assert "\n" not in str(error)
        return
    frame = read(path.parent, "evals")
    assert len(frame) == len(rows) and not frame.duplicated(["run_id", "step"]).any()


cell_text = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6)
cell_rows = st.lists(st.tuples(cell_text, st.integers(0, 10**9), st.floats() | st.none()), unique_by=lambda r: r[:2], max_size=8)


@settings(max_examples=100, deadline=None)
@given(cell_rows.filter(bool))
def test_written_files_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "evals.csv"
    path.unlink(missing_ok=True)
    write_rows(path, EVALS, [dict(zip(("run_id", "step", "heldout_loss"), row)) for row in rows])
    back = read_rows(path, EVALS)
    assert [(r["run_id"], int(r["step"])) for r in back] == sorted(row[:2] for row in rows)
    assert {(r["run_id"], r["step"], r["heldout_loss"]) for r in back} == {
        (run_id, str(step), format_value(loss, "number")) for run_id, step, loss in rows}
    before = path.read_bytes()
    write_rows(path, EVALS, back)
    assert path.read_bytes() == before
    with open(path, newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == back


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted((folder / "curves").rglob("*.gz"))}


def test_a_run_has_a_file_of_its_own_whatever_comes_first(tmp_path):
    """Any gzip reads it, and its header names neither a file nor a time; a package tells a reader where they lie, in one pattern."""
    for name, order in (("one", "abc"), ("two", "cab")):
        for run_id in order:
            Store(tmp_path / name).add(record(run_id))
    one, folder = files_of(tmp_path / "one"), tmp_path / "one"
    assert one == files_of(tmp_path / "two") and list(one) == [f"curves/plain-L4/{run_id}.csv.gz" for run_id in "abc"]
    assert {data[:4] + data[4:8] for data in one.values()} == {b"\x1f\x8b\x08\0" + bytes(4)}  # no flag: no name; no time
    lines = [gzip.decompress(data).splitlines() for data in one.values()]
    assert {tuple(line[:1]) for line in lines} == {(b"run_id,step,loss,grad_norm",)} and {len(line) for line in lines} == {13}
    package = {r["name"]: r for r in json.loads((folder / "datapackage.json").read_bytes())["resources"]}
    assert package["curves"]["compression"] == "gz" and "compression" not in package["evals"]
    assert {path.relative_to(folder).as_posix() for path in folder.glob(package["curves"]["path"])} == set(one)
    assert len(pd.concat(map(pd.read_csv, folder.glob(package["curves"]["path"])))) == 36 == len(read(folder, "curves"))


def test_a_file_that_is_there_is_never_written_again(store):
    """Also one that another zlib packed; a broken one costs its own run alone, and is mended by a write."""
    store.add(record("b"))
    path = store.folder / "curves/plain-L4/a1.csv.gz"
    path.write_bytes(other := gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=7))
    store.add(record())
    assert not check_folder(store.folder) and path.read_bytes() == other
    for broken in (other[:-9], b"run_id,step\n", other[:20] + b"?" + other[21:], b""):
        path.write_bytes(broken)
        line, *_ = check_folder(store.folder)
        assert path.name in line and "\n" not in line and "restore" in line
        assert store.done_ids() == {"b"}
        with pytest.raises(TableError):
            read(store.folder, "curves")
        assert len(read(store.folder, "curves", "other")) == 0
    store.add(record())
    assert not check_folder(store.folder) and store.done_ids() == {"a1", "b"}


def test_a_file_of_another_run_or_out_of_order_is_named(store):
    path = store.folder / "curves/plain-L4/a1.csv.gz"
    good = gzip.decompress(path.read_bytes())
    lines = good.splitlines(keepends=True)
    for data, words in ((b"".join([lines[0], *lines[:0:-1]]), "not sorted"), (good.replace(b"a1,", b"b1,"), "holds rows of run b1"),
                        (good.replace(b"a1,3,", b'"a1",3,'), "not sorted, or quoted")):  # fmt: skip
        path.write_bytes(gzip.compress(data))
        with pytest.raises(TableError, match=words):
            read(store.folder, "curves")
        assert any(words in line for line in check_folder(store.folder))
    path.write_bytes(gzip.compress(good))
    path.rename(path.with_name("zz.csv.gz"))
    assert any("zz" in line and "holds rows of run a1" in line for line in check_folder(store.folder))
    (store.folder / "curves" / "stray.csv.gz").write_bytes(b"")
    assert any("stray" in line and "no table of" in line for line in check_folder(store.folder))


def test_an_untrained_run_is_no_death():
    """Counting the crash steps that are not empty counts the dead."""
    for path in sorted((ROOT / "results").glob("*/runs.csv")):
        runs = pd.read_csv(path)
        dead = runs["outcome"].isin(DEAD)
        assert (runs["crash_step"].notna() == dead).all() and (runs["confirmed"].notna() == dead).all()
        assert (runs["state"].notna() == (dead | (runs["outcome"] == "untrained"))).all()
    runs = pd.read_csv(ROOT / "results" / "frontier" / "runs.csv").query("cpu_isa == 'AVX512'")  # those of its first search
    assert (len(runs), runs["crash_step"].count(), (runs["outcome"] == "untrained").sum()) == (1053, 340, 23)


def test_the_example_of_pandas_reads_the_curves_of_a_cell(monkeypatch):
    monkeypatch.chdir(ROOT)
    text, names = (ROOT / "results" / "README.md").read_text(encoding="utf-8"), {}
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(block, names)
    curves, runs = names["curves"], names["runs"]
    cell = runs[(runs["scheme"] == "plain") & (runs["depth"] == 100) & runs["curve_digest"].notna()]
    assert set(curves["run_id"]) == set(cell["run_id"]) and len(cell) == 2
    assert curves.groupby("run_id")["step"].max().eq(cell.set_index("run_id")["last_step"]).all()
