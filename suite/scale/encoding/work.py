"""Rows of a listing as the columns of a shard: pictures decoded by threads, encoded in batches that fit.

Shapes: B images of a batch, K their channels, S = S pixels; in captions S tokens of width D.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suite.data import images as pictures
from suite.data.sources import first_line
from suite.scale.encoding.autoencoder import Autoencoder
from suite.scale.encoding.listing import Listing
from suite.scale.encoding.text import TextEncoder
from suite.scale.encoding.writer import ShardWriter

THREADS = 8  # that decode pictures; Pillow lets go of the interpreter as it does


class Work:
    """Rows of the listing as columns of a shard; `batch` only ever shrinks."""

    def __init__(
        self, found: Listing, coder: Autoencoder, reader: TextEncoder | None, size: int, tokens: int | None, batch: int
    ) -> None:
        self.found, self.coder, self.reader, self.size, self.tokens, self.batch = found, coder, reader, size, tokens, batch

    def shard(self, path: Path, rows: range) -> dict:
        """Encode these rows into a file; returns {name, rows, bytes, sha256}."""
        writer, images = ShardWriter(path), _Images(self.found, rows, self.size, self.coder.image_channels)
        try:
            at = rows.start
            while at < rows.stop:
                part = range(at, min(at + self.batch, rows.stop))
                pixels = images.take(part, ahead=self.batch)
                try:
                    columns = self._columns(pixels, part)
                except torch.OutOfMemoryError as error:
                    if self.batch == 1:
                        raise self.found.source.error("not enough memory on the GPU to encode a single image") from error
                    self.batch //= 2
                    torch.cuda.empty_cache()
                    continue
                writer.add(columns)
                images.drop(part)
                at = part.stop
            return writer.close()
        except OSError as error:
            raise self.found.source.error(f"{path} cannot be written ({first_line(error)})") from error
        finally:
            images.close()
            writer.part.unlink(missing_ok=True)

    def embed(self, captions: list[str]) -> Tensor:
        """(B, S, D) float16 on the CPU."""
        return self.reader.embed(captions, self.tokens).half().cpu()

    def _columns(self, pixels_BKSS: np.ndarray, rows: range) -> dict[str, np.ndarray]:
        whole = torch.from_numpy(pixels_BKSS).to(self.coder.device).float() / 255
        columns = {"latent": self.coder.encode(whole).half().cpu().numpy()}
        if self.reader:
            columns["caption"] = self.embed([self.found.captions[row] for row in rows]).numpy()
        for name, values in columns.items():
            if (bad := ~np.isfinite(values).reshape(len(values), -1).all(1)).any():
                raise self.found.source.error(f"the {name} of {self.found.names[rows[int(bad.argmax())]]} does not fit float16")
        if not self.reader:
            columns["label"] = np.array([self.found.labels[row] for row in rows], np.int64)
        return columns


class _Images:
    """Pictures of these rows, decoded by threads a batch ahead of their use."""

    def __init__(self, found: Listing, rows: range, size: int, channels: int) -> None:
        self.found, self.rows, self.size, self.channels = found, rows, size, channels
        self.pool, self.queue, self.next = ThreadPoolExecutor(THREADS), deque[Future](), rows.start

    def take(self, rows: range, ahead: int) -> np.ndarray:
        """(B, K, S, S) uint8 of the next rows; the same again until they are dropped."""
        while self.next < min(rows.stop + ahead, self.rows.stop):
            file, name = self.found.files[self.next], self.found.names[self.next]
            self.queue.append(self.pool.submit(pictures.square, self.found.source, name, file, self.size, self.channels))
            self.next += 1
        return np.stack([self.queue[i].result() for i in range(len(rows))])

    def drop(self, rows: range) -> None:
        for _ in rows:
            self.queue.popleft()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
