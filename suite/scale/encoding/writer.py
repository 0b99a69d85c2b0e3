"""A shard as it is written: aside, in blocks of one size, synced, renamed; a kill leaves the shard whole or not at all.

Shapes: B rows of a batch, C channels, H = W positions, S caption tokens, D their width.
"""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter

from suite import files
from suite.data.contents import sha256_of

BLOCK = 256  # rows of a record batch: the bytes of a shard do not depend on the batches that they came in


def clear(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for left in folder.glob(".latents-*.part"):
        files.remove(left)


class ShardWriter:
    """add({"latent": (B, C, H, W), "caption": (B, S, D) or "label": (B)}) as often as it takes, then close()."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(f".{path.name}.part")
        self.waiting: dict[str, list[np.ndarray]] = {}
        self.rows, self._writer = 0, None

    def add(self, columns: dict[str, np.ndarray]) -> None:
        """Take rows; whole blocks go to disk."""
        for name, values in columns.items():
            self.waiting[name] = [np.concatenate([*self.waiting.get(name, []), values])]
        while len(self.waiting["latent"][0]) >= BLOCK:
            self._write(BLOCK)

    def _write(self, rows: int) -> None:
        block = {name: values[0][:rows] for name, values in self.waiting.items()}
        self.waiting = {name: [values[0][rows:]] for name, values in self.waiting.items()}
        if self._writer is None:
            self._writer = ArrowWriter(path=str(self.part), features=_features(block))
        self._writer.write_batch(block)
        self.rows += rows

    def close(self) -> dict:
        """{name, rows, bytes, sha256} of the shard, which now has its name."""
        if left := len(self.waiting["latent"][0]):
            self._write(left)
        self._writer.finalize()
        files.sync(self.part)
        found = {"name": self.path.name, "rows": self.rows, "bytes": self.part.stat().st_size, "sha256": sha256_of(self.part)}
        files.place(self.part, self.path)
        return found


def _features(block: dict[str, np.ndarray]) -> datasets.Features:
    kinds = {4: datasets.Array3D, 3: datasets.Array2D}
    return datasets.Features({
        name: kinds[values.ndim](values.shape[1:], str(values.dtype)) if values.ndim in kinds else datasets.Value(str(values.dtype))
        for name, values in block.items()
    })  # fmt: skip
