"""Which modules of a network that we have not seen write to its residual stream, and which make its queries and keys: by their names."""

from __future__ import annotations

import math
import re
from collections import Counter

import torch
from torch import nn

# The last part of a writer's name in torch, transformers, timm, diffusers, x-transformers and llama-like code
NAMES = re.compile(r"(^|\.)(out_proj|o_proj|c_proj|linear2|fc2|down_proj|w2|wo|proj_out|to_out(\.0)?|dense_4h_to_h|attn\.proj|ff\.net\.2"
                   r"|attention\.dense|output\.dense|proj)$")  # fmt: skip
MOST = 24  # writers of a guess, spread evenly: medians of more say the same and cost more
QUERY, KEY = (
    re.compile(rf"(^|\.)({names})(\.weight)?$")
    for names in ("q_proj|query|to_q|wq|q_lin|q_proj_weight", "k_proj|key|to_k|wk|k_lin|k_proj_weight")
)
BOTH = re.compile(r"(^|\.)(in_proj_weight|qkv(\.weight)?|qkv_proj(\.weight)?|c_attn(\.weight)?)$")  # not where heads interleave


def guess_writers(model: nn.Module) -> list[str]:
    """Names of nn.Linear modules that look like writers and have the most common output width, at most MOST of them."""
    found = [(name, module.out_features) for name, module in model.named_modules() if is_writer(module) and NAMES.search(name)]
    if not found:
        return []
    width, _ = Counter(out for _, out in found).most_common(1)[0]
    names = [name for name, out in found if out == width]
    step = max(1.0, (len(names) - 1) / (MOST - 1))
    return [names[round(i * step)] for i in range(min(len(names), MOST))]


def is_writer(module: object) -> bool:
    """Whether the audit can watch it: an nn.Linear whose weight is a plain parameter, not one made anew at each use."""
    return isinstance(module, nn.Linear) and module._parameters.get("weight") is not None


def query_key_gradients(model: nn.Module) -> dict[str, float]:
    """q_grad and k_grad: the median over layers of the gradient norms of query and key weights; nan where no name is known.

    A matrix of queries, keys and values in one is cut in three along the longer side, where that is three times the
    other.
    """
    queries, keys = [], []
    for name, weight in model.named_parameters():
        if weight.grad is None or weight.ndim != 2:
            continue
        if BOTH.search(name) and max(weight.shape) == 3 * min(weight.shape):
            query, key, _ = weight.grad.float().chunk(3, int(weight.shape[1] > weight.shape[0]))
            queries.append(query.norm())
            keys.append(key.norm())
        elif QUERY.search(name):
            queries.append(weight.grad.float().norm())
        elif KEY.search(name):
            keys.append(weight.grad.float().norm())
    return {"q_grad": _median(queries), "k_grad": _median(keys)}


def _median(norms: list) -> float:
    return float(torch.stack(norms).float().median()) if norms else math.nan
