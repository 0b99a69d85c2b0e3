"""What `--data` names is what is loaded: every character of a path, every file below it, as a viewer would show them."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import classes, fill, parquet, picture, refusal
from PIL import Image

from suite import environment
from suite.data.load import load


def bytes_of(found):
    """(N, C, H, W) pixels as bytes."""
    return (found.pixels(found.images_NCHW) * 255).round()


def table(path, first):
    import datasets

    kinds = datasets.Features({"pic": datasets.Image(), "label": datasets.Value("int64")})
    return parquet(path, {"pic": [picture(first + i) for i in range(20)], "label": [0, 1] * 10}, kinds)


# ---- paths

@pytest.mark.parametrize("name", ["set[1]", "set*", "set?", "[s]et", "set{1,2}", "**", "a,size=4", "a,b", "train", "a b", "é", "#x", "%41",
                                  "x="])
def test_a_folder_is_taken_by_its_name_alone(tmp_path, name):
    fill(tmp_path / name, classes("a", "b"))
    alone = load(f"imagefolder:{tmp_path}/{name}")
    assert torch.equal(bytes_of(alone)[0, 0], torch.from_numpy(np.array(picture(0))).float()) and len(alone.images_NCHW) == 20
    for twin in ("set1", "setx", "s", "a"):
        fill(tmp_path / twin, classes("a", "b"), first=500)
    again = f"imagefolder:{tmp_path}/{name}" + "/" * (name == "a,size=4")  # a/ and a,size=4/ exist now
    assert load(again).digest == alone.digest


@pytest.mark.parametrize("name", ["a[1].parquet", "a*.parquet", "a?.parquet", "label=3/a.parquet", "a,b.parquet", "test.parquet"])
def test_a_parquet_file_is_taken_by_its_name_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    table(tmp_path / "a1.parquet", 500)
    table(tmp_path / name, 0)
    found = load(f"parquet:{tmp_path}/{name},size=8")
    assert torch.equal(bytes_of(found)[0, 0], torch.from_numpy(np.array(picture(0))).float()) and found.classes == 2


def test_two_readings_of_a_comma_are_refused(tmp_path):
    fill(tmp_path / "a", classes("x", "y"))
    fill(tmp_path / "a,size=4", classes("x", "y"), first=50)
    assert "both" in refusal(f"imagefolder:{tmp_path}/a,size=4")
    assert load(f"imagefolder:{tmp_path}/a/,size=4").images_NCHW.shape[-1] == 4
    assert load(f"imagefolder:{tmp_path}/a,size=4/").images_NCHW.shape[-1] == 8
    assert "both" in refusal(f"imagefolder:{tmp_path}/a,size=4,size=6")
    assert load(f"imagefolder:{tmp_path}/a,size=4/,size=6").images_NCHW.shape[-1] == 6


@pytest.mark.parametrize(("source", "words"), [
    ("imagefolder:", "names no source"), ("parquet:", "names no source"), ("imagefolder:,size=3", "names no source"),
    ("imagefolder:x,size=8,size=4", "size= is given twice"), ("imagefolder:x,size=²", "size=²"), ("imagefolder:x,size=٣", "size=٣"),
    ("imagefolder:x,size=" + "9" * 5000, "not a positive whole number"), ("imagefolder:x,size=1_0", "size=1_0"),
    ("imagefolder:x,size= 8", "size= 8"), ("imagefolder:x,label=", "label= has no value"), ("imagefolder:x,split=", "split= has no value"),
    ("imagefolder:" + "x" * 5000, "no folder"), ("folder:x", "not a hub name"), ("../x", "not a hub name"), ("a*", "not a hub name"),
    ("imagefolder", "is a file format"), ("a/b,sise=3", "unknown option 'sise'"),
])
def test_texts_that_name_nothing(source, words):
    assert words in refusal(source)


def test_a_hub_name_that_lies_here_is_asked_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "flowers", classes("a", "b"))
    assert "imagefolder:flowers" in refusal("flowers")


# ---- names choose nothing

@pytest.mark.parametrize("label", ["train", "test", "val", "validation", "test_strips", "dev", "eval"])
def test_words_of_splits_in_names_are_names(tmp_path, label):
    names = [f"{label}/{i:02}.png" for i in range(10)] + [f"other/{word}_{i}.png" for word in ("train", "val", "x") for i in range(6)]
    found = load(f"imagefolder:{fill(tmp_path / 'd', names)}")
    assert len(found.images_NCHW) == 28 and found.classes == 2


def test_only_the_option_chooses_a_split(tmp_path):
    fill(tmp_path / "d/train", classes("a", "b"))
    fill(tmp_path / "d/test", classes("a", "b"), first=100)
    source = f"imagefolder:{tmp_path}/d"
    assert "folder in a class folder" in refusal(source) and "split=" in refusal(source)
    train, test = load(f"{source},split=train"), load(f"{source},split=test")
    assert train.digest == load(f"{source}/train").digest != test.digest
    for wrong in ("..", "nix", "train/a", "train[:5]"):
        assert "no folder of that name" in refusal(f"{source},split={wrong}")
    assert "a file is used whole" in refusal(f"parquet:{table(tmp_path / 'x.parquet', 0)},split=train")


def test_what_is_hidden_or_text_is_no_picture_and_all_else_must_be(tmp_path):
    root = fill(tmp_path / "d", classes("a", "b"))
    before = load(f"imagefolder:{root}").digest
    for name in (".DS_Store", "._00.png", "Thumbs.db", "notes.txt", ".hidden/x.png"):
        (root / "a" / name).parent.mkdir(exist_ok=True)
        (root / "a" / name).write_bytes(b"junk")
    fill(root, ["__MACOSX/x.png", "LICENSE.png"]) and (root / "LICENSE.png").rename(root / "LICENSE")
    assert load(f"imagefolder:{root}").digest == before
    picture(77).save(root / "a" / "nosuffix", format="PNG")
    assert len(load(f"imagefolder:{root}").images_NCHW) == 21
    (root / "a" / "photo.heic").write_bytes(b"ftypheic")
    assert "photo.heic cannot be read" in refusal(f"imagefolder:{root}")


def test_pictures_that_would_be_lost_are_named(tmp_path):
    root = fill(tmp_path / "d", [*classes("a", "b"), "stray.png"])
    assert "1 images lie beside the class folders" in refusal(f"imagefolder:{root}")
    (root / "stray.png").unlink()
    (root / "more.zip").write_bytes(b"PK")
    assert "more.zip would stay unopened" in refusal(f"imagefolder:{root}")
    (root / "more.zip").unlink()
    (root / "empty").mkdir()
    assert "holds no images" in refusal(f"imagefolder:{root}")


def test_links_are_followed_and_what_is_no_file_is_not_waited_for(tmp_path):
    root = fill(tmp_path / "d", classes("a", "b"))
    (tmp_path / "linked").mkdir()
    for label in "ab":
        (tmp_path / "linked" / label).symlink_to(root / label)
    assert load(f"imagefolder:{tmp_path}/linked").digest == load(f"imagefolder:{root}").digest
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    assert "gone.png cannot be read" in refusal(f"imagefolder:{root}")
    (root / "a" / "gone.png").unlink()
    os.mkfifo(root / "a" / "pipe.png")
    assert "it is no file" in refusal(f"imagefolder:{root}")
    (root / "a" / "pipe.png").unlink()
    (root / "a" / "loop").symlink_to(root)
    assert "folder in a class folder" in refusal(f"imagefolder:{root}")


def test_odd_names_of_files_load_and_make_one_line(tmp_path):
    root = fill(tmp_path / "d", classes("a", "b"))
    for i, name in enumerate(("x\ny.png", "\udcff.png", "-.png")):
        picture(i + 50).save(root / "a" / "new.png")
        os.rename(root / "a" / "new.png", root / "a" / name)
    assert len(load(f"imagefolder:{root}").images_NCHW) == 23
    (root / "a" / "x\ny.png").write_bytes(b"junk")
    assert "x\\ny.png cannot be read" in refusal(f"imagefolder:{root}")


def test_metadata_names_the_classes(tmp_path):
    root = fill(tmp_path / "d", [f"train_{i}.png" for i in range(20)])
    rows = ["file_name,kind"] + [f"train_{i}.png,{'NA' if i % 2 else 'cat'}" for i in range(20)]
    (root / "metadata.csv").write_text("\n".join(rows))
    found = load(f"imagefolder:{root},label=kind")
    assert found.classes == 2 and found.labels_N.tolist() == [1, 0] * 10  # NA is a name
    assert "no label column" in refusal(f"imagefolder:{root}")
    (root / "metadata.csv").write_text("\n".join(rows[:-3]))
    assert "3 images are not listed" in refusal(f"imagefolder:{root},label=kind")
    (root / "metadata.csv").write_text("\n".join([*rows, rows[1]]))
    assert "twice" in refusal(f"imagefolder:{root},label=kind")
    (root / "metadata.csv").rename(root / "metadata.jsonl")
    for junk in (b"[1]\n", b"\xff\n", b"{\n"):
        (root / "metadata.jsonl").write_bytes(junk)
        assert "metadata.jsonl cannot be read" in refusal(f"imagefolder:{root},label=kind")


@pytest.mark.parametrize("table", ["metadata.jsonl", "a/metadata.jsonl"])
def test_metadata_of_something_else_beside_class_folders(tmp_path, table):
    root = fill(tmp_path / "d", classes("a", "b"))
    plain = load(f"imagefolder:{root}")
    names = [name if "/" not in table else Path(name).name for name in classes("a", "b") if "/" not in table or name.startswith("a/")]
    (root / table).write_text("\n".join(json.dumps({"file_name": name}) for name in names))
    found = load(f"imagefolder:{root}")
    assert torch.equal(found.labels_N, plain.labels_N) and torch.equal(found.images_NCHW, plain.images_NCHW)
    (root / table).write_text("\n".join(json.dumps({"file_name": name, "label": "z"}) for name in names))
    if "/" in table:
        assert "has a column 'label', and lies in a class folder" in refusal(f"imagefolder:{root}")
    assert "no label column" in refusal(f"imagefolder:{root},label=kind") or "/" in table


def test_a_comma_without_quotes_is_no_end_of_a_text(tmp_path):
    root = fill(tmp_path / "d", classes("a"))
    (root / "metadata.csv").write_text("file_name,text\n" + "".join(f"{name},one, two\n" for name in classes("a")))
    assert "line 2 has 3 cells where the header has 2: put quotes around" in refusal(f"imagefolder:{root}")


def test_a_number_and_a_name_are_not_sorted_together(tmp_path):
    root = fill(tmp_path / "d", [f"{i}.png" for i in range(20)])
    rows = [{"file_name": f"{i}.png", "label": [1, "1"][i % 2]} for i in range(20)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "holds numbers and names" in refusal(f"imagefolder:{root}")


# ---- columns

def test_several_columns_are_asked_about(tmp_path):
    import datasets

    pics = [picture(i) for i in range(20)]
    kinds = datasets.Features({"a": datasets.Image(), "b": datasets.Image(), "label": datasets.Value("int64")})
    path = parquet(tmp_path / "x.parquet", {"a": pics, "b": pics[::-1], "label": [0, 1] * 10}, kinds)
    assert "image columns: a, b" in refusal(f"parquet:{path}") and "image columns" in refusal(f"parquet:{path},image=label")
    assert torch.equal(bytes_of(load(f"parquet:{path},image=b"))[0, 0], torch.from_numpy(np.array(picture(19))).float())
    fine, coarse = datasets.ClassLabel(names=list("abcd")), datasets.ClassLabel(names=list("xy"))
    kinds = datasets.Features({"a": datasets.Image(), "fine": fine, "coarse": coarse})
    path = parquet(tmp_path / "y.parquet", {"a": pics, "fine": [0, 1, 2, 3] * 5, "coarse": [0, 1] * 10}, kinds)
    assert "several class columns" in refusal(f"parquet:{path}") and load(f"parquet:{path},label=coarse").classes == 2
    path = parquet(tmp_path / "z.parquet", {"a": pics, "fine": [0, -1] * 10, "coarse": [0, 1] * 10}, kinds)
    assert "10 images have no class" in refusal(f"parquet:{path},label=fine")


@pytest.mark.parametrize("wrapped", [
    lambda data, i: data, lambda data, i: {"bytes": data, "path": f"{i}.png"}, lambda data, i: {"bytes": data},
])  # fmt: skip
def test_parquet_that_pandas_wrote(tmp_path, wrapped):
    import pandas as pd

    files = []
    for i in range(20):
        picture(i).save(file := io.BytesIO(), "png")
        files.append(file.getvalue())
    frame = pd.DataFrame({"image": [wrapped(data, i) for i, data in enumerate(files)], "label": ["x", "y"] * 10})
    frame.to_parquet(tmp_path / "a.parquet")
    found = load(f"parquet:{tmp_path}/a.parquet")
    assert found.classes == 2 and torch.equal(bytes_of(found)[3, 0], torch.from_numpy(np.array(picture(3))).float())
    frame.assign(image=[f"{i}.png" for i in range(20)]).to_parquet(tmp_path / "b.parquet")
    assert "bytes, or bytes and path); columns: image, label" in refusal(f"parquet:{tmp_path}/b.parquet")


# ---- pictures

def test_pictures_are_turned_as_they_were_held(tmp_path):
    for i, name in enumerate(classes("a", "b")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned by 90 degrees clockwise
        picture(i).save(tmp_path / name, exif=exif)
    seen = bytes_of(load(f"imagefolder:{tmp_path}"))
    assert torch.equal(seen[0, 0], torch.from_numpy(np.rot90(np.array(picture(0)), -1).copy()).float())


def test_one_picture_does_not_decide_for_all(tmp_path):
    root = fill(tmp_path / "d", classes("b", "c", each=15), mode="RGB")
    fill(root, [f"b/0{i:02}-grey.png" for i in range(12)], first=90)
    assert "12 images are grey and 30 in colour" in refusal(f"imagefolder:{root}")
    assert load(f"imagefolder:{root},colour=rgb").images_NCHW.shape == (42, 3, 8, 8)
    fill(root, ["b/000.png"], size=(4, 4), mode="RGB")
    message = refusal(f"imagefolder:{root},colour=grey")
    assert "42 of 8, 1 of 4" in message and "size=N" in message
    assert load(f"imagefolder:{root},colour=grey,size=8").images_NCHW.shape == (43, 1, 8, 8)


def test_a_transparent_pixel_is_white_whatever_lies_below(tmp_path):
    root = fill(tmp_path / "d", classes("a", "b"), mode="RGB")
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(root / "a" / "00.png")
    seen = bytes_of(load(f"imagefolder:{root}"))[0]
    assert seen[:, 0, 0].tolist() == [10, 20, 30] and seen[:, 7, 7].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["CMYK", "P", "YCbCr"])
def test_other_colour_modes_are_colour(tmp_path, mode):
    for i, name in enumerate(classes("a", "b")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(i, mode="RGB").convert(mode).save(tmp_path / name.replace("png", "png" if mode == "P" else "jpg"))
    assert load(f"imagefolder:{tmp_path}").images_NCHW.shape == (20, 3, 8, 8)


def test_drawings_are_not_handed_to_another_program(tmp_path):
    root = fill(tmp_path / "d", classes("a", "b"))
    (root / "a" / "x.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    assert "it is a drawing (EPS)" in refusal(f"imagefolder:{root}")


def test_frames_and_bombs_are_refused(tmp_path, monkeypatch):
    root = fill(tmp_path / "d", classes("a", "b"))
    picture(1).save(root / "a" / "x.gif", save_all=True, append_images=[picture(2), picture(3)])
    assert "x.gif cannot be read: it has 3 frames" in refusal(f"imagefolder:{root}")
    (root / "a" / "x.gif").unlink()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    fill(root, ["a/big.png"], size=(40, 40))
    assert "big.png cannot be read" in refusal(f"imagefolder:{root},size=8")


def test_memory_is_estimated_before_anything_is_decoded(tmp_path, monkeypatch):
    root = fill(tmp_path / "d", classes("a", "b", each=60))
    monkeypatch.setattr(environment, "free_memory", lambda: 20 * 2**30)
    message = refusal(f"imagefolder:{root},size=4000")
    assert "120 images of 4000 x 4000 x 1 take 28.6 GiB" in message and "20.0 are free" in message
    assert "GiB" in refusal(f"imagefolder:{root},size=999999,colour=rgb")


def test_free_memory_is_a_number_or_unknown():
    free = environment.free_memory()
    assert free is None or 2**20 < free < 2**50
