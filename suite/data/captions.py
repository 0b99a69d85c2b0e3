"""Captions as the model reads them: rows of a frozen table, or embeddings that came with the data.

Shapes: * any axes (B of a batch, or R, B of a group of runs), S caption tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suite.rng import generator


def caption_table(classes: int, tokens: int, width: int) -> Tensor:
    """(classes + 1, S, D) frozen N(0, 1) captions in place of the paper's frozen text encoder; last row = empty caption."""
    return torch.randn(classes + 1, tokens, width, generator=generator("captions"))


class Captions:
    """captions(caption) -> (*, S, D) on `device`. caption: (*) rows of the table, or (*, S, D) embeddings as they are."""

    def __init__(self, table: Tensor | None, empty: int | Tensor) -> None:
        """table: (rows, S, D), None where the data bring embeddings; empty: a caption that says nothing, a row or (S, D)."""
        self.table, self._empty, self.device = table, empty, torch.device("cpu")

    def to(self, device: torch.device) -> Captions:
        """Move the table there; captions come there from now on."""
        self.device, self.table = device, None if self.table is None else self.table.to(device)
        return self

    def __call__(self, caption: Tensor) -> Tensor:
        caption = caption.to(self.device)
        return caption if self.table is None else self.table[caption]

    @property
    def empty(self) -> Tensor:
        """(S, D): no caption, as the model learnt it from those that were dropped."""
        return self(torch.as_tensor(self._empty))


class Prompts:
    """The captions of many samples, made when a slice of them is asked for: 50,000 embeddings would not fit into memory."""

    def __init__(self, captions: Captions, prompts: Callable[[Tensor], Tensor], which: Tensor) -> None:
        """prompts: a data set's. which: numbers of the samples, as it takes them."""
        self.captions, self.prompts, self.which = captions, prompts, which

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, part: slice) -> Tensor:
        return self.captions(self.prompts(self.which[part]))
