"""Remedies that are not residual schemes, each as what it changes of a protocol: data only."""

from __future__ import annotations

from dataclasses import replace

from suite.protocol import Protocol

CONTROLS: dict[str, dict[str, object]] = {
    # what arXiv:2605.06169, App. J, says does not prevent the collapse
    "a_minus_i": {"mixing": "A-I"},
    "i_minus_a": {"mixing": "I-A"},
    "half_a": {"mixing": "I/2+A/2"},
    "head_gates": {"gated": "head"},
    "feature_gates": {"gated": "feature"},
    # what practitioners turn first
    "clip_off": {"clip": 1e9},  # beyond the gradient of any committed run that lived
    "clip_0.1": {"clip": 0.1},  # a tenth of Table 3's
    "beta2_0.95": {"beta2": 0.95},  # the usual value of large language models: GPT-3, arXiv:2005.14165, App. B
    "warmup_200": {"warmup": 200},  # four times ours; of 400 steps half are then at the full rate, so fewer deaths may be less time to die
}


def under(protocol: Protocol, control: str) -> Protocol:
    """The protocol as a control changes it, "" = as it is. Raises ValueError for one that is not known, with the names that are."""
    if control and control not in CONTROLS:
        raise ValueError(f"control {control!r} is not one of {', '.join(CONTROLS)}")
    return replace(protocol, **CONTROLS[control]) if control else protocol
