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
SHOWN = 8  # kinds of layer that the advice lists: a block has four to seven linear layers
QUERY, KEY = (
    re.compile(rf"(^|\.)({names})((\.base_layer)?\.weight)?$")
    for names in ("q_proj|query|to_q|wq|q_lin|q_proj_weight", "k_proj|key|to_k|wk|k_lin|k_proj_weight")
)
BOTH = re.compile(r"(^|\.)(in_proj_weight|(qkv|qkv_proj|c_attn)((\.base_layer)?\.weight)?)$")  # not where heads interleave


def guess_writers(model: nn.Module) -> list[str]:
    """Names of linear modules that look like writers and have the most common output width, at most MOST of them."""
    found = [(name, width_of(module)) for name, module in model.named_modules() if is_writer(module) and NAMES.search(name)]
    if not found:
        return []
    width, _ = Counter(out for _, out in found).most_common(1)[0]
    names = [name for name, out in found if out == width]
    step = max(1.0, (len(names) - 1) / (MOST - 1))
    return [names[round(i * step)] for i in range(min(len(names), MOST))]


def advice(model: nn.Module) -> str:
    """What to do where `guess_writers` finds none: the linear layers that come once a block, and the argument that names them."""
    kinds: dict[str, list[int]] = {}
    inside = {f"{name}.{child}" for name, module in model.named_modules() if hasattr(module, "base_layer")
              for child, _ in module.named_modules()}  # fmt: skip
    for name, module in model.named_modules():
        if is_writer(module) and name not in inside:
            numbered = re.match(r"(?:.*\.)?\d+\.(.+)", name)  # what follows the last number that is not the end: a part of a block
            kinds.setdefault(numbered[1] if numbered else name, []).append(width_of(module))
    if not kinds:
        return "no linear layer here has a weight of two axes, so that loss and gradient norm alone are watched"
    repeated = {kind: widths for kind, widths in kinds.items() if len(widths) > 1} or kinds
    trunk = _trunk_width(model) or Counter(width for widths in repeated.values() for width in widths).most_common(1)[0][0]
    kinds = {kind: widths for kind, widths in repeated.items() if trunk in widths} or repeated
    shown = list(kinds)[:SHOWN]
    listed = ", ".join(f"{kind} ({len(kinds[kind])} x)" for kind in shown)
    ends = repr(tuple(shown))
    return (f"none has a name that is known. Linear layers here that write vectors of the trunk's width: {listed}. Of these name the ones "
            f"that end a branch: writers=[name for name, _ in model.named_modules() if name.endswith({ends})]")  # fmt: skip


def _trunk_width(model: nn.Module) -> int | None:
    """The most common width of the norms: these read the trunk."""
    widths = [module._parameters["weight"].numel() for name, module in model.named_modules()
              if "norm" in type(module).__name__.lower() and module._parameters.get("weight") is not None]  # fmt: skip
    return Counter(widths).most_common(1)[0][0] if widths else None


def is_writer(module: object) -> bool:
    """Whether it can be watched: like nn.Linear, with a weight of its own (a plain parameter, not one made anew at each use).

    That is any module with a `weight` of two axes that is no table of vectors: transformers' Conv1D, whose weight is
    (in, out), layers of tensor-parallel and quantising packages; and peft's wrapper of one, which has it as
    `base_layer` and adds its own part to what that writes.
    """
    if not isinstance(module, nn.Module):
        return False
    inner = _unwrapped(module)
    weight = inner._parameters.get("weight")
    table = isinstance(inner, nn.Embedding | nn.EmbeddingBag) or "norm" in type(inner).__name__.lower()
    return weight is not None and weight.ndim == 2 and not table


def is_linear(module: object) -> bool:
    """Whether it is an nn.Linear, also one whose weight is made anew at each use, or like one."""
    return isinstance(module, nn.Linear) or is_writer(module)


def weight_of(module: nn.Module) -> nn.Parameter:
    """The weight of a writer, (out, in) or (in, out); of a wrapper that of what it wraps."""
    return _unwrapped(module)._parameters["weight"]


def width_of(module: nn.Module) -> int:
    """The length of the vectors that a writer writes."""
    inner = _unwrapped(module)
    for name in ("out_features", "nf", "output_size"):  # nn.Linear and its kin; transformers' Conv1D; Megatron's
        if isinstance(width := getattr(inner, name, None), int):
            return width
    return weight_of(inner).shape[0]


def _unwrapped(module: nn.Module) -> nn.Module:
    while isinstance(inner := module._modules.get("base_layer"), nn.Module):
        module = inner
    return module


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
