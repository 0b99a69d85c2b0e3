"""`--data latents:DIR`: the rows that were written come back, standardised; the manifest tells of them; one line for what is wrong."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from latent_files import CAPTION, SHAPE, arrays, write
from pictures import refusal
from safetensors.torch import load_file, save_file

from suite.cli import main
from suite.data import contents
from suite.data.captions import caption_table
from suite.data.dataset import DataError
from suite.data.in_memory import Data
from suite.data.load import load
from suite.isolation.forks import Fork
from suite.presets import PROTOCOLS
from suite.records.store import Store
from suite.sweep.execute import execute
from suite.sweep.plan import Selection, SelectionError, _digest, make_plan


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def standard(columns):
    """(N, C, H, W) float64: standardised by channel over everything, in numpy."""
    x = columns["latent"].astype(np.float64)
    return (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)


# ---- rows

@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_rows_come_back_in_any_order(tmp_path, kind):
    columns = arrays()
    found = load(write(tmp_path / "d", columns, parts=3, kind=kind))
    rows = torch.tensor([23, 0, 7, 7, 12, 8, 11])
    assert (found.shape, found.caption_shape, found.classes) == (SHAPE, CAPTION, None)
    assert found.x0(rows).dtype == found.caption(rows).dtype == torch.float32
    np.testing.assert_allclose(found.x0(rows), standard(columns)[rows], atol=2e-5)
    assert torch.equal(found.caption(rows), torch.from_numpy(columns["caption"])[rows].float())
    np.testing.assert_allclose(found.pixels(found.x0(rows)), columns["latent"][rows], atol=2e-5)
    with pytest.raises(IndexError):
        found.x0(torch.tensor([24]))


def test_float32_and_fixed_size_lists_are_read_too(tmp_path):
    latents = np.random.default_rng(0).normal(size=(20, 2, 4, 4)).astype(np.float32)
    array = pa.array(latents.ravel())
    for size in (4, 4, 2):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    table = pa.table({"latent": array, "label": pa.array([3, 5] * 10)})
    with pa.ipc.new_stream(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table.slice(0, 7))
        writer.write_table(table.slice(7))
    found = load(f"latents:{tmp_path}")
    np.testing.assert_allclose(found.x0(torch.arange(20)), standard({"latent": latents}), atol=1e-5)
    assert found.classes == 2 and found.caption(torch.tensor([0, 1, 1])).tolist() == [0, 1, 1]


def test_labels_are_ranks_and_classes_are_asked_in_turn(tmp_path):
    columns = arrays(60, classes=3)
    columns["label"] = columns["label"] * 10 + 7
    found = load(write(tmp_path / "d", columns))
    assert found.caption(torch.arange(4)).tolist() == [0, 1, 2, 0] and found.caption(torch.arange(4)).dtype == torch.int64
    assert found.prompts(torch.arange(5)).tolist() == found.picture_rows(5).tolist() == [0, 1, 2, 0, 1]
    captions = found.captions(4, 8)
    assert captions(torch.tensor([0, 2])).shape == (2, 4, 8) and torch.equal(captions.empty, caption_table(3, 4, 8)[3])
    assert found.caption_shape is None and found.empty == 3
    held = torch.bincount(found.caption(found.heldout), minlength=3)
    assert held.sum() == round(60 * 297 / 1797) and held.max() - held.min() <= 1


def test_captions_to_sample_from_are_held_out_and_fill_the_picture(tmp_path):
    found = load(write(tmp_path / "d", arrays(40)))
    prompts, rows = found.prompts(torch.arange(90)), found.picture_rows(90)
    assert prompts.shape == (90, *CAPTION) and torch.equal(prompts[:7], found.caption(found.heldout))  # 7 held out
    assert torch.equal(prompts[40:80], prompts[:40]) and len(prompts[:40].flatten(1).unique(dim=0)) == 40  # then the others, then again
    assert torch.bincount(rows).tolist() == [8] * 11 + [2]
    assert torch.equal(found.captions(1, 1)(prompts), prompts) and torch.equal(found.captions(1, 1).empty, torch.zeros(CAPTION))


def test_the_split_takes_every_row_once_and_is_the_same_every_time(tmp_path):
    source = write(tmp_path / "d", arrays(6300, shape=(1, 2, 2), caption=(1, 1)))
    first, again = load(source), load(source)
    assert len(first.heldout) == 1024 and sorted([*first.train.tolist(), *first.heldout.tolist()]) == list(range(6300))
    assert torch.equal(first.heldout, again.heldout)
    assert 2900 < first.heldout.double().mean() < 3400  # spread


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_constant_loss_is_that_of_the_tensor(tmp_path, patch):
    columns = arrays(30)
    columns["latent"] += np.linspace(0, 3, 16).reshape(4, 4).astype(np.float16)  # positions that differ
    found = load(write(tmp_path / "d", columns))
    x, every = torch.from_numpy(standard(columns)), torch.arange(30)
    same = Data("x", x, every, every, every[:0], torch.zeros(1), torch.ones(1), 1, "")
    assert found.constant_loss(patch) == pytest.approx(same.constant_loss(patch), rel=1e-6)


# ---- the manifest

def test_the_sidecar_is_made_once_and_digest_knows_no_path(tmp_path, capsys):
    source = write(tmp_path / "d", arrays())
    first = load(source)
    assert capsys.readouterr().err.count("\n") == 1
    shutil.copytree(tmp_path / "d", tmp_path / "e")
    moved = load(f"latents:{tmp_path}/e")
    assert not capsys.readouterr().err and moved.digest == first.digest and len(first.digest) == 16 and first.digest[0] == "d"
    notes = json.loads((tmp_path / "d/latents.json").read_text())
    assert (notes["rows"], notes["shape"], notes["caption_shape"], notes["classes"]) == (24, [*SHAPE], [*CAPTION], None)
    assert [shard["rows"] for shard in notes["shards"]] == [12, 12] and notes["empty"] == "zeros" and notes["encoder"] is None
    names = [".contents.json", "latents.json", "latents.safetensors", "part-0.arrow", "part-1.arrow"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == names
    tensors, x = load_file(tmp_path / "d/latents.safetensors"), arrays()["latent"].astype(np.float64)
    np.testing.assert_allclose(tensors["mean_CHW"], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(tensors["square_CHW"], (x**2).mean(0), rtol=1e-12)


def test_a_given_empty_caption_is_used_and_changes_the_digest(tmp_path):
    source = write(tmp_path / "d", arrays())
    without = load(source).digest
    empty = torch.randn(CAPTION, dtype=torch.float64)
    save_file({"empty_SD": empty}, tmp_path / "d/latents.safetensors")
    assert "latents.safetensors is not the file" in refusal(source)
    (tmp_path / "d/latents.json").unlink()
    found = load(source)
    assert torch.equal(found.empty, empty.float()) and found.manifest.notes["empty"] == "given" and found.digest != without
    assert torch.equal(load(source).empty, empty.float())


def test_a_changed_shard_is_seen(tmp_path):
    source, folder = write(tmp_path / "d", arrays()), tmp_path / "d"
    before = load(source).digest
    write(tmp_path / "other", arrays(seed=1))
    whole = (folder / "part-1.arrow").read_bytes()
    (folder / "part-1.arrow").write_bytes(whole + b"\0" * 8)
    assert "part-1.arrow is not the file that latents.json knows" in refusal(source)
    (folder / "part-1.arrow").unlink()
    assert "part-1.arrow is missing" in refusal(source)
    (folder / "part-1.arrow").write_bytes(whole)
    shutil.copy(folder / "part-1.arrow", folder / "part-2.arrow")
    assert "part-2.arrow is not the file" in refusal(source) and "delete" in refusal(source)
    (folder / "latents.json").write_text("{")
    assert "delete" in refusal(source)
    (folder / "latents.json").unlink()
    assert load(source).digest != before


@pytest.fixture
def read(monkeypatch):
    """Names of the files whose contents were read for a digest."""
    names, sha256_of = [], contents.sha256_of
    monkeypatch.setattr(contents, "sha256_of", lambda path: names.append(path.name) or sha256_of(path))
    return names


def keep_times(path, change):
    """change(), after which the file's size and time of change are those from before."""
    state = path.stat()
    change()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


