"""Images and their captions, or classes, as a folder for `--data latents:DIR`; goes on where an earlier call was stopped.

The folder: shards `latents-00000.arrow`, ..., written whole or not at all; `encoding.json`, the settings and what is
done; at the end the manifest (suite/scale/latent_manifest.py), and `reference.safetensors` where FID can be measured
(suite/scale/encoding/reference.py).

A call that goes on makes the bytes that an uninterrupted one makes, on one machine with one batch size. Another batch
size changes at most how sums are rounded: nothing in a row is computed from another row, and captions are padded to
one length for the folder. Shapes: S caption tokens, D their width.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from suite.data import contents
from suite.data.dataset import DataError
from suite.data.sources import Source
from suite.files import write_whole
from suite.scale import latent_manifest
from suite.scale.encoding import frozen, reference
from suite.scale.encoding.autoencoder import Autoencoder
from suite.scale.encoding.listing import Listing, listing
from suite.scale.encoding.text import LONGEST, TextEncoder
from suite.scale.encoding.work import Work
from suite.scale.encoding.writer import clear
from suite.scale.shards import files_of, open_shards

NOTES = "encoding.json"
VAE = "black-forest-labs/FLUX.2-klein-4B"  # by its public page it holds the paper's autoencoder, under Apache 2.0; never downloaded here
TEXT = "Qwen/Qwen3-0.6B"  # the paper's
SIZE = 256  # pixels; the paper's
SHARD_ROWS = 4096  # 0.8 GiB a shard at the paper's shapes and 64 tokens; ImageNet is then 313 files
CPU_BATCH = 4  # measured: the FLUX.2 autoencoder takes 0.17 GiB a 256-pixel image, and 5 to 6 s on one core at 2, 4 and 8 of them
CUDA_BATCH = 256  # to begin with; halved wherever it does not fit


def encode(
    images: Path, captions: Path | None, out: Path, *, vae: str = VAE, text: str = TEXT, size: int = SIZE, batch: int | None = None,
    tokens: int | None = None, shard_rows: int = SHARD_ROWS, say: Callable[[str], object] = print,
) -> Path:  # fmt: skip
    """Encode all images below a folder; returns `out`. A folder that is finished is left as it is.

    captions: a table (.csv, .jsonl, .parquet) of file_name, relative to the folder, and caption; None: class folders
    give labels. vae, text: names of the hub, or folders; text is not loaded without captions. size: pixels; images
    are cropped square. batch: images at once (default: what fits). tokens: of every caption (default: of the longest,
    at most 256). say: takes lines. Raises DataError, one line, for whatever cannot be encoded; out of memory at one
    image too.
    """
    found, device = listing(images, captions), frozen.device()
    target = Source(str(out), "latents", str(out), {}, "encode")
    coder = Autoencoder(vae, device)
    if size % coder.factor:
        raise found.source.error(f"size {size} is not a multiple of {coder.factor}, the pixels that {vae} makes one position of")
    reader = TextEncoder(text, device) if found.captions else None
    if reader and tokens and tokens > (most := reader.longest):
        raise DataError(f"text encoder {text}: takes {most} tokens at most, not {tokens}")
    tokens = _tokens(found, reader, tokens, say) if reader else None
    names = {"vae": coder.name, "text": reader and reader.name}
    with _alone(target, out):
        settings = {
            "vae": coder.identity, "text": reader and reader.identity, "size": size, "tokens": tokens, "shard_rows": shard_rows,
            "images": len(found.files), "files": found.digest(out / contents.NOTES), "versions": frozen.versions(),
        }  # fmt: skip
        done = _begin(target, out, settings, shard_rows)
        work = Work(found, coder, reader, size, tokens, batch or (CUDA_BATCH if device.type == "cuda" else CPU_BATCH))
        empty_SD = work.embed([""])[0] if reader else None
        if reader and not empty_SD.isfinite().all():  # known now, and not after days
            raise DataError(f"text encoder {names['text']}: its embedding of an empty caption is not finite")
        count = -(-len(found.files) // shard_rows)
        for shard in range(count):
            path = out / _name(shard)
            if path.name in done:
                continue
            (out / latent_manifest.NOTES).unlink(missing_ok=True)
            done[path.name] = work.shard(path, range(shard * shard_rows, min((shard + 1) * shard_rows, len(found.files))))
            _save(target, out, settings, done)
            say(f"encoded {min((shard + 1) * shard_rows, len(found.files)):,} of {len(found.files):,} images")
        if found.digest(out / contents.NOTES) != settings["files"]:
            raise found.source.error(f"images changed while they were encoded; delete {out} and encode again")
        if not _finished(target, out, settings, done):
            _finish(target, out, settings, names, done, empty_SD)
        reference.write(found, settings["files"], size, coder.image_channels, out, say)
    return out


def _name(shard: int) -> str:
    return f"latents-{shard:05d}.arrow"


def _tokens(found: Listing, reader: TextEncoder, tokens: int | None, say: Callable) -> int:
    """The one length of all captions; says how many lose their end."""
    lengths = reader.lengths(found.captions)
    tokens = tokens or max(1, min(max(lengths), LONGEST))
    if cut := sum(length > tokens for length in lengths):
        say(f"{cut:,} of {len(lengths):,} captions are longer than {tokens} tokens and lose their end")
    return tokens


@contextmanager
def _alone(target: Source, out: Path) -> Iterator[None]:
    """Make the folder, and refuse a second process that would write into it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".encoding.lock", "w")
    except OSError as error:
        raise target.error(f"cannot be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise target.error("another process is encoding into it") from None
        yield


def _begin(target: Source, out: Path, settings: dict, shard_rows: int) -> dict[str, dict]:
    """The shards that an earlier call has finished, by name. Raises DataError where it was a call for something else."""
    clear(out)
    path, done = out / NOTES, {}
    if path.is_file():
        try:
            notes = json.loads(path.read_bytes())
            before, shards = notes["settings"], {shard["name"]: shard for shard in notes["shards"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise target.error(f"{path} cannot be read; delete it and the shards to encode anew") from error
        if other := [key for key in settings if before.get(key) != settings[key]]:
            raise target.error(f"was begun with other {' and '.join(other)}; name another folder, or delete this one")
        done = {name: shard for name, shard in shards.items() if (out / name).is_file()}
        written = latent_manifest.digests_of(target, out, [out / name for name in done])
        if other := [name for name in done if written[name] != done[name].get("sha256")]:
            raise target.error(f"{out / other[0]} is not what was written; delete it and encode again, which makes it anew")
    planned = {_name(shard) for shard in range(-(-settings["images"] // shard_rows))}
    present = {file.name for file in out.iterdir() if file.suffix in (".arrow", ".parquet")}
    if foreign := sorted(present - (planned if path.is_file() else set())):
        raise target.error(f"{out / foreign[0]} is not of this encoding; name another folder, or move it away")
    _save(target, out, settings, done)
    return done


def _finished(target: Source, out: Path, settings: dict, done: dict[str, dict]) -> bool:
    """Whether a manifest lies there that says how these shards were made; one that `load` made anew does not. Raises DataError."""
    known = latent_manifest.read(target, out, files_of(target, out))
    if known is None or not (made := known.notes["encoder"]):
        return False
    told = {part: value and {key: word for key, word in value.items() if key != "name"} if part in ("vae", "text") else value
            for part, value in made.items()}  # fmt: skip
    shards = {shard["name"]: shard["sha256"] for shard in known.notes["shards"]}
    return told == _told(settings) and shards == {name: shard["sha256"] for name, shard in done.items()}


def _told(settings: dict) -> dict:
    """What the manifest says of the settings, beside the models' names."""
    return {key: value for key, value in settings.items() if key not in ("images", "shard_rows")}


def _save(target: Source, out: Path, settings: dict, done: dict[str, dict]) -> None:
    notes = {"settings": settings, "shards": [done[name] for name in sorted(done)]}
    try:
        write_whole(out / NOTES, json.dumps(notes, indent=1).encode() + b"\n")
    except OSError as error:
        raise target.error(f"{out / NOTES} cannot be written ({error.strerror})") from error


def _finish(target: Source, out: Path, settings: dict, names: dict, done: dict[str, dict], empty_SD: Tensor | None) -> None:
    """The manifest, which reads every shard again: one that is not what was written is named."""
    encoder = _told(settings)
    encoder |= {part: encoder[part] and {"name": names[part]} | encoder[part] for part in names}
    digests = {name: shard["sha256"] for name, shard in done.items()}
    latent_manifest.make(target, out, open_shards(target, files_of(target, out)), encoder=encoder, empty_SD=empty_SD, digests=digests)
