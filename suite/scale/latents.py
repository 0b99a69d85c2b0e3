"""`--data latents:DIR`: images that an autoencoder has encoded, with captions or classes, read row by row from memory-mapped shards.

Stands where `suite.data.in_memory.Data` does. Shards: suite/scale/shards.py; what lies beside them:
suite/scale/latent_manifest.py. Shapes: N rows, B of a batch, C channels, H = W positions, S caption tokens, D their
width.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suite.data import contents
from suite.data.captions import Captions, caption_table
from suite.data.sources import Source
from suite.data.split import HELDOUT, spread
from suite.quality.fid import GRID_COLUMNS
from suite.rng import generator
from suite.scale import latent_manifest
from suite.scale.shards import Shards, files_of, open_shards

HELDOUT_ROWS = 1024  # at most: what a held-out loss reads at every evaluation


@dataclass(frozen=True)
class Latents:
    """x0 gives standardised latents: (latent - mean) / std, mean and std (C, 1, 1) over all rows and positions."""

    name: str
    folder: Path
    shards: Shards
    manifest: latent_manifest.Manifest
    train: Tensor  # row numbers
    heldout: Tensor
    mean: Tensor
    std: Tensor
    classes: int | None  # None: captions are embeddings that lie beside the latents
    labels_N: Tensor | None
    stamp: str  # of the shards, from before their content was looked at

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        return tuple(self.shards.latents.shape)

    @property
    def caption_shape(self) -> tuple[int, int] | None:
        """(S, D) of the captions; None where the protocol makes one for each class."""
        return None if self.shards.captions is None else tuple(self.shards.captions.shape)

    @property
    def digest(self) -> str:
        """d and 15 hex digits over contents; the same wherever the folder lies."""
        return self.manifest.digest

    @property
    def current(self) -> bool:
        """Whether nobody has written to the shards since, from which rows are read to the end."""
        with suppress(OSError):
            return contents.stamp(self.shards.files) == self.stamp
        return False

    @cached_property
    def empty(self) -> int | Tensor:
        """The caption of a row whose caption is dropped: the last of the table, or (S, D)."""
        return self.classes if self.classes is not None else self.manifest.empty_SD.float()

    def x0(self, rows: Tensor) -> Tensor:
        """(B, C, H, W) standardised latents of these rows, float32; any order, some of them twice."""
        return self.shards.latents.take(rows).sub_(self.mean).div_(self.std)  # in place: a fresh 16 MiB costs more than the sums

    def caption(self, rows: Tensor) -> Tensor:
        """Captions of these rows: (B) int64 of the table, or (B, S, D) float32 embeddings."""
        return self.labels_N[rows] if self.classes is not None else self.shards.captions.take(rows)

    def prompts(self, which: Tensor) -> Tensor:
        """Captions of the samples of these numbers: the classes in turn, or the held-out captions and then others, in a fixed order."""
        if self.classes is not None:
            return which % self.classes
        return self.caption(self._prompt_rows[which % len(self._prompt_rows)])

    @cached_property
    def _prompt_rows(self) -> Tensor:
        return torch.cat([self.heldout, self.train[torch.randperm(len(self.train), generator=generator("prompts"))]])

    def picture_rows(self, n: int) -> Tensor:
        """For n samples the row of the picture that each goes to; of captions the first 80 fill it."""
        return torch.arange(n) % self.classes if self.classes is not None else torch.arange(n) // GRID_COLUMNS

    def captions(self, tokens: int, width: int) -> Captions:
        """What turns captions into tokens of the model. tokens, width: of a table's, where there are classes."""
        if self.classes is None:
            return Captions(None, self.empty)
        return Captions(caption_table(self.classes, tokens, width), self.empty)

    def pixels(self, latents_BCHW: Tensor) -> Tensor:
        """Back to the autoencoder's units; `suite.scale.encoding.decode` makes images of them."""
        return latents_BCHW * self.std + self.mean

    def images(self, latents_BCHW: Tensor) -> Tensor | None:
        """(B, K, S, S) images for a picture, or None where nothing decodes these latents."""
        from suite.scale.encoding.decode import picture

        return picture(self, latents_BCHW)

    def quality_fault(self, features: str, n: int) -> str:
        """What is missing to score n samples with these features, or ""."""
        from suite.scale.encoding.decode import fault

        return fault(self, features, n)

    def scores(self, latents_BCHW: Tensor, features: str) -> dict:
        """FID and its kin of samples, decoded; for data that have no fault."""
        from suite.scale.encoding.decode import scores

        return scores(self, latents_BCHW, features)

    def floor(self, features: str, n: int) -> None:
        """Not measured: the images themselves are not kept."""

    def constant_loss(self, patch: int) -> float:
        """The loss of the best token-constant output: 1 + the mean over patch offset and channel of the latents' variance.

        As `Data.constant_loss` has it, from the moments at every position; over all rows, held-out ones too.
        """
        mean, std = self.mean.double(), self.std.double()
        first = (self.manifest.mean_CHW - mean) / std
        second = (self.manifest.square_CHW - 2 * mean * self.manifest.mean_CHW + mean.square()) / std.square()
        c, h, w = first.shape
        first, second = (m.reshape(c, h // patch, patch, w // patch, patch).mean((1, 3)) for m in (first, second))
        return 1.0 + (second - first.square()).mean().item()


def load(source: Source) -> Latents:
    """The latents of a folder; its manifest is made where there is none. Raises DataError."""
    folder = Path(source.name)
    files = files_of(source, folder)
    try:
        stamp = contents.stamp(files)
    except OSError as error:
        raise source.error(f"{error.filename} cannot be read: {error.strerror}") from error
    known = latent_manifest.read(source, folder, files)
    shards = open_shards(source, files)
    found = [sum(shards.rows), list(shards.latents.shape), None if shards.captions is None else list(shards.captions.shape)]
    if known and [known.notes[name] for name in ("rows", "shape", "caption_shape")] != found:
        raise source.error(f"{folder / latent_manifest.NOTES} tells of other shapes than its shards have; delete it to make it anew")
    n, classes, labels = found[0], None, None
    if shards.labels is not None:
        kinds, labels = np.unique(shards.labels, return_inverse=True)  # class numbers are ranks, as in `Data`
        classes = len(kinds)
    if round(n * HELDOUT) < 1 or n * HELDOUT < (classes or 0):
        of = f"{n} latents" + (f" of {classes} classes" if classes else "")
        raise source.error(f"{of} are too few to hold some{' of each' * bool(classes)} out")
    known = known or latent_manifest.make(source, folder, shards)
    train, heldout = map(torch.from_numpy, spread(n, labels, HELDOUT_ROWS))
    mean = known.mean_CHW.mean((1, 2))
    std = (known.square_CHW.mean((1, 2)) - mean.square()).sqrt()
    mean, std = (moment.float()[:, None, None] for moment in (mean, std))
    numbers = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Latents(source.text, folder, shards, known, train, heldout, mean, std, classes, numbers, stamp)