def test_an_untouched_folder_is_not_read_again(tmp_path, read):
    source, folder = write(tmp_path / "d", arrays()), tmp_path / "d"
    first = load(source)
    assert sorted(read) == ["part-0.arrow", "part-1.arrow"]
    assert load(source).digest == first.digest and len(read) == 2 and first.current
    os.utime(folder / "part-1.arrow")  # the same content
    assert load(source).digest == first.digest and read[2:] == ["part-1.arrow"] and not first.current
    assert load(source).digest == first.digest and len(read) == 3
    (folder / ".contents.json").write_text('{"part-0.arrow": [1]}')
    assert load(source).digest == first.digest and len(read) == 5
    shutil.copytree(folder, tmp_path / "e")  # with the notes, which are of other files
    assert load(f"latents:{tmp_path}/e").digest == first.digest and len(read) == 7


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_shard_that_was_rewritten_with_the_same_shapes_is_another(tmp_path, kind):
    source, folder = write(tmp_path / "d", arrays(), kind=kind), tmp_path / "d"
    old, shard = load(source), folder / f"part-1.{kind}"
    write(tmp_path / "other", arrays(seed=1), kind=kind)
    other = tmp_path / "other" / shard.name
    if kind == "arrow":
        keep_times(shard, lambda: shard.write_bytes(other.read_bytes()))
    else:
        state = shard.stat()
        shard.write_bytes(other.read_bytes())
        os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not old.current
    assert f"part-1.{kind} is not the file that latents.json knows; restore it, or delete" in refusal(source)
    (folder / "latents.json").unlink()
    new, mixed = load(source), arrays()
    mixed["latent"][12:], mixed["caption"][12:] = arrays(seed=1)["latent"][12:], arrays(seed=1)["caption"][12:]
    assert new.digest != old.digest and not torch.equal(new.mean, old.mean) and not torch.equal(new.std, old.std)
    np.testing.assert_allclose(new.x0(torch.arange(24)), standard(mixed), atol=2e-5)


