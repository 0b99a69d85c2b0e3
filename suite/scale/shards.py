"""Shards of encoded images on disk: their columns as memory-mapped arrays, of which rows are read one by one.

A shard is an Arrow stream as `datasets` writes it, or a Parquet file, which `datasets` converts once into its cache.
It has a column `latent` (C, H, W) and either `caption` (S, D), both of 16 or 32 bits, or `label`, whole numbers.
Shapes: N rows, B of a batch, C channels, H = W positions, S caption tokens, D their width.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suite.data import contents
from suite.data.sources import Source, first_line

DIMENSIONS = {"latent": 3, "caption": 2}
AXES = {"latent": "(C, H, W)", "caption": "(S, D)"}
PATTERN = ("[", "]", "*", "?", "{", "}", "::", "://")  # what `datasets` reads as more than a file's name


@dataclass(frozen=True)
class Column:
    """Rows of one shape and dtype in memory-mapped pieces, each (rows, *shape)."""

    pieces: list[np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pieces[0].shape[1:]

    @property
    def dtype(self) -> np.dtype:
        return self.pieces[0].dtype

    @cached_property
    def starts(self) -> np.ndarray:
        """The first row of every piece, and the number of all rows."""
        return np.cumsum([0, *map(len, self.pieces)])

    @cached_property
    def _tensors(self) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes
            return list(map(torch.from_numpy, self.pieces))

    def take(self, rows: Tensor) -> Tensor:
        """(B, *shape) float32 of these rows, in any order, some of them twice. Raises IndexError beyond the last row."""
        index = rows.numpy()
        if len(index) and not 0 <= index.min() <= index.max() < self.starts[-1]:
            raise IndexError(f"rows {index.min()} to {index.max()} of {self.starts[-1]}")
        piece = self.starts.searchsorted(index, "right") - 1
        out = torch.empty((len(index), *self.shape))
        for i, (of, row) in enumerate(zip(piece.tolist(), (index - self.starts[piece]).tolist())):
            out[i] = self._tensors[of][row]  # torch converts halves by vectors, numpy one by one
        return out


@dataclass(frozen=True)
class Shards:
    """The shards of a folder. captions or labels is None; rows: of every file, in order."""

    files: list[Path]
    rows: list[int]
    latents: Column
    captions: Column | None
    labels: np.ndarray | None


def files_of(source: Source, folder: Path) -> list[Path]:
    """The shards in a folder, by name. Raises DataError where there are none, or two kinds."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix in (".arrow", ".parquet") and not path.name.startswith("."))
    except OSError as error:
        raise source.error(f"{folder} cannot be read: {error.strerror}") from error
    kinds = {path.suffix for path in found}
    if not found:
        raise source.error(f"no .arrow or .parquet file in {folder}; `encode` makes them from images")
    if len(kinds) > 1:
        raise source.error(f"{folder} holds .arrow and .parquet files; keep one kind")
    if kinds == {".parquet"} and (odd := [sign for sign in PATTERN if sign in str(found[0].absolute())]):
        raise source.error(f"`datasets` takes {odd[0]} in the path of a .parquet file for a pattern; rename {folder}")
    return found


def open_shards(source: Source, files: list[Path]) -> Shards:
    """Map the shards into memory; nothing is read of the rows but their labels. Raises DataError, which names the shard."""
    try:
        import datasets
    except ImportError:
        raise source.error("needs the `datasets` package: pip install datasets") from None
    datasets.disable_progress_bars()
    if files[0].suffix == ".parquet":
        import pyarrow.parquet

        rows = [_guarded(source, file, lambda file=file: pyarrow.parquet.read_metadata(file).num_rows) for file in files]
        tables = [_guarded(source, files[0], lambda: _converted(files))]
    else:
        tables = [_guarded(source, file, lambda file=file: datasets.Dataset.from_file(str(file))) for file in files]
        rows = list(map(len, tables))
    columns: dict[str, list] = {name: [] for name in ("latent", "caption", "label")}
    for file, table in zip(files, tables):
        names = set(table.column_names)
        if "latent" not in names:
            raise source.error(f"{file} has no column latent (columns: {', '.join(table.column_names)})")
        if len(names & {"caption", "label"}) != 1:
            both = "both columns caption and label; keep one" if "caption" in names else "neither a column caption nor label"
            raise source.error(f"{file} has {both}")
        for name in columns.keys() & names:
            chunks = [chunk for chunk in table.data.column(name).chunks if len(chunk)]
            columns[name] += [(file, _labels(source, file, c) if name == "label" else _view(source, file, name, c)) for c in chunks]
    if columns["caption"] and columns["label"]:
        raise source.error(f"{columns['caption'][0][0]} has a column caption and {columns['label'][0][0]} a column label; keep one")
    if not columns["latent"]:
        raise source.error(f"no rows in {files[0]}" + (" and the others" if len(files) > 1 else ""))
    labels = np.concatenate([piece for _, piece in columns["label"]]) if columns["label"] else None
    captions = _column(source, "caption", columns["caption"]) if columns["caption"] else None
    return Shards(files, rows, _column(source, "latent", columns["latent"]), captions, labels)


