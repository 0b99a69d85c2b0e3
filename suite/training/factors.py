"""Factors of rate and epsilon that a scheme gives named weights, asked of every block once, checked, and laid over its parameters.

A parameter may hold several named weights (wqkv holds q, k and v): its factors are those of equal parts, in order.
"""

from __future__ import annotations

import math

from suite.model.backbone import PARTS, DiT
from suite.residual import WEIGHTS, Factors, Residual

Parts = dict[str, tuple[Factors, ...]]  # by parameter, of its equal parts; what is not named has none

NONE = Factors()


class FactorError(ValueError):
    """Factors that no optimiser can take; the message is one line for the user."""


def asked(residual: Residual, site: str) -> dict[str, Factors]:
    """`residual.factors(site)`, all of them numbers. Raises FactorError for an unknown name, or what is no finite number above 0."""
    given, known = residual.factors(site), (*WEIGHTS[site], *(name for name, _ in residual.named_parameters()))
    where = f"{type(residual).__name__}.factors({site!r})"
    found = {}
    for name, factors in given.items():
        if name not in known:
            raise FactorError(f"{where} names {name!r}, and there are: {', '.join(known)}")
        try:
            found[name] = Factors(*map(float, factors))
        except (TypeError, ValueError):
            raise FactorError(f"{where}: {name} has {factors!r}, not Factors(rate, eps)") from None
        if not all(math.isfinite(factor) and factor > 0 for factor in found[name]):
            raise FactorError(f"{where}: {name} has {found[name]}; a factor is a finite number above 0")
    return found


def of_block(residuals: dict[str, Residual]) -> Parts:
    """By a block's parameters, from its merges by site; of those alone that have a factor."""
    weights: dict[str, Factors] = {}
    own: Parts = {}
    for index, (site, residual) in enumerate(residuals.items()):
        place = 0 if residual is residuals["attn"] else index
        for name, factors in asked(residual, site).items():
            if name in WEIGHTS[site]:
                weights[name] = factors
            elif own.setdefault(f"residuals.{place}.{name}", (factors,)) != (factors,):
                raise FactorError(f"{type(residual).__name__}.factors: {name} is one parameter and has two factors, by site")
    parts = {of: tuple(weights.get(name, NONE) for name in names) for of, names in PARTS.items()} | own
    return {name: each[:1] if len({*each}) == 1 else each for name, each in parts.items() if {*each} != {NONE}}


def of_model(dit: DiT) -> Parts:
    """By the model's parameters; empty for a scheme that gives none. Raises FactorError."""
    return {
        f"blocks.{i}.{name}": parts
        for i, block in enumerate(dit.blocks)
        for name, parts in of_block({"attn": block.residuals[0], "ffn": block.residuals[-1]}).items()
    }
