"""What is known of a folder of latents without reading it again: `latents.json` and `latents.safetensors` beside the shards.

latents.json: version, rows, shape (C, H, W), caption_shape (S, D) or null, classes or null, shards (name, rows,
bytes, sha256), encoder: how they were made, or null; empty: "given", or "zeros" where nobody said how the empty
caption is embedded, or null for labels; tensors: sha256 of latents.safetensors. That holds, in float64, the mean and
the mean square over all rows at every position of a latent, and the embedding of the empty caption.
Shapes: N rows, C channels, H = W positions, S caption tokens, D their width.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suite.data import contents
from suite.data.dataset import DataError
from suite.data.sources import Source
from suite.files import write_whole
from suite.scale.shards import Column, Shards, check_regular, open_shards, size_of

VERSION = 1
NOTES, TENSORS = "latents.json", "latents.safetensors"
BLOCK_BYTES = 1 << 25  # of rows read at once; in float64 four times that
FLAT = 1e-12  # variance of a channel over its mean square, below which rounding alone is left


@dataclass(frozen=True)
class Manifest:
    """notes: latents.json; mean, square: E[x] and E[x^2] over rows, float64; empty: None where there are labels."""

    notes: dict
    mean_CHW: Tensor
    square_CHW: Tensor
    empty_SD: Tensor | None

    @property
    def digest(self) -> str:
        """d and 15 hex digits over the shards' contents in the order of their names, the shapes and the empty caption; no path."""
        notes = self.notes
        sha = hashlib.sha256(repr((notes["rows"], notes["shape"], notes["caption_shape"], notes["classes"])).encode())
        for shard in notes["shards"]:
            sha.update(shard["sha256"].encode())
        if self.empty_SD is not None:
            sha.update(self.empty_SD.numpy().astype("<f8").tobytes())
        return f"d{sha.hexdigest()[:15]}"


