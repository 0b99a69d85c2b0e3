"""The signature of our own runs, and the state that they end in."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from trainers import SEGMENTS, stand_in

from suite.diagnosis.audit_pass import final_state
from suite.verdict.signature import of_audit


def window_rows(crash=100, spike=50.0, at=0, fall=1e-6, site="attn", layers=(3, 4, 5), **fields):
    """Audit rows of steps 70 to 130: g_mean times `spike` at step crash + at; Q and K times `fall` from 5 on."""
    rows = []
    for step in range(70, 131):
        for layer in layers:
            dead = fall if step >= crash + 5 else 1.0
            rows.append({
                "step": step, "layer": layer, "site": site, "segment": "all", "window": True,
                "g_mean": 1e-3 * (spike if step == crash + at else 1), "q_grad": 1e-2 * dead, "k_grad": 2e-2 * dead,
            } | fields)  # fmt: skip
    return rows


@pytest.mark.parametrize("changes, expected", [
    ({}, True),
    ({"at": -10}, True),
    ({"at": -11}, False),  # that is before the event
    ({"spike": 5.01}, True),
    ({"spike": 4.99}, False),
    ({"fall": 0.0099}, True),
    ({"fall": 0.0101}, False),
    ({"k_grad": 1.0}, False),
    ({"q_grad": 1.0}, False),
    ({"fall": 0.0}, True),
])  # fmt: skip
def test_signature_needs_the_spike_and_both_extinctions(changes, expected):
    assert of_audit(window_rows(**changes), 100, deep_from=3) is expected


def test_signature_is_that_of_deep_attention_in_the_window():
    dull = window_rows(spike=1, layers=(0, 1, 2, 6, 7))
    assert of_audit(window_rows() + dull, 100, deep_from=3) is True  # medians: three layers of five
    assert of_audit(window_rows(layers=(3,)) + dull, 100, deep_from=3) is False  # one of three
    others = window_rows(site="ffn") + window_rows(segment="image")
    others += window_rows(layers=(0,)) + window_rows(window=False)
    assert of_audit(others, 100, deep_from=3) is None
    assert of_audit(window_rows(spike=1) + others, 100, deep_from=3) is False
    assert of_audit(window_rows(), None, deep_from=3) is None
    assert of_audit(window_rows(), 75, deep_from=3) is None  # nothing from before the event


# --- the final state --------------------------------------------------------------------------------------------------


class Replace(nn.Module):
    """A block that writes a given trunk; None passes the trunk through."""

    def __init__(self, x_TD):
        super().__init__()
        self.x_TD = x_TD

    def forward(self, x, rope, segments, step, t_B):
        return x if self.x_TD is None else self.x_TD.expand(len(x), *self.x_TD.shape)


def state_from(data, *trunks):
    blocks = [Replace(x) for x in trunks]
    dit = SimpleNamespace(blocks=blocks, rope=None, segments=SEGMENTS, step=None, sharded=False,
                          enter=lambda z, c, t: torch.zeros(len(z), 7, 7), folded=lambda x: x)  # fmt: skip
    return final_state(stand_in(dit, torch.zeros(4, 3, 7), data))


def trunk_of_cosine(c):
    """7 tokens any two of which meet at cosine c: a common direction and one of each token's own."""
    own = torch.eye(7)
    return torch.linalg.cholesky((1 - c) * own + c).float() if c > -1 / 6 else own - 1 / 7


@pytest.mark.parametrize("cosine, state", [
    (1.0 - 1e-6, "mean_dominated"), (0.91, "mean_dominated"), (0.89, "other"), (0.5, "other"), (0.0, "other"),
    (-1 / 6, "mean_free"), (-1 / 6 + 0.019, "mean_free"), (-1 / 6 + 0.021, "other"),
])  # fmt: skip
def test_state_of_a_trunk(data, cosine, state):
    assert state_from(data, trunk_of_cosine(cosine)) == state


def test_state_is_the_mean_over_the_deeper_half(data):
    equal, orthogonal = trunk_of_cosine(1 - 1e-6), trunk_of_cosine(0.0)
    assert state_from(data, orthogonal, orthogonal, equal, equal) == "mean_dominated"
    assert state_from(data, equal, equal, equal, orthogonal) == "other"
    assert state_from(data, orthogonal, equal, equal) == "mean_dominated"  # of three blocks, the last two
    assert state_from(data, equal, equal, orthogonal) == "other"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_state_of_a_broken_trunk_is_other(data, value):
    assert state_from(data, torch.full((7, 7), value)) == "other"


def test_state_of_a_healthy_model_is_other(start):
    assert final_state(start()) == "other"
