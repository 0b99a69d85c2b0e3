"""Encoded rows are what diffusers and transformers make of the same pictures and words; a killed call goes on to the same bytes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from suite.data import contents
from suite.data.dataset import DataError
from suite.data.load import load
from suite.scale.encoding import encode as module
from suite.scale.encoding.decode import picture, pixels
from suite.scale.encoding.encode import encode
from suite.scale.encoding.text import TextEncoder
from suite.scale.encoding.work import Work
from suite.scale.encoding.writer import ShardWriter

SIZE = 16


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models and pictures, and what a call with captions and one with labels made of them."""
    root = tmp_path_factory.mktemp("made")
    names = models.pictures(root / "images")
    vae, text, said = models.flux2(root / "flux2", pipeline=True), models.qwen3(root / "qwen3"), []
    words = {"vae": vae, "text": text, "size": SIZE, "shard_rows": 5}
    encode(root / "images", root / "captions.jsonl", root / "captions", say=said.append, **words)
    encode(root / "images", None, root / "labels", say=said.append, **words | {"vae": models.kl(root / "kl")})
    return {"root": root, "names": names, "words": words, "said": said}


def again(made, out, **change):
    """The call with captions into another folder."""
    captions = change.pop("captions", made["root"] / "captions.jsonl")
    return encode(made["root"] / "images", captions, out, **made["words"] | {"say": lambda line: None} | change)


def refused(call, *words, **more):
    with pytest.raises(DataError) as caught:
        call(*words, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def square(path):
    """(1, 3, S, S) in [-1, 1], by Pillow and diffusers."""
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor().preprocess(ImageOps.fit(Image.open(path), (SIZE, SIZE), method=Image.Resampling.BICUBIC))


@torch.no_grad()
def latent_flux2(folder, path):
    """By the pipeline's own method, of which nothing but the autoencoder is there."""
    from diffusers import AutoencoderKLFlux2, Flux2Pipeline

    pipeline = Flux2Pipeline.__new__(Flux2Pipeline)
    pipeline.vae = AutoencoderKLFlux2.from_pretrained(folder)
    return pipeline._encode_vae_image(square(path), None)[0]


def test_flux2_latents_are_those_of_its_pipeline(made):
    found = load(f"latents:{made['root']}/captions")
    assert found.shape == (16, 4, 4) and [shard["rows"] for shard in found.manifest.notes["shards"]] == [5, 5, 4]
    for row, name in enumerate(sorted(made["names"])):
        right = latent_flux2(made["root"] / "flux2/vae", made["root"] / "images" / name)
        torch.testing.assert_close(found.pixels(found.x0(torch.tensor([row])))[0], right, atol=4e-3, rtol=1e-3)  # 16 bits


def test_captions_are_the_last_hidden_state_padded_to_the_longest(made):
    from transformers import AutoTokenizer, Qwen3Model

    found, folder = load(f"latents:{made['root']}/captions"), made["root"] / "qwen3"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), Qwen3Model.from_pretrained(folder)
    captions = {json.loads(line)["file_name"]: json.loads(line)["caption"] for line in open(made["root"] / "captions.jsonl")}
    words = tokenizer([captions[name] for name in sorted(captions)], padding="longest", return_tensors="pt")
    with torch.no_grad():
        right = model(**words).last_hidden_state
    assert found.caption_shape == (6, 12) and words["input_ids"].shape == (14, 6)
    torch.testing.assert_close(found.caption(torch.arange(14)), right, atol=4e-3, rtol=2e-3)
    blank = tokenizer([""], padding="max_length", max_length=6, return_tensors="pt")
    with torch.no_grad():
        right = model(**blank).last_hidden_state[0]
    torch.testing.assert_close(found.empty, right, atol=4e-3, rtol=2e-3)
    assert found.manifest.notes["empty"] == "given"


