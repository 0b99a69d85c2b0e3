"""`verify` passes on what is committed, and notices every kind of tampering with a copy of it."""

import csv
import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from suite import cli
from suite.cli import reading
from suite.environment import ROOT
from suite.evidence import report, verify
from suite.presets import PROTOCOLS
from suite.records.checks import check_folder
from suite.records.gather import gather
from suite.records.package import write_package
from suite.records.store import RowsByRun, Store, TableError
from suite.sweep.broken import identity
from suite.sweep.plan import Selection, make_plan

RESULTS = ROOT / "results"
PICTURES = RESULTS.parent / "paper_figures" / "out"


def rewrite(path: Path, change) -> None:
    """Apply change(rows) to a CSV as plain text rows of dictionaries."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0])
    change(rows)
    with opened(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def first(folder: Path) -> Path:
    """The file of one run of a scheme at a depth."""
    return min(folder.iterdir())


@pytest.fixture
def copy(some_runs):
    return some_runs("laptop")


def test_a_copy_is_sound(copy):
    assert verify.verify(copy)[1] == []


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [
        ("crash_step", "93", "crash_step"),
        ("outcome", "degraded", "outcome"),
        ("lr", "0.006", "run id"),
        ("seed", "7", "run id"),
        ("best_loss", "0.1", "best_loss"),
        ("code_digest", "0" * 16, "code of scheme"),
        ("protocol_version", "99", "no longer has"),
        ("curve_digest", "0" * 16, "digest"),
        ("lr", "5e-3", "lr is 5e-3"),
        ("width", "64", "width is 64"),
        ("batch", "8", "batch is 8"),
        ("horizon", "500", "horizon is 500"),
        ("dtype", "bf16", "dtype is bf16"),
        ("code_digest", "", "digest gone"),
        ("window", "", "window: empty"),
        ("constant_loss", "", "constant_loss: empty"),
        ("heldout_loss", "", "heldout_loss is empty"),
        ("n_params", "1", "from its digest"),
        ("state", "mean_free", "from its digest"),
        ("platform", "Linux x86_64 ", "from its digest"),
        ("rows_digest", "", "from its digest"),
        ("trajectory", "", "trajectory is empty"),
    ],
)
def test_a_changed_cell_is_noticed(copy, column, value, word):
    def change(rows):
        row = next(r for r in rows if r["outcome"] == "collapsed")
        assert row[column] != value
        row[column] = value

    rewrite(copy / "laptop" / "runs.csv", change)
    problems = verify.verify(copy)[1]
    assert any(word in problem for problem in problems), problems


def test_a_changed_point_of_a_curve_is_noticed(copy):
    def change(rows):
        rows[40]["loss"] = "1.23456"

    rewrite(first(copy / "laptop" / "curves" / "plain-L50"), change)
    assert any("digest" in problem for problem in verify.verify(copy)[1])


def test_a_missing_curve_is_noticed(copy):
    first(copy / "laptop" / "curves" / "plain-L50").unlink()
    write_package(copy / "laptop")
    assert verify.verify(copy)[1]


def test_missing_pictures_are_noticed(copy, capsys):
    """What a picture shows is tested with the figures."""
    names = {path.name for path in PICTURES.glob("laptop-*") if path.stem != "laptop-heldout"}  # which needs two depths
    (copy / "figures").mkdir()
    assert cli.main(["verify", "--results", str(copy)]) == 1
    problems = [problem for problem in capsys.readouterr().err.splitlines() if "missing; draw it" in problem]
    assert names and {Path(problem.partition(": ")[0]).name for problem in problems} == names


def problems_of(folder):
    return verify.verify(folder)[1]


@pytest.mark.parametrize("table", ["evals", "quality", "throughput"])
def test_every_cell_of_a_side_table_counts_but_wall_clock(copy, table):
    """What nothing can compute again, such as a FID, is held by a digest over all rows of the run."""
    path = copy / "laptop" / f"{table}.csv"
    column = {"evals": "heldout_loss", "quality": "kid", "throughput": "seconds"}[table]

    def change(rows):
        row = next(row for row in rows if row[column] and row["run_id"] != "real")
        row[column] = "0.125"

    rewrite(path, change)
    found = problems_of(copy)
    assert not found if table == "throughput" else any("from its digest" in line for line in found)


def test_audit_cells_and_the_signature_count(some_runs):
    results = some_runs("stdinit")
    assert problems_of(results) == []
    path = min((results / "stdinit" / "audit").glob("*/*"))
    rewrite(path, lambda rows: rows[5].update(tcs="0.5"))
    assert any("from its digest" in line for line in problems_of(results))


def test_the_signature_is_computed_again_from_the_audit(some_runs):
    results = some_runs("anatomy")
    with open(results / "anatomy" / "runs.csv", newline="") as file:
        before = {row["run_id"]: row["mms_signature"] for row in csv.DictReader(file)}
    assert set(before.values()) > {""}
    victim = next(run_id for run_id, cell in before.items() if cell)
    other = {"true": "false", "false": "true"}[before[victim]]
    rewrite(results / "anatomy" / "runs.csv", lambda rows: [row.update(mms_signature=other) for row in rows if row["run_id"] == victim])
    assert any(f"mms_signature is {other}, its audit gives {before[victim]}" in line for line in problems_of(results))


@pytest.mark.parametrize("how", ["empty", "garbage", "swapped", "link", "extra"])
def test_sample_pictures_count(copy, how):
    one, other = sorted((copy / "laptop" / "samples").glob("*.png"))[:2]
    if how == "link":
        target = copy / "elsewhere.png"
        one.rename(target)
        one.symlink_to(target)
    elif how == "extra":
        shutil.copy(one, one.with_name("more.png"))
    else:
        one.write_bytes({"empty": b"", "garbage": b"no picture", "swapped": other.read_bytes()}[how])
    words = {"link": "no picture of its own", "extra": "belongs to no run"}.get(how, "from its digest")
    assert any(words in line for line in problems_of(copy)), how


def test_a_users_results_are_not_held_against_the_pages(copy, monkeypatch, capsys):
    """Which is of more runs than these."""
    words = ["verify", "--results", str(copy)]
    assert cli.main(words) == 0
    monkeypatch.setattr(reading, "COMMITTED", copy.resolve())
    assert cli.main(words) == 1
    assert any("docs/findings.md" in line for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("column", ["fid", "kid", "features_digest", "fid_n"])
def test_the_real_row_of_no_run_is_measured_again(copy, column):
    rewrite(copy / "laptop" / "quality.csv", lambda rows: [row.update({column: "9"}) for row in rows if row["run_id"] == "real"])
    assert any("the real row" in line for line in problems_of(copy))


@pytest.mark.parametrize(("column", "value"), [("n_params", "1"), ("image_tokens", "64"), ("constant_loss", "2.1")])
def test_what_follows_from_model_and_data_is_worked_out_again(copy, column, value):
    """Also where a forger has written a new digest beside it."""
    path = copy / "laptop" / "runs.csv"
    rewrite(path, lambda rows: rows[0].update({column: value}))
    store, parts = Store(copy / "laptop"), RowsByRun(copy / "laptop")
    rewrite(path, lambda rows: rows[0].update(rows_digest=store.digest(rows[0], parts.written(rows[0]))))
    assert check_folder(copy / "laptop") == []
    assert any(f"{column} is {value}" in line for line in problems_of(copy))


def test_a_run_that_broke_is_no_problem(tmp_path):
    run = make_plan(Selection(protocol="smoke", schemes=("plain",), depths=(2,)))[0]
    Store(tmp_path / "smoke").add({"run": identity(run, [run]) | {"status": "oom", "reason": "memory"}})
    assert verify.verify(tmp_path) == (1, [])


@pytest.mark.parametrize(("table", "column", "value"), [
    ("curves/plain-L25", "loss", ""), ("runs.csv", "depth", "-5"), ("runs.csv", "crash_step", ""), ("runs.csv", "window", ""),
])  # fmt: skip
def test_cells_that_nothing_can_be_worked_out_from_are_lines_with_file_and_run(copy, table, column, value):
    def change(rows):
        row = next(row for row in rows if row.get("outcome", "collapsed") == "collapsed")
        row[column] = value

    path = copy / "laptop" / table
    path = first(path) if path.is_dir() else path
    rewrite(path, change)
    found = problems_of(copy)
    assert any(column in line and ("run" in line or path.name in line) for line in found)
    assert not any("convert" in line or "literal" in line for line in found)


def test_the_report_names_the_cell_it_lacks(copy):
    rewrite(copy / "laptop" / "runs.csv", lambda rows: [row.update(heldout_loss="") for row in rows])
    with pytest.raises(ValueError, match="heldout_loss is empty"):
        report.outcome_table(copy / "laptop", copy / "frontier")


@pytest.mark.parametrize("what", ["cell", "picture"])
def test_what_was_tampered_with_is_not_gathered(copy, tmp_path, what):
    if what == "cell":
        rewrite(copy / "laptop" / "quality.csv", lambda rows: [row.update(fid="0.01") for row in rows if row["fid"]])
    else:
        sorted((copy / "laptop" / "samples").glob("*.png"))[0].write_bytes(b"")
    with pytest.raises(TableError, match="differs from its digest"):
        gather([copy], tmp_path / "gathered")
    assert not (tmp_path / "gathered").exists()


def test_rerun_gives_the_workers_the_plugin(tmp_path, monkeypatch):
    """Its scheme is known to this process, and has to be to theirs."""
    monkeypatch.setitem(PROTOCOLS, "smoke", replace(PROTOCOLS["smoke"], fid_samples=0, horizon=4))
    plugin = tmp_path / "mine.py"
    plugin.write_text("from suite.registry import register\nfrom suite.residual import Residual\n\n\n@register('mine')\n"
                      "class Mine(Residual):\n    def merge(self, x_BTD, f_BTD, ctx):\n        return x_BTD + 0.5 * f_BTD\n")
    words = ["--results", str(tmp_path / "r"), "--plugin", str(plugin)]
    assert cli.main(["run", "--protocol", "smoke", "--schemes", "mine", "--depths", "2", *words]) == 0
    assert cli.main(["verify", "--rerun", "1", *words]) == 0