def read(source: Source, folder: Path, files: list[Path]) -> Manifest | None:
    """The manifest of these shards, None where there is none yet. Raises DataError where it belongs to others."""
    from safetensors.torch import load

    path = folder / NOTES
    if not path.is_file():
        return None
    try:
        notes = json.loads(path.read_bytes())
        version = notes["version"]
        known = {shard["name"]: shard["sha256"] for shard in notes["shards"]}
        data = (folder / TENSORS).read_bytes()
        right = notes["tensors"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise source.error(f"{path} or {TENSORS} cannot be read ({type(error).__name__}); delete {path} to make both anew") from error
    if version != VERSION:
        raise source.error(f"{path} is of version {version}, not {VERSION}; delete it to make it anew")
    mend = f"restore it, or delete {path} to make it anew"
    if gone := known.keys() - {file.name for file in files}:
        raise source.error(f"{folder / min(gone)} is missing; {mend}")
    found = digests_of(source, folder, files)
    for file in files:
        if found[file.name] != known.get(file.name):
            raise source.error(f"{file} is not the file that {NOTES} knows{_spoilt(source, file)}; {mend}")
    if hashlib.sha256(data).hexdigest() != right:
        raise source.error(f"{folder / TENSORS} is not the file that {NOTES} knows; restore it, or delete {path} to make both anew")
    tensors = load(data)
    return Manifest(notes, tensors["mean_CHW"], tensors["square_CHW"], tensors.get("empty_SD"))


def make(
    source: Source, folder: Path, shards: Shards, *, encoder: dict | None = None, empty_SD: Tensor | None = None,
    digests: dict[str, str] | None = None,
) -> Manifest:  # fmt: skip
    """Read all rows once, write both files, return what they hold. Raises DataError for what cannot be trained on.

    encoder: how the latents were made. empty_SD: embedding of the empty caption; else that of a latents.safetensors
    which lies there, else zeros. digests: what the shards' sha256 must be, by name.
    """
    from safetensors.torch import save

    print(f"{source.text}: reading {sum(shards.rows):,} latents once, for {NOTES}", file=sys.stderr)
    sha = digests_of(source, folder, shards.files)
    if other := [name for name in digests or {} if sha.get(name) != digests[name]]:
        raise source.error(f"{folder / other[0]} is not what was written; delete it and encode again, which makes it anew")
    check_regular(source, shards.files)
    names = [file for file, rows in zip(shards.files, shards.rows) for _ in range(rows)]
    mean_CHW, square_CHW = _moments(source, shards.latents, names)
    if shards.captions is not None and (row := _first_not_finite(shards.captions)) is not None:
        raise _not_finite(source, "caption", row, names)
    tensors = {"mean_CHW": mean_CHW, "square_CHW": square_CHW}
    shape = None if shards.captions is None else list(shards.captions.shape)
    if shape:
        found = _empty_there(folder, shape) if empty_SD is None else empty_SD
        tensors["empty_SD"] = (torch.zeros(shape) if found is None else found).double()
    data = save(tensors)
    if digests_of(source, folder, shards.files) != sha:
        raise source.error(f"the shards in {folder} change while they are read; call again when nobody writes to them")
    notes = {
        "version": VERSION, "rows": sum(shards.rows), "shape": list(shards.latents.shape), "caption_shape": shape,
        "classes": None if shards.labels is None else len(np.unique(shards.labels)),
        "shards": [{"name": file.name, "rows": rows, "bytes": file.stat().st_size, "sha256": sha[file.name]}
                   for file, rows in zip(shards.files, shards.rows)],
        "empty": None if not shape else "given" if tensors["empty_SD"].any() else "zeros",
        "encoder": encoder, "tensors": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    try:
        write_whole(folder / TENSORS, data)
        write_whole(folder / NOTES, json.dumps(notes, indent=1).encode() + b"\n")  # last: it says that all is there
    except OSError as error:
        raise source.error(f"{folder / NOTES} cannot be written ({error.strerror}), and no run begins without it") from error
    return Manifest(notes, mean_CHW, square_CHW, tensors.get("empty_SD"))


def digests_of(source: Source, folder: Path, files: list[Path]) -> dict[str, str]:
    """SHA-256 of shards by name. Raises DataError for one that cannot be read."""
    try:
        return contents.digests({file.name: [file] for file in files}, folder / contents.NOTES)
    except OSError as error:
        raise source.error(f"{error.filename} cannot be read: {error.strerror}") from error


def _spoilt(source: Source, file: Path) -> str:
    """What a shard that is not the known one holds and nobody can train on, in words; "" where it can only be said that it is another."""
    try:
        found = open_shards(source, [file])
        for name, column in (("latent", found.latents), ("caption", found.captions)):
            if column is not None and (row := _first_not_finite(column)) is not None:
                return f": the {name} of its row {row} is not finite"
    except DataError:
        pass
    return ""


def _empty_there(folder: Path, shape: list[int]) -> Tensor | None:
    """The empty caption in a latents.safetensors that was left, or that the user put there."""
    from safetensors.torch import load

    try:
        found = load((folder / TENSORS).read_bytes()).get("empty_SD")
    except Exception:  # no file, or not one of these
        return None
    return found if found is not None and list(found.shape) == shape and found.isfinite().all() else None


def _blocks(column: Column):
    """(first row, rows (B, *shape) as they are) over a whole column, a few at a time."""
    rows = max(1, BLOCK_BYTES // size_of(column))
    for start, piece in zip(column.starts, column.pieces):
        for at in range(0, len(piece), rows):
            yield int(start) + at, torch.from_numpy(np.array(piece[at : at + rows]))


def _moments(source: Source, column: Column, names: list[Path]) -> tuple[Tensor, Tensor]:
    """Position-wise means of x and x^2 in float64; refuses what is not finite, and a channel that never changes."""
    total = torch.zeros(column.shape, dtype=torch.float64)
    square = torch.zeros_like(total)
    for first, block in _blocks(column):
        x = block.double()
        total += x.sum(0)
        square += x.square().sum(0)
        if (row := _bad_row(first, block)) is not None:
            raise _not_finite(source, "latent", row, names)
    mean, square = total / len(names), square / len(names)
    of_channel = square.mean((1, 2))
    variance = of_channel - mean.mean((1, 2)).square()
    if (flat := (variance <= FLAT * of_channel).nonzero()).numel():
        raise source.error(f"channel {flat[0].item()} of the latents is the same everywhere")
    return mean, square


def _first_not_finite(column: Column) -> int | None:
    """The first row of a column that holds nan or inf."""
    return next((row for first, block in _blocks(column) if (row := _bad_row(first, block)) is not None), None)


def _bad_row(first: int, block: Tensor) -> int | None:
    bad = (~block.isfinite().flatten(1).all(1)).nonzero()
    return first + int(bad[0]) if len(bad) else None


def _not_finite(source: Source, name: str, row: int, names: list[Path]) -> DataError:
    return source.error(f"{names[row]}: the {name} of row {row - names.index(names[row])} is not finite")