def test_kl_latents_and_labels(made):
    from diffusers import AutoencoderKL

    found, vae = load(f"latents:{made['root']}/labels"), AutoencoderKL.from_pretrained(made["root"] / "kl")
    assert (found.shape, found.classes, found.caption_shape) == ((4, 8, 8), 2, None)
    assert found.labels_N.tolist() == [0] * 7 + [1] * 7
    with torch.no_grad():
        mean = vae.encode(square(made["root"] / "images" / sorted(made["names"])[3])).latent_dist.mean[0]
    torch.testing.assert_close(found.pixels(found.x0(torch.tensor([3])))[0], (mean - 0.12) * 0.36, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["captions", "labels"])
def test_decoded_latents_are_what_diffusers_decodes(made, kind):
    from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2Pipeline

    found = load(f"latents:{made['root']}/{kind}")
    latents = found.pixels(found.x0(torch.arange(4)))
    if kind == "captions":
        vae = AutoencoderKLFlux2.from_pretrained(made["root"] / "flux2/vae")
        mean, var = vae.bn.running_mean.view(1, -1, 1, 1), vae.bn.running_var.view(1, -1, 1, 1)
        inner = Flux2Pipeline._unpatchify_latents(latents * torch.sqrt(var + vae.config.batch_norm_eps) + mean)
    else:
        vae = AutoencoderKL.from_pretrained(made["root"] / "kl")
        inner = latents / vae.config.scaling_factor + vae.config.shift_factor
    with torch.no_grad():
        right = (vae.decode(inner).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(torch.cat(list(pixels(found, latents))), right, atol=1e-5, rtol=1e-5)
    latents[1, 0, 0, 0] = float("nan")
    drawn = picture(found, latents)
    assert drawn.shape == (4, 3, SIZE, SIZE) and drawn[1].isnan().all() and drawn[[0, 2, 3]].isfinite().all()


def test_provenance_and_what_is_said(made):
    notes = load(f"latents:{made['root']}/captions").manifest.notes["encoder"]
    assert (notes["vae"]["class"], notes["text"]["class"]) == ("AutoencoderKLFlux2", "Qwen3Model")
    assert notes["vae"]["name"] == str(made["root"] / "flux2") and len(notes["vae"]["sha256"]) == 64
    assert (notes["size"], notes["tokens"]) == (SIZE, 6) and set(notes["versions"]) == {"torch", "diffusers", "transformers"}
    assert any("no FID of runs over this folder: inception features need a weights file" in line for line in made["said"])


# ---- going on

class Killed(BaseException):
    """What no handler takes for an error."""


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_killed_call_goes_on_to_the_same_bytes(made, tmp_path, monkeypatch, at):
    left, close = [at], ShardWriter.close

    def killed(self):
        if not left[0]:
            self.part.write_bytes(b"half a shard")
            raise Killed
        left[0] -= 1
        return close(self)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "close", killed)
        with pytest.raises(Killed):
            again(made, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.arrow")}
    assert len(before) == at and not (tmp_path / "out/latents.json").exists()
    (tmp_path / "out/.latents-00001.arrow.part").write_bytes(b"of a process that got no chance to clear up")
    again(made, tmp_path / "out")
    assert models.contents(tmp_path / "out") == models.contents(made["root"] / "captions")
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in before.items())
    assert not list((tmp_path / "out").glob("*.part")) + list((tmp_path / "out").glob(".*.part"))


@pytest.mark.slow  # two more interpreters
def test_a_call_that_is_killed_from_outside_goes_on(made, tmp_path):
    root, words = made["root"], made["words"] | {"shard_rows": 1}
    lines = (
        "import time; from pathlib import Path; from suite.scale.encoding import encode as m",
        f"m.encode(Path({str(root / 'images')!r}), Path({str(root / 'captions.jsonl')!r}), Path({str(tmp_path / 'out')!r}),"
        f" say=lambda line: time.sleep(0.2), **{words!r})",
    )
    process = subprocess.Popen([sys.executable, "-c", "\n".join(lines)])
    while len(list((tmp_path / "out").glob("*.arrow"))) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -9
    assert 3 <= len(list((tmp_path / "out").glob("*.arrow"))) < 14
    again(made, tmp_path / "out", shard_rows=1)
    again(made, tmp_path / "whole", shard_rows=1)
    assert models.contents(tmp_path / "out") == models.contents(tmp_path / "whole")


