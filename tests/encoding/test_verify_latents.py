"""`verify` finds untouched runs over latents sound, and a changed cell or picture of them."""

import csv
import shutil
from functools import cache

import models
import pytest

from suite.evidence import verify
from suite.records.store import Store
from suite.scale.encoding.encode import encode
from suite.sweep.execute import execute
from suite.sweep.plan import Selection, make_plan


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Latents with captions that decode, the same when nobody knows what made them, and such with classes."""
    root = tmp_path_factory.mktemp("latents")
    models.pictures(root / "images", 40)
    words = {"vae": models.kl(root / "kl"), "size": 8, "say": lambda line: None}
    encode(root / "images", root / "captions.jsonl", root / "decoded", text=models.qwen3(root / "qwen3"), **words)
    encode(root / "images", root / "captions.jsonl", root / "unknown", text=str(root / "qwen3"), **words)
    encode(root / "images", None, root / "classes", **words)
    for name in ("unknown", "classes"):
        (root / name / "latents.json").unlink()  # made anew, without a word of an autoencoder
    return root


@pytest.fixture(scope="module")
def results_of(folders, tmp_path_factory):
    """results_of(name): the results of a run over that folder, trained once."""

    @cache
    def train(name):
        (run,) = make_plan(Selection("smoke", schemes=("plain",), depths=(2,), data=f"latents:{folders / name}"))
        results = tmp_path_factory.mktemp(name)
        Store(results / "smoke").add(execute(run, results, "digits"))
        return results

    return train


@pytest.fixture
def trained(results_of, tmp_path):
    """trained(name): a copy of these results."""
    return lambda name: shutil.copytree(results_of(name), tmp_path / "results")


@pytest.mark.parametrize(("name", "tokens", "pictures"), [("decoded", "6", 1), ("unknown", "6", 0), ("classes", "4", 0)])
def test_untouched_runs_are_sound(trained, name, tokens, pictures):
    results = trained(name)
    (row,) = Store(results / "smoke").runs()
    assert (row["status"], row["caption_tokens"]) == ("done", tokens)
    assert len(list((results / "smoke/samples").glob("*.png"))) == pictures
    assert verify.verify(results) == (1, [])


@pytest.mark.parametrize(
    ("table", "column"),
    [*(("runs", name) for name in ("caption_tokens", "constant_loss", "data_digest", "width", "compiler")), ("evals", "heldout_loss")],
)
def test_a_changed_cell_is_noticed(trained, table, column):
    results = trained("unknown")
    with open(results / f"smoke/{table}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0][column] = "1"
    with open(results / f"smoke/{table}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    assert verify.verify(results)[1]


def test_the_picture_of_decoded_latents_counts(trained):
    results = trained("decoded")
    (picture,) = (results / "smoke/samples").glob("*.png")
    whole = picture.read_bytes()
    picture.write_bytes(b"no picture")
    assert any("no picture of its own" in line for line in verify.verify(results)[1])
    picture.unlink()
    assert any("its picture, differs from its digest" in line for line in verify.verify(results)[1])
    picture.write_bytes(whole)
    assert verify.verify(results) == (1, [])
