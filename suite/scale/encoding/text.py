"""Captions to embeddings by a frozen text encoder of `transformers`: the last hidden state, at one length for all.

The paper: Qwen3-0.6B in bf16, at most 256 tokens. What pads a caption stays a token: the paper's model attends to it
too. Shapes: B captions, S tokens, D width.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from suite.data.dataset import DataError
from suite.data.sources import one_line
from suite.scale.encoding import frozen

LONGEST = 256  # tokens; the paper's max_length
COUNTED = 4096  # captions whose tokens are counted at once


class TextEncoder:
    """name: of the hub, or a folder. bf16 on a GPU, float32 on a CPU, which has no fast bf16. Raises DataError."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = os.path.abspath(name) if os.path.isdir(name) else name, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.tokenizer, model = frozen.load("text encoder", name, "transformers", lambda: _read(name, self.dtype))
        if getattr(model.config, "is_encoder_decoder", False):  # a T5
            model = model.get_encoder()
        self.model = model.requires_grad_(False).eval().to(device)
        if self.tokenizer.pad_token is None:
            if self.tokenizer.eos_token is None:
                raise DataError(one_line(f"text encoder {name}: its tokenizer has no token to pad with"))
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.identity = frozen.identity(model, model.config.to_dict()) | {"dtype": str(self.dtype).removeprefix("torch.")}
        rules = getattr(self.tokenizer, "backend_tokenizer", None)  # merges, normalising, what is added at the ends; slow ones have none
        vocabulary = rules.to_str() if rules is not None else sorted(self.tokenizer.get_vocab().items())
        self.identity["tokenizer"] = frozen.digest_of(vocabulary, self.tokenizer.padding_side, self.tokenizer.pad_token)

    @property
    def longest(self) -> float:
        """Tokens of a caption that the model has positions for; inf where it does not say."""
        return getattr(self.model.config, "max_position_embeddings", None) or float("inf")

    def lengths(self, captions: list[str]) -> list[int]:
        """Tokens of every caption, untruncated."""
        parts = (captions[i : i + COUNTED] for i in range(0, len(captions), COUNTED))
        return [len(ids) for part in parts for ids in self.tokenizer(part)["input_ids"]]

    @torch.inference_mode()
    def embed(self, captions: list[str], tokens: int) -> Tensor:
        """(B, tokens, D) last hidden states on the device; longer captions lose their end."""
        words = self.tokenizer(captions, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").to(self.device)
        return self.model(input_ids=words["input_ids"], attention_mask=words["attention_mask"]).last_hidden_state


def _read(name: str, dtype: torch.dtype):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(name), transformers.AutoModel.from_pretrained(name, dtype=dtype)
