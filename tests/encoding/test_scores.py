"""FID of runs over latents: of the decoded samples, against the moments of the real images; one line for what is missing."""

import dataclasses
import json
import shutil

import models
import pytest
import torch
from safetensors.torch import load_file

from suite.data import images
from suite.data.load import load
from suite.quality import fid
from suite.quality.features import QualityError, extractor
from suite.records.completeness import check_parts, is_picture
from suite.records.schema import TABLES
from suite.records.store import Store, picture_path, read_rows
from suite.scale import moments
from suite.scale.encoding import decode, reference
from suite.scale.encoding.encode import encode
from suite.sweep import execute as sweep
from suite.sweep.plan import Selection, SelectionError, check_quality, make_plan


def digits_as(kind):
    """The shipped digit network under the name of the one that needs a download; it reads 8 x 8 grey images."""
    return extractor("digits")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("scored")
    models.pictures(root / "images", 40, mode="L")
    vae = models.kl(root / "kl", channels=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "extractor", digits_as)
        encode(root / "images", None, root / "latents", vae=vae, size=8, say=lambda line: None)
    return root


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(decode, "extractor", digits_as)


def real(made):
    """(N, 1, 8, 8): the pictures as they were encoded, in the order of the rows."""
    source = images.Source("", "imagefolder", str(made / "images"), {"size": "8"})
    from suite.data import sources

    return torch.from_numpy(images.decode(source, sources.read(source)))


def test_the_reference_is_of_the_images_as_they_were_encoded(made):
    found, net = moments.load(made / "latents/reference.safetensors"), extractor("digits")
    features = net(real(made))
    assert (found.n, found.digest) == (40, net.digest)
    torch.testing.assert_close(found.mean_F, features.mean(0))
    torch.testing.assert_close(found.cov_FF, features.T.cov())
    assert set(load_file(made / "latents/reference.safetensors")) == {"mean", "cov"}


def test_scores_are_those_of_the_decoded_samples(made, network):
    data = load(f"latents:{made}/latents")
    latents = data.pixels(data.x0(torch.arange(33)) + 0.3 * torch.randn(33, *data.shape))
    row = decode.scores(data, latents, "inception")
    right = fid.scores(decode.picture(data, latents), real(made), extractor("digits"))
    assert row["fid"] == pytest.approx(right["fid"], rel=1e-6) and row["fid"] > 0 and row["kid"] is None and row["fid_n"] == 33
    assert row["inception_score"] == pytest.approx(right["inception_score"], rel=1e-6)
    assert decode.fault(data, "inception", 33) == "" and "4 samples" in decode.fault(data, "inception", 3)


@pytest.mark.parametrize("gone", ["", "reference", "decoder"])
def test_a_run_has_what_can_be_had(made, network, tmp_path, gone):
    folder = tmp_path / "latents"
    shutil.copytree(made / "latents", folder)
    if gone == "reference":
        (folder / "reference.safetensors").unlink()
    if gone == "decoder":
        notes = json.loads((folder / "latents.json").read_text())
        (folder / "latents.json").write_text(json.dumps(notes | {"encoder": None}))
    runs = make_plan(Selection("smoke", schemes=("plain",), depths=(2,), data=f"latents:{folder}"))
    if gone:
        missing = {"reference": "no reference.safetensors in", "decoder": "names no autoencoder"}[gone]
        with pytest.raises(SelectionError, match=missing) as caught:
            check_quality(runs, "inception")
        assert "\n" not in str(caught.value) and "more images" not in str(caught.value)
    else:
        assert check_quality(runs, "inception") == ""
    assert "digit features judge the shipped digits alone" in check_quality(runs, "digits")
    results = tmp_path / "results"
    record = sweep.execute(runs[0], results, "inception")
    store = Store(results / "smoke")
    store.add(record)
    rows = read_rows(results / "smoke/quality.csv", TABLES["quality"])
    assert [row["run_id"] for row in rows] == [runs[0].run_id]  # and no real row
    assert rows[0]["fid_status"] == ("unavailable" if gone else "ok") and bool(rows[0]["fid"]) == (not gone) and not rows[0]["kid"]
    assert is_picture(picture_path(results / "smoke", "plain", 2, runs[0].run_id)) == (gone != "decoder")
    assert check_parts(store.folder) == [] and store.done_ids() == {runs[0].run_id}


def test_other_weights_decode_nothing(made, network, tmp_path):
    folder = tmp_path / "latents"
    shutil.copytree(made / "latents", folder)
    notes = json.loads((folder / "latents.json").read_text())
    notes["encoder"]["vae"]["name"] = models.kl(tmp_path / "other", channels=1, seed=5)
    (folder / "latents.json").write_text(json.dumps(notes))
    data = load(f"latents:{folder}")
    assert "its weights are not those that made" in decode.fault(data, "inception", 9)
    assert decode.picture(data, torch.zeros(2, *data.shape)) is None


def test_a_reference_of_other_weights_is_named(made, network, tmp_path):
    folder = tmp_path / "latents"
    shutil.copytree(made / "latents", folder)
    old = moments.load(folder / "reference.safetensors")
    changed = moments.Moments(old.mean_F, old.cov_FF, old.n, "inception2048", "0" * 64)
    (folder / "reference.safetensors").write_bytes(changed.to_bytes())
    assert "is of inception2048 000000000..., not" in decode.fault(load(f"latents:{folder}"), "inception", 9)
    (folder / "reference.safetensors").write_bytes(b"junk")
    assert "holds no moments of features" in decode.fault(load(f"latents:{folder}"), "inception", 9)


def test_a_reference_of_other_images_is_named(made, network, tmp_path):
    """Of a folder with as many, encoded by the same network."""
    folder = tmp_path / "latents"
    shutil.copytree(made / "latents", folder)
    old = moments.load(folder / "reference.safetensors")
    (folder / "reference.safetensors").write_bytes(dataclasses.replace(old, images="0" * 64).to_bytes())
    assert decode.fault(load(f"latents:{made}/latents"), "inception", 9) == ""
    assert "is of other images than the latents" in decode.fault(load(f"latents:{folder}"), "inception", 9)


def test_without_the_network_the_line_says_so(made):
    message = decode.fault(load(f"latents:{made}/latents"), "inception", 9)
    with pytest.raises(QualityError) as caught:
        extractor("inception")
    assert message == str(caught.value)
