"""`verify` passes on what is committed, and notices every kind of tampering with a copy of it."""

import csv
import shutil
from pathlib import Path

import pytest

from suite.environment import ROOT
from suite.evidence import report, verify
from suite.records.csvfile import write_package

RESULTS = ROOT / "results"
LAPTOP = RESULTS / "laptop"
PICTURES = RESULTS.parent / "paper_figures" / "out"


def rewrite(path: Path, change) -> None:
    """Apply change(rows) to a CSV as plain text rows of dictionaries."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0])
    change(rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(LAPTOP, tmp_path / "results" / "laptop")
    return tmp_path / "results"


@pytest.mark.parametrize("pictures", [None, pytest.param(PICTURES, marks=pytest.mark.slow)], ids=["tables", "pictures"])
def test_committed_results_are_sound(pictures):
    checked, problems = verify.verify(RESULTS, pictures)
    assert not problems
    assert checked >= 15


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

    rewrite(copy / "laptop" / "curves" / "plain-L100.csv", change)
    assert any("digest" in problem for problem in verify.verify(copy)[1])


def test_a_missing_curve_is_noticed(copy):
    (copy / "laptop" / "curves" / "plain-L100.csv").unlink()
    write_package(copy / "laptop")
    assert verify.verify(copy)[1]


def test_missing_pictures_are_noticed(copy, tmp_path):
    """What a picture shows is tested with the figures."""
    names = {path.name for path in PICTURES.glob("laptop-*")}
    problems = [problem for problem in verify.verify(copy, tmp_path / "pictures")[1] if "missing; draw it" in problem]
    assert names and {Path(problem.partition(": ")[0]).name for problem in problems} == names


def test_readme_table_is_that_of_the_results(copy, monkeypatch, tmp_path):
    readme = tmp_path / "README.md"
    shutil.copy(report.README, readme)
    monkeypatch.setattr(report, "README", readme)
    assert report.readme_differs(copy) == []
    readme.write_text(readme.read_text().replace("survived", "thrived"))
    assert len(report.readme_differs(copy)) == 1
    report.write_readme(copy)
    assert report.readme_differs(copy) == []


def test_committed_files_are_small():
    sizes = {path: path.stat().st_size for path in RESULTS.rglob("*") if path.is_file() and "local" not in path.parts}
    sizes = {path: size for path, size in sizes.items() if ".work" not in path.parts}
    assert max(sizes.values()) < 10e6
    assert sum(sizes.values()) < 60e6
