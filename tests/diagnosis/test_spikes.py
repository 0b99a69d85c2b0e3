"""Spikes of the raw gradient norm, and the parameter families behind them."""

import math

import numpy as np
import pytest
import torch
from trainers import WIDTH, crash_at

from suite.diagnosis.auditor import SPIKE_FACTOR, Auditor, recovered, spike_threshold
from suite.records import schema


def test_the_threshold_is_four_times_the_median_of_the_last_hundred():
    assert spike_threshold([1.0] * 19) is None
    assert spike_threshold([1.0] * 20) == SPIKE_FACTOR == 4
    assert spike_threshold([9.0] * 50 + [1.0] * 51 + [2.0] * 49) == 4.0
    assert spike_threshold([9.0] * 50 + [1.0] * 49 + [2.0] * 51) == 8.0


def spike_steps(trainer, norms):
    """Steps for which an auditor that sees the norms one by one lays down spike rows, and the thresholds there."""
    auditor, found = Auditor(trainer), {}

    def families(step, norm, threshold):
        found[step] = threshold
        return []

    auditor.families = families
    for step, norm in enumerate(norms, 1):
        trainer.state.curve.append((step, 1.0, norm))
        auditor.before_update(step)
    return found


@pytest.fixture
def quiet(start, monkeypatch):
    """A trainer whose auditor audits nothing."""
    monkeypatch.setattr("suite.diagnosis.auditor.audit_step", lambda *_, **__: [])
    return start(audit_every=10**6)


def test_only_upward_crossings_are_spikes(quiet):
    norms = [1.0] * 30
    norms += [4.5, 5.0, 100.0]  # one spike, however long and high
    norms += [1.0] * 10 + [4.0]  # not above
    norms += [4.001, 3.9, 4.1]  # up, down, and up again
    assert list(spike_steps(quiet, norms)) == [31, 45, 47]


def test_spikes_need_twenty_norms_before_them(quiet):
    assert list(spike_steps(quiet, [1.0] * 19 + [99.0] + [1.0, 99.0])) == [22]


def test_spikes_of_a_wild_series_by_the_definition(quiet):
    norms = np.exp(np.random.default_rng(0).standard_normal(400)).tolist()
    expected = {}
    for k in range(20, 400):
        level = 4 * np.median(norms[max(0, k - 100) : k])
        before = 4 * np.median(norms[max(0, k - 101) : k - 1]) if k > 20 else np.inf
        if norms[k] > level and not norms[k - 1] > before:
            expected[k + 1] = level
    assert len(expected) > 5
    assert spike_steps(quiet, norms) == pytest.approx(expected)


def families(trainer, seed=0):
    """Rows for gradients drawn at random and clipped, with the gradients before clipping."""
    trainer.state.flat.grads.zero_()
    for name, place in trainer.state.flat.slices.items():
        draw = torch.randn(place.stop - place.start, generator=torch.Generator().manual_seed(seed + hash_of(name)))
        trainer.state.flat.grads[place] = draw * (1 + hash_of(name) % 7)
    raw = {n: p.grad.double().clone() for n, p in trainer.state.dit.named_parameters()}
    norm = trainer.state.flat.clip(trainer.run.protocol.clip).item()
    return Auditor(trainer).families(7, norm, 0.5), raw, norm


def hash_of(name):
    return sum(map(ord, name))


@pytest.mark.parametrize("clip", [0.5, 1e9])
@pytest.mark.parametrize("scheme, gates", [("plain", 0), ("mvsplit", 1)])
def test_squares_of_the_families_add_up_to_the_raw_norm(start, clip, scheme, gates):
    rows, raw, norm = families(start(scheme, depth=1, clip=clip))
    assert {r["family"] for r in rows} == {
        "Embed", "Final", "L0 Q", "L0 K", "L0 V", "L0 WO", "L0 W13", "L0 W2", *["L0 gates"] * gates}  # fmt: skip
    assert sum(r["family_grad_norm"] ** 2 for r in rows) == pytest.approx(norm**2, rel=1e-4)
    assert norm**2 == pytest.approx(sum(g.square().sum().item() for g in raw.values()), rel=1e-4)
    assert [r["rank"] for r in rows] == list(range(1, len(rows) + 1))
    sizes = [r["family_grad_norm"] for r in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert all((r["step"], r["grad_norm"], r["threshold"]) == (7, norm, 0.5) for r in rows)
    assert set(rows[0]) | {"run_id", "recovered"} == {c.name for c in schema.TABLES["spikes"].columns}


def test_the_fifteen_largest_families_are_named_by_what_they_hold(start):
    rows, raw, _ = families(start("mvsplit", depth=4))
    expected = {
        "Embed": [raw["embed.weight"], raw["embed.bias"]], "Final": [raw["final.weight"], raw["final.bias"]],
    }  # fmt: skip
    for i in range(4):
        for third, label in enumerate("QKV"):
            expected[f"L{i} {label}"] = [raw[f"blocks.{i}.wqkv"][third * WIDTH : (third + 1) * WIDTH]]
        for short in ("wo", "w13", "w2"):
            expected[f"L{i} {short.upper()}"] = [raw[f"blocks.{i}.{short}"]]
        expected[f"L{i} gates"] = [raw[f"blocks.{i}.residuals.{j}.gate_{n}"] for j in (0, 1) for n in ("alpha", "beta")]
    sizes = {k: math.sqrt(sum(v.square().sum().item() for v in parts)) for k, parts in expected.items()}
    largest = sorted(sizes, key=sizes.get, reverse=True)[:15]
    assert {r["family"]: r["family_grad_norm"] for r in rows} == pytest.approx({k: sizes[k] for k in largest}, rel=1e-4)


def test_recovery_is_told_by_the_distance_to_the_crash():
    rows = [{"step": s} for s in (10, 49, 50, 100)]
    assert [r["recovered"] for r in recovered(rows, crash_at(100), 50)] == [True, True, False, False]
    assert all(r["recovered"] for r in recovered(rows, crash_at(None), 50))
