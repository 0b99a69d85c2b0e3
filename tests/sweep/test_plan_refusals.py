"""What a table or a score would refuse is refused or said in the plan, by the same code."""

import dataclasses

import pytest
import torch
from PIL import Image

from suite.data.load import load
from suite.quality.features import QualityError
from suite.quality.fid import check_floor
from suite.records.csvfile import as_text
from suite.records.schema import TABLES
from suite.records.store import TableError
from suite.records.values import cell_fault
from suite.sweep import execute
from suite.sweep.plan import Selection, SelectionError, check_quality, make_plan


def grey_folder(root, n, size=8):
    noise = torch.Generator().manual_seed(0)
    for i in range(n):
        (root / str(i % 2)).mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (size, size), generator=noise, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(root / str(i % 2) / f"{i}.png")
    return root


ODD = ["a\u00a0b", "a\u3000b", "a\tb", "a\nb", "a\rb", "a\x1bb", "a\udcffb", "a\u200bb", "a\ufeffb", "a\u2028b", "a\u202eb", "\u0085"]


@pytest.mark.parametrize("name", ODD)
def test_a_data_text_that_no_table_takes_is_refused_before_it_is_loaded(name, monkeypatch):
    monkeypatch.setattr("suite.sweep.plan.forks.once", lambda *words: pytest.fail("asked for its digest"))
    with pytest.raises(SelectionError) as caught:
        make_plan(Selection("smoke", data=f"imagefolder:{name}"))
    message = str(caught.value)
    assert message.isprintable() and "cannot be written into the tables" in message and "rename" in message


@pytest.mark.parametrize("name", [*ODD, "a b", " a", "a ", "a,\"b\"", "é", "日本", "a'b", "=1+1"])
def test_the_plan_asks_what_the_writer_asks(name, tmp_path):
    table = TABLES["runs"]
    sample = {"integer": 1, "number": 1.0, "boolean": True, "string": "x"}
    row = {c.name: c.enum[0] if c.enum else sample[c.type] for c in table.columns} | {"data": name}
    try:
        as_text(tmp_path / "runs.csv", table, [row])
        written = True
    except TableError:
        written = False
    assert written == (cell_fault(table, "data", name) is None)


def test_every_cell_that_a_plan_fixes_is_asked_about(scratch_registry, tmp_path):
    runs = make_plan(Selection("smoke"))
    for run in runs:
        row = execute.identity(run, [run])
        assert not [fault for name, value in row.items() if (fault := cell_fault(TABLES["runs"], name, value))]


def test_digit_features_judge_the_digits_alone(tmp_path, capsys):
    """200 images of 8 x 8 that are noise: their shape fits the digit features, and an FID of them would mean nothing."""
    runs = make_plan(Selection("smoke", schemes=("plain",), depths=(2,), data=f"imagefolder:{grey_folder(tmp_path / 'd', 200)}"))
    assert "the digit features judge the shipped digits alone" in check_quality(runs, "digits")
    assert check_quality(make_plan(Selection("smoke")), "digits") == ""
    record = execute.execute(runs[0], tmp_path / "results", "digits")
    assert [row["fid_status"] for row in record["quality"]] in (["unavailable"], ["crashed"]) and record["run"]["status"] == "done"


def test_too_few_images_for_a_floor_are_said_before_the_training(tmp_path):
    runs = make_plan(Selection("smoke", schemes=("plain",), depths=(2,), data=f"imagefolder:{grey_folder(tmp_path / 'd', 40)}"))
    with pytest.raises(SelectionError, match="cannot split 33 real images into 64"):
        check_quality(runs, "inception")
    assert "--features inception" in check_quality(runs, "digits")
    record = execute.execute(runs[0], tmp_path / "results", "digits")  # the training is kept
    assert record["run"]["status"] == "done" and record["quality"][0]["fid_status"] in ("unavailable", "crashed")


def test_the_floor_is_asked_about_by_its_own_code():
    data = load("digits")
    few = dataclasses.replace(data, train=data.train[:67])
    for features in ("digits", "inception"):
        assert "cannot split 67 real images into 64" in few.quality_fault(features, 64)
        assert dataclasses.replace(data, train=data.train[:68]).quality_fault(features, 64) == ""
    with pytest.raises(QualityError, match="cannot split 67"):
        check_floor(67, 64)