def test_a_shard_overwritten_with_nan_is_refused_by_name_and_row(tmp_path):
    columns, folder = arrays(), tmp_path / "d"
    source = write(folder, columns)
    load(source)
    columns["latent"][17, 1, 0, 0] = np.nan
    keep_times(folder / "part-1.arrow", lambda: write(folder, columns))
    message = refusal(source)
    assert "part-1.arrow is not the file that latents.json knows: the latent of its row 5 is not finite" in message
    (folder / "latents.json").unlink()
    assert "part-1.arrow: the latent of row 5 is not finite" in refusal(source)
    assert not (folder / "latents.json").exists()


def test_a_file_that_changes_while_it_is_read_has_no_digest(tmp_path, monkeypatch):
    file = tmp_path / "x"
    file.write_bytes(b"one")

    def slow(path):
        path.write_bytes(b"two")
        return "0"

    monkeypatch.setattr(contents, "sha256_of", slow)
    with pytest.raises(OSError, match="it changes while it is read"):
        contents.digests({"x": [file]}, tmp_path / "notes")
    assert not (tmp_path / "notes").exists()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no file"):
        contents.digests({"pipe": [tmp_path / "pipe"]}, tmp_path / "notes")


def test_several_processes_make_it_at_once(tmp_path):
    source = write(tmp_path / "d", arrays(400))
    several = [Fork() for _ in range(2)]
    for process in several:
        process.ask(_digest, source, PROTOCOLS["smoke"], False)
    answers = [process.answer() for process in several]
    for process in several:
        process.close()
    assert len(set(answers)) == 1 and all(len(digest) == 16 for digest in answers), answers
    assert not list((tmp_path / "d").glob(".*.part"))


def test_a_folder_that_cannot_be_written_gives_a_line(tmp_path, monkeypatch):
    source = write(tmp_path / "d", arrays())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "latents.json cannot be written (No space left on device)" in refusal(source)
    assert sorted(path.suffix for path in (tmp_path / "d").iterdir()) == [".arrow", ".arrow"]


# ---- refusals

def test_columns_and_shapes_that_will_not_do(tmp_path):
    def said(**change):
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        columns = {name: values for name, values in (arrays() | change).items() if values is not None}
        return refusal(write(tmp_path / "d", columns))

    assert "neither a column caption nor label" in said(caption=None)
    assert "both columns caption and label" in said(label=np.arange(24))
    assert "3 x 4 are not square" in said(latent=np.ones((24, 2, 3, 4), np.float16))
    assert "(C, H, W) of float16 or float32" in said(latent=np.ones((24, 3, 4), np.float16))
    assert "(C, H, W) of float16 or float32" in said(latent=np.ones((24, 3, 4, 4)))
    flat = np.stack([arrays()["latent"][:, 0], np.full((24, 4, 4), 0.3, np.float16)], 1)
    assert "channel 1 of the latents is the same everywhere" in said(latent=flat)
    assert "rows have no class (-1)" in said(caption=None, label=np.arange(24) % 3 - 1)
    assert "24 latents of 24 classes are too few" in said(caption=None, label=np.arange(24))
    spoilt = arrays()["latent"]
    spoilt[15, 0, 2, 2] = np.inf
    assert "part-1.arrow: the latent of row 3 is not finite" in said(latent=spoilt)
    spoilt = arrays()["caption"]
    spoilt[2, 0, 0] = np.nan
    assert "part-0.arrow: the caption of row 2 is not finite" in said(caption=spoilt)