def test_a_finished_folder_is_left_as_it_is(made, monkeypatch):
    monkeypatch.setattr(ShardWriter, "close", lambda self: pytest.fail("encoded again"))
    before = {path: path.stat().st_mtime_ns for path in (made["root"] / "captions").glob("latents*")}
    again(made, made["root"] / "captions")
    assert before == {path: path.stat().st_mtime_ns for path in (made["root"] / "captions").glob("latents*")}


def test_another_batch_gives_the_same_within_rounding_and_the_same_shards(made, tmp_path):
    again(made, tmp_path / "out", batch=3)
    one, other = load(f"latents:{tmp_path}/out"), load(f"latents:{made['root']}/captions")
    every = torch.arange(14)
    torch.testing.assert_close(one.x0(every), other.x0(every), atol=5e-3, rtol=1e-3)
    assert [s["bytes"] for s in one.manifest.notes["shards"]] == [s["bytes"] for s in other.manifest.notes["shards"]]


def test_memory_that_runs_out_halves_the_batch(made, tmp_path, monkeypatch):
    asked, columns = [], Work._columns

    def small(self, pixels, rows):
        asked.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("no")
        return columns(self, pixels, rows)

    monkeypatch.setattr(Work, "_columns", small)
    again(made, tmp_path / "out", batch=8)
    assert asked == [5, 4, 2, 2, 1, 2, 2, 1, 2, 2]
    halved, every = load(f"latents:{tmp_path}/out"), torch.arange(14)
    torch.testing.assert_close(halved.x0(every), load(f"latents:{made['root']}/captions").x0(every), atol=5e-3, rtol=1e-3)
    monkeypatch.setattr(Work, "_columns", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    assert "not enough memory on the GPU to encode a single image" in refused(again, made, tmp_path / "none")


def test_what_was_begun_otherwise_is_not_mixed(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made["root"] / "captions", out)
    assert "begun with other size" in refused(again, made, out, size=32)
    assert "begun with other text and tokens and files" in refused(again, made, out, captions=None)
    assert "begun with other vae" in refused(again, made, out, vae=models.kl(tmp_path / "kl"))
    rows = ["file_name,caption"] + [f"{name},the cat sees the bird on" for name in made["names"]]
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    assert "begun with other files" in refused(again, made, out, captions=tmp_path / "captions.csv")
    shutil.copytree(made["root"] / "flux2", tmp_path / "moved")
    again(made, out, vae=str(tmp_path / "moved"))  # the same weights elsewhere


def test_damaged_and_foreign_shards(made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(made["root"] / "captions", out)
    (out / "latents-00001.arrow").unlink()
    again(made, out)
    assert models.contents(out) == models.contents(made["root"] / "captions")
    whole = bytearray((out / "latents-00000.arrow").read_bytes())
    whole[-500] ^= 1
    (out / "latents-00000.arrow").write_bytes(whole)
    (out / "latents.json").unlink()
    assert "latents-00000.arrow is not what was written; delete it" in refused(again, made, out)
    (out / "latents-00000.arrow").unlink()
    again(made, out)
    assert models.contents(out) == models.contents(made["root"] / "captions")
    shutil.copy(out / "latents-00000.arrow", out / "more.arrow")
    assert "more.arrow is not of this encoding" in refused(again, made, out)
    (out / "more.arrow").unlink()
    (out / "encoding.json").unlink()
    assert "latents-00000.arrow is not of this encoding" in refused(again, made, out)


@pytest.mark.parametrize("name", ["latents-00001.arrow", "latents.safetensors", "latents.json", "encoding.json"])
def test_a_flipped_byte_in_a_finished_folder_is_found(made, tmp_path, name):
    out = tmp_path / "out"
    shutil.copytree(made["root"] / "captions", out)
    again(made, out)
    load(f"latents:{out}")
    path = out / name
    whole, state = bytearray(path.read_bytes()), path.stat()
    place = whole.index(b'"sha256": "') + 11 if path.suffix == ".json" else len(whole) - 700
    whole[place] = ord("0") if whole[place] != ord("0") else ord("1")
    path.write_bytes(whole)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    message = refused(again, made, out)
    assert "begun with other" in message if name == "encoding.json" else "is not" in message
    if name != "encoding.json":  # which says how it was made, not what it is
        assert "is not the file that latents.json knows" in refused(load, f"latents:{out}")


def test_a_sidecar_that_tells_of_another_making_is_made_anew(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made["root"] / "captions", out)
    notes = json.loads((out / "latents.json").read_text())
    notes["encoder"]["vae"]["sha256"] = "0" * 64
    (out / "latents.json").write_text(json.dumps(notes))
    again(made, out)
    assert models.contents(out) == models.contents(made["root"] / "captions")


def test_a_picture_of_the_same_size_in_bytes_is_another(made, tmp_path, monkeypatch):
    """A call that goes on, and one after the end, know pictures by what is in them."""
    root, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(made["root"] / "images", root)
    for path in root.glob("*/*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    words = made["words"] | {"vae": models.kl(tmp_path / "kl"), "say": lambda line: None}
    encode(root, None, out, **words)
    victim = sorted(root.glob("a/*.bmp"))[0]
    state, whole = victim.stat(), bytearray(victim.read_bytes())
    whole[-100:] = bytes(100)
    victim.write_bytes(whole)
    os.utime(victim, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert "was begun with other files" in refused(encode, root, None, out, **words)

    def changing(self, rows):
        victim.write_bytes(bytes(whole[:-100]) + bytes(range(100)))
        return columns(self, *rows)

    columns = Work._columns
    monkeypatch.setattr(Work, "_columns", lambda self, *rows: changing(self, rows))
    assert "images changed while they were encoded" in refused(encode, root, None, tmp_path / "late", **words)
    assert not (tmp_path / "late/latents.json").exists()


def test_a_finished_folder_is_not_read_again(made, tmp_path, monkeypatch):
    out, read, sha256_of = tmp_path / "out", [], contents.sha256_of
    shutil.copytree(made["root"] / "captions", out)
    again(made, out)
    monkeypatch.setattr(contents, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    again(made, out)
    load(f"latents:{out}")
    assert read == []


def test_a_tokenizer_of_other_rules_is_another(made, tmp_path):
    """The same words and numbers, cut otherwise: its captions are others."""
    shutil.copytree(made["root"] / "qwen3", tmp_path / "lower")
    rules = json.loads((tmp_path / "lower/tokenizer.json").read_text())
    assert rules["normalizer"] is None
    (tmp_path / "lower/tokenizer.json").write_text(json.dumps(rules | {"normalizer": {"type": "Lowercase"}}))
    one, other = (TextEncoder(str(folder), torch.device("cpu")) for folder in (made["root"] / "qwen3", tmp_path / "lower"))
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab() and one.identity["tokenizer"] != other.identity["tokenizer"]
    again_one = TextEncoder(str(made["root"] / "qwen3"), torch.device("cpu"))
    again_one.embed(["a cat"], 4)  # leaves its padding in the tokenizer
    assert one.identity == again_one.identity


def test_two_at_once_are_refused(made, tmp_path):
    with module._alone(module.Source("x", "latents", "x", {}, "encode"), tmp_path):
        assert "another process is encoding into it" in refused(again, made, tmp_path)


# ---- refusals

def test_images_and_captions_that_do_not_match(made, tmp_path):
    images, table = tmp_path / "images", tmp_path / "captions.csv"
    names = models.pictures(images, 4)

    def said(*rows, head="file_name,caption"):
        table.write_text("\n".join([head, *rows]))
        return refused(encode, images, table, tmp_path / "out", **made["words"])

    rows = [f"{name},a cat" for name in names]
    assert "1 images have no caption" in said(*rows[1:]) and names[0] in said(*rows[1:])
    assert "lists" in said(*rows, "a/none.png,a cat") and "which is no file" in said(*rows, "a/none.png,a cat")
    assert "twice" in said(*rows, rows[0])
    assert "row 2 has no caption" in said(rows[0], f"{names[1]},  ")
    assert "row 1 has no caption (columns: file_name, text)" in said(*rows, head="file_name,text")
    assert "has no rows" in said()
    assert "is none of" in refused(encode, images, tmp_path / "x.txt", tmp_path / "out", **made["words"])
    assert "cannot be read" in refused(encode, images, tmp_path / "none.csv", tmp_path / "out", **made["words"])
    assert "no folder" in refused(encode, tmp_path / "none", None, tmp_path / "out", **made["words"])
    assert not (tmp_path / "out").exists()
    (images / names[0]).write_bytes(b"junk")
    assert f"image {names[0]} cannot be read" in said(*rows)


def test_models_that_cannot_be_loaded(made, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it would try for a minute
    root = made["root"]
    assert "autoencoder nobody/nothing: cannot be loaded" in refused(again, made, tmp_path / "o", vae="nobody/nothing")
    assert "text encoder nobody/nothing: cannot be loaded" in refused(again, made, tmp_path / "o", text="nobody/nothing")
    shutil.copytree(root / "kl", tmp_path / "half")
    weights = next((tmp_path / "half").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in refused(again, made, tmp_path / "o", vae=str(tmp_path / "half"))
    assert "size 18 is not a multiple of 4" in refused(again, made, tmp_path / "o", size=18)
    for package, words in (("diffusers", "autoencoder"), ("transformers", "text encoder")):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, package, None)
            patch.setitem(__import__("sys").modules, f"{package}.utils", None)
            message = refused(again, made, tmp_path / "o")
            assert words in message and "pip install diffusers transformers" in message


def test_captions_that_are_too_long_are_counted(made, tmp_path):
    said = []
    again(made, tmp_path / "out", tokens=4, say=said.append)
    assert said[0] == "4 of 14 captions are longer than 4 tokens and lose their end"
    assert load(f"latents:{tmp_path}/out").caption_shape == (4, 12)


def test_a_latent_that_does_not_fit_16_bits_names_its_image(made, tmp_path):
    big = models.kl(tmp_path / "big", scaling_factor=1e9)
    assert "the latent of a/00.png does not fit float16" in refused(again, made, tmp_path / "out", vae=big)
    assert not list(Path(tmp_path / "out").glob("*.arrow"))


def test_grey_pictures(tmp_path):
    models.pictures(tmp_path / "images", mode="L")
    vae = models.kl(tmp_path / "kl", channels=1)
    encode(tmp_path / "images", None, tmp_path / "out", vae=vae, size=8, say=lambda line: None)
    found = load(f"latents:{tmp_path}/out")
    assert picture(found, found.pixels(found.x0(torch.arange(3)))).shape == (3, 1, 8, 8)
    assert np.isfinite(found.constant_loss(2))


@pytest.mark.parametrize(("name", "text", "words"), [
    ("a.csv", "file_name,caption\na.png,a cat, sitting\n", "line 2 has 3 cells where the header has 2: put quotes around"),
    ("a.jsonl", json.dumps({"file_name": "a.png", "caption": "half \ud83d"}), "row 1: the caption holds half a character"),
])  # fmt: skip
def test_captions_that_would_be_cut_or_cannot_be_written(made, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    assert words in refused(again, made, tmp_path / "out", captions=tmp_path / name)


def test_more_tokens_than_the_text_encoder_has_positions_for(made, tmp_path):
    assert "tokens at most, not 4000000" in refused(again, made, tmp_path / "out", tokens=4_000_000)