def _converted(files: list[Path]):
    """Parquet files as one Arrow table of `datasets`, from its cache where they were converted before.

    It knows files by path and time of change, and would give the old rows of one that was rewritten in between: so
    each content has a cache of its own.
    """
    import datasets

    content = contents.digests({file.name: [file] for file in files}, files[0].parent / contents.NOTES)
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "latents" / hashlib.sha256("".join(content.values()).encode()).hexdigest()[:16]
    return datasets.load_dataset("parquet", data_files=list(map(str, files)), split="train", cache_dir=str(cache))


def _guarded(source: Source, file: Path, read):
    try:
        return read()
    except Exception as error:  # pyarrow and datasets raise many kinds
        raise source.error(f"{file} cannot be loaded: {first_line(error)}") from error


def _column(source: Source, name: str, pieces: list[tuple[Path, np.ndarray]]) -> Column:
    first, like = pieces[0]
    for file, piece in pieces:
        if (piece.shape[1:], piece.dtype) != (like.shape[1:], like.dtype):
            raise source.error(f"{name} is {like.shape[1:]} of {like.dtype} in {first}, and {piece.shape[1:]} of {piece.dtype} in {file}")
    if name == "latent" and like.shape[2] != like.shape[3]:
        raise source.error(f"latents of {like.shape[2]} x {like.shape[3]} are not square")
    return Column([piece for _, piece in pieces])


def _levels(chunk) -> list:
    """The array of a chunk and those in it, from rows to numbers; nothing is copied."""
    import pyarrow as pa

    levels = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk]
    while pa.types.is_list(kind := levels[-1].type) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        levels.append(levels[-1].flatten())
    return levels


def _view(source: Source, file: Path, name: str, chunk) -> np.ndarray:
    """A chunk as (rows, *shape). Lengths are taken from their sums, which says nothing of single rows: `check_regular`."""
    levels = _levels(chunk)
    if any(level.null_count for level in levels):
        raise source.error(f"{file}: column {name} lacks values in some rows")
    if len(levels) != DIMENSIONS[name] + 1 or str(levels[-1].type) not in ("halffloat", "float"):
        raise source.error(f"{file}: column {name} is {chunk.type}, not {AXES[name]} of float16 or float32")
    counts = [len(level) for level in levels]
    if any(outer == 0 or inner % outer or not inner for outer, inner in zip(counts, counts[1:])):
        raise source.error(_ragged(file, name))
    shape = [inner // outer for outer, inner in zip(counts, counts[1:])]
    return levels[-1].to_numpy(zero_copy_only=True).reshape(counts[0], *shape)


def _ragged(file: Path, name: str) -> str:
    return f"{file}: the rows of column {name} differ in shape"


def check_regular(source: Source, files: list[Path]) -> None:
    """Raise DataError where the rows of a column differ in shape, though their sum would do. Reads the lengths of all."""
    import datasets
    import pyarrow as pa
    import pyarrow.compute as pc

    if files[0].suffix == ".parquet":
        tables = [_converted(files)]
    else:
        tables = [datasets.Dataset.from_file(str(file)) for file in files]
    for file, table in zip(files, tables):
        for name in DIMENSIONS.keys() & set(table.column_names):
            for chunk in table.data.column(name).chunks:
                for level in _levels(chunk)[:-1]:
                    if pa.types.is_fixed_size_list(level.type) or not len(level):
                        continue
                    ends = pc.min_max(pc.list_value_length(level)).as_py()
                    if ends["min"] != ends["max"]:
                        raise source.error(_ragged(file, name))


def _labels(source: Source, file: Path, chunk) -> np.ndarray:
    import pyarrow as pa

    if chunk.null_count or not pa.types.is_integer(chunk.type):
        raise source.error(f"{file}: column label is {chunk.type}{' with gaps' * bool(chunk.null_count)}, not whole numbers of classes")
    labels = chunk.to_numpy(zero_copy_only=False).astype(np.int64)
    if labels.min() < 0:  # the hub's way to keep a test set's classes secret
        raise source.error(f"{file}: {(labels < 0).sum()} rows have no class ({labels.min()})")
    return labels


def size_of(column: Column) -> int:
    """Bytes of a row."""
    return math.prod(column.shape) * column.dtype.itemsize