def test_shards_that_do_not_belong_together(tmp_path):
    source = write(tmp_path / "d", arrays())
    write(tmp_path / "e", arrays(shape=(3, 8, 8)))
    shutil.copy(tmp_path / "e/part-0.arrow", tmp_path / "d/zz.arrow")
    assert "(3, 4, 4) of float16 in" in refusal(source) and "zz.arrow" in refusal(source)
    write(tmp_path / "f", arrays(classes=2))
    shutil.copy(tmp_path / "f/part-0.arrow", tmp_path / "d/zz.arrow")
    assert "a column caption and" in refusal(source)
    (tmp_path / "d/zz.arrow").write_bytes(b"junk")
    assert "zz.arrow cannot be loaded" in refusal(source)
    (tmp_path / "d/zz.arrow").rename(tmp_path / "d/zz.parquet")
    assert "keep one kind" in refusal(source)


def test_ragged_rows_whose_sum_would_do(tmp_path):
    latent = [[[[0.5] * 2] * 2] * 2] * 20
    latent[3] = [[[0.1, 0.2, 0.3], [0.1]], [[1, 2], [3, 4]]]
    kind = pa.list_(pa.list_(pa.list_(pa.float32())))
    table = pa.table({"latent": pa.array(latent, kind), "label": pa.array([0, 1] * 10)})
    with pa.ipc.new_stream(str(tmp_path / "x.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert "rows of column latent differ in shape" in refusal(f"latents:{tmp_path}")


def test_texts(tmp_path):
    source = write(tmp_path / "d[1]", arrays())
    assert load(source).shape == SHAPE  # no pattern
    assert "no folder" in refusal(f"latents:{tmp_path}/none")
    assert "latents take no options" in refusal(f"{source},size=8")
    (tmp_path / "empty").mkdir()
    assert "no .arrow or .parquet file" in refusal(f"latents:{tmp_path}/empty")
    assert "for a pattern" in refusal(write(tmp_path / "p[1]", arrays(), kind="parquet"))


# ---- runs

def test_a_plan_whose_patches_do_not_divide_the_latents(tmp_path):
    source = write(tmp_path / "d", arrays(shape=(2, 5, 5)))
    with pytest.raises(SelectionError, match="latents of 5 x 5 do not divide into patches of 2") as caught:
        make_plan(Selection("smoke", schemes=("plain",), data=source))
    assert "size=" not in str(caught.value)


@pytest.mark.parametrize("classes", [0, 2])
def test_a_run_over_latents(tmp_path, capsys, classes):
    source = write(tmp_path / "d", arrays(64, classes))
    words = ["run", "--protocol", "smoke", "--schemes", "plain", "--depths", "2", "--data", source, "--results", str(tmp_path / "r")]
    assert main(words) == 0
    row = Store(tmp_path / "r/smoke").runs()[0]
    assert (row["status"], row["data_digest"]) == ("done", load(source).digest)
    assert (row["image_tokens"], row["caption_tokens"]) == ("4", "4" if classes else "5")
    assert "unavailable" in (tmp_path / "r/smoke/quality.csv").read_text()
    capsys.readouterr()
    assert main(words) == 0 and "1 done before, 0 to do" in "".join(capsys.readouterr())  # though no picture could be drawn


@pytest.mark.parametrize("values", ["other numbers", "nan"])
def test_latents_that_change_under_a_run_are_not_laid_to_its_scheme(tmp_path, values):
    """The rows are read from disk to the end: what is trained then is of no plan, and a death by nan of no scheme."""
    columns, folder = arrays(64), tmp_path / "d"
    source = write(folder, columns)
    (run,) = make_plan(Selection("smoke", schemes=("plain",), depths=(2,), data=source))
    before = {path.name: path.read_bytes() for path in folder.glob("*.arrow")}

    def overwrite(step, loss):
        if step == 2:
            late = arrays(64, seed=1)
            if values == "nan":
                late["latent"][:] = np.nan
            write(tmp_path / "late", late)
            for path in folder.glob("*.arrow"):
                with open(path, "r+b") as file:  # in place: what is mapped into memory changes too
                    file.write((tmp_path / "late" / path.name).read_bytes())

    with pytest.raises(DataError, match="is not the file that latents.json knows") as caught:
        execute(run, tmp_path / "r", "digits", overwrite)
    assert ("not finite" in str(caught.value)) is (values == "nan")
    for name, data in before.items():
        (folder / name).write_bytes(data)
    assert execute(run, tmp_path / "again", "digits")["run"]["data_digest"] == run.data_digest  # the same bytes are the same data
