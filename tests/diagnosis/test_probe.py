"""The ridge probe on trunks whose content is known, and what it leaves as it is."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trainers import stand_in

from suite import registry
from suite.data.in_memory import standardise
from suite.diagnosis import probe as module
from suite.diagnosis.probe import probe
from suite.model import flow
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.records import schema
from suite.training.trainer import Trainer

IMAGE, CAPTION, WIDTH = 16, 3, 8


@pytest.fixture(scope="module")
def data():
    """300 images of pure noise in three classes, so that 50 are held out and 400 rows are probed."""
    labels = np.arange(300) % 3
    pixels = np.random.default_rng(0).random((300, 1, 4, 4))
    return standardise("toy", pixels.astype(np.float32), labels, 3)


class Says:
    """A block that writes a trunk telling t in one place only; zero-mean noise on every token, the same for every t."""

    def __init__(self, place, known):
        self.place, self.known = place, known
        self.residuals = [SimpleNamespace(open=lambda x, ctx: x)]

    def forward(self, x, rope, segments, step, t_B):
        return told(self.place, self.known["t"])


def told(place, t_B):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(len(t_B), IMAGE + CAPTION, WIDTH, generator=g)
    direction = torch.randn(WIDTH, generator=g)
    x[:, :IMAGE] -= x[:, :IMAGE].mean(1, keepdim=True)
    t_B11 = t_B[:, None, None]
    if place == "image_mean":
        x[:, :IMAGE] += 0.5 + t_B11 * direction
    elif place == "centered_rms":
        rms = x[:, :IMAGE].square().mean((1, 2), keepdim=True).sqrt()
        x[:, :IMAGE] *= (1 + 3 * t_B11) / rms
    elif place == "caption_mean":
        x[:, IMAGE:] = 2 - t_B11 * direction
    return x


@pytest.fixture
def rows(data, monkeypatch):
    """Probe rows of a model of five blocks; what enters block i tells t in PLACES[i]."""
    known, original = {}, flow.make_batch

    def make_batch(*args):
        batch = original(*args)
        known["t"] = batch.t_B
        return batch

    monkeypatch.setattr(module.flow, "make_batch", make_batch)
    dit = SimpleNamespace(
        blocks=[Says(place, known) for place in (*PLACES[1:], "nothing")], segments=(IMAGE, CAPTION), rope=None,
        step=None, sharded=False, enter=lambda z, c, t: told(PLACES[0], known["t"]), folded=lambda x: x,
    )  # fmt: skip
    run = SimpleNamespace(depth=len(PLACES), protocol=SimpleNamespace(audit_layers=12))
    captions = torch.zeros(4, CAPTION, WIDTH)
    return probe(stand_in(dit, captions, data, run=run, step=7))


PLACES = ("nothing", "image_mean", "centered_rms", "caption_mean", "nothing")
FEATURES = ("image_mean", "centered_rms", "caption_mean", "shuffled")


def test_t_is_found_where_it_is_and_nowhere_else(rows):
    table = {(r["layer"], r["feature"]): r for r in rows if r["feature"] != "input_stats"}
    assert set(table) == {(i, f) for i in range(5) for f in FEATURES}
    for (layer, feature), row in table.items():
        if feature == PLACES[layer]:
            assert row["r2"] > 0.999 and row["mae"] < 0.01 and row["residual_r2"] > 0.99
        else:
            assert -0.2 < row["r2"] < 0.05, (layer, feature, row)
            assert 0.2 < row["mae"] < 0.3  # a quarter is the mean distance of uniform numbers from their middle
            assert feature == "shuffled" or row["residual_r2"] < 0.1
        assert row["step"] == 7
    assert all((r["residual_r2"] is None) == (r["feature"] == "shuffled") for r in rows)


def test_input_statistics_know_t_in_part_and_stand_once(rows):
    """On images of unit variance, z has variance (1-t)^2 + t^2: symmetric, so t is known only through its noise."""
    first = [r for r in rows if r["feature"] == "input_stats"]
    assert len(first) == 1 and first[0]["residual_r2"] == 0
    assert -0.1 < first[0]["r2"] < 0.9


def test_residual_is_the_share_of_what_the_input_left(monkeypatch):
    """t = a + b of equal variance; the input statistics know a alone."""
    a, b = np.random.default_rng(0).standard_normal((2, 4000))
    layer = {"layer": 3, "image_mean": a[:, None], "centered_rms": b[:, None], "caption_mean": (a + b)[:, None]}
    monkeypatch.setattr(module, "_features", lambda trainer: (a + b, np.stack([a, a, 0 * a], 1), [layer]))
    rows = {r["feature"]: r for r in probe(stand_in(None, None, None))}
    assert rows["input_stats"]["r2"] == pytest.approx(0.5, abs=0.03)
    assert rows["input_stats"]["mae"] == pytest.approx(np.sqrt(2 / np.pi), rel=0.05)
    for feature, r2, residual in (("image_mean", 0.5, 0), ("centered_rms", 0.5, 1), ("caption_mean", 1, 1)):
        assert rows[feature]["r2"] == pytest.approx(r2, abs=0.03)
        assert rows[feature]["residual_r2"] == pytest.approx(residual, abs=1e-3)


def test_fit_is_ordinary_least_squares_judged_on_the_second_half():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((600, 3)) * [1, 10, 0.1] + 5
    t = x @ [1.0, -0.1, 3.0] + 0.3 * rng.standard_normal(600)
    t[300:] += 0.2  # a bias on the second half counts against the fit
    design = np.concatenate([x, np.ones((600, 1))], 1)
    guess = design[300:] @ np.linalg.lstsq(design[:300], t[:300], rcond=None)[0]
    r2, mae, found = module._fit(x, t)
    np.testing.assert_allclose(found, guess, atol=0.02)
    assert r2 == pytest.approx(1 - np.mean((t[300:] - found) ** 2) / np.var(t[300:]), rel=1e-9)
    assert mae == pytest.approx(np.abs(t[300:] - found).mean())


def test_noise_explains_nothing():
    rng = np.random.default_rng(2)
    r2, _, _ = module._fit(rng.standard_normal((2000, 8)), rng.random(2000))
    assert abs(r2) < 0.03  # the paper's bound for its shuffled control


def trainer_of(data, folder, scheme="plain"):
    protocol = replace(PROTOCOLS["smoke"], width=16, ffn=24, caption_tokens=3, final="std", audit_layers=2)
    entry = registry.get(scheme, "controlled")
    params = registry.format_params(entry, {})
    run = Run(protocol, scheme, "controlled", params, "std", 3, 1e-3, 0, "toy", data.digest, entry.code_digest({}), False)
    return Trainer(run, data, folder)


def test_a_real_run_is_probed_alike_twice_and_trains_on_as_if_it_had_not_been(data, tmp_path):
    probed, bare = trainer_of(data, tmp_path / "a"), trainer_of(data, tmp_path / "b")
    for trainer in (probed, bare):
        for _ in range(3):
            trainer.advance()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    rows = probe(probed)
    torch.manual_seed(99)
    assert probe(probed) == rows
    torch.set_rng_state(before[0])
    probe(probed)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    for trainer in (probed, bare):
        trainer.advance()
    assert probed.state.curve == bare.state.curve and torch.equal(probed.state.flat.values, bare.state.flat.values)
    assert {r["layer"] for r in rows} == {0, 2} and {r["step"] for r in rows} == {3}
    assert set(rows[0]) | {"run_id"} == {c.name for c in schema.TABLES["probe"].columns}
    assert len({(r["layer"], r["feature"]) for r in rows}) == len(rows) == 9
