"""suite.quality.fid and suite.quality.features: FID, KID and the score against naive float64 references, and every known trap."""
from __future__ import annotations

import hashlib
import random
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
import train_features
from torch import nn

from suite.quality import features, fid
from suite.quality.fid import QualityError, real_floor, sample_grid, scores

MEASURES = ("fid", "kid", "kid_std", "inception_score")


@pytest.fixture(scope="module")
def net():
    return fid.extractor()


@pytest.fixture(scope="module")
def digits():
    """train, held_out: (1500, 1, 8, 8) and (297, 1, 8, 8); their labels; 256 images of uniform noise."""
    x, y, train_ids, held_out_ids = train_features.split("digits")
    noise = torch.rand(256, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    return SimpleNamespace(train=x[train_ids], held_out=x[held_out_ids], noise=noise,
                           train_labels=y[train_ids], held_out_labels=y[held_out_ids])


def naive_fid(a_BF: np.ndarray, b_BF: np.ndarray) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 sqrtm(A^1/2 B A^1/2)), the symmetric form, in float64."""
    cov_a, cov_b = np.cov(a_BF.T), np.cov(b_BF.T)
    root = scipy.linalg.sqrtm(cov_a).real
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    return ((a_BF.mean(0) - b_BF.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross


def naive_mmd2(a_BF: np.ndarray, b_BF: np.ndarray) -> float:
    """Unbiased squared MMD under (x.y/F + 1)^3, the kernel of the KID paper."""
    def kernel(u, v):
        return (u @ v.T / u.shape[1] + 1) ** 3
    m = len(a_BF)
    inside = sum((k.sum() - np.trace(k)) / (m * (m - 1)) for k in (kernel(a_BF, a_BF), kernel(b_BF, b_BF)))
    return inside - 2 * kernel(a_BF, b_BF).mean()


# --- the numbers ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("which", ["held_out", "noise"])
def test_values_equal_naive_float64(which, net, digits):
    fake = getattr(digits, which)[:256]
    row = scores(fake, digits.train, net, seed=3)
    fake_BF, real_BF = net(fake).numpy(), net(digits.train).numpy()
    assert row["fid"] == pytest.approx(naive_fid(fake_BF, real_BF), abs=1e-5)

    rng = torch.Generator().manual_seed(3)  # torchmetrics draws the real subset first, then the fake one
    values = []
    for _ in range(fid.KID_SUBSETS):
        real_ids, fake_ids = (torch.randperm(n, generator=rng)[:128].numpy() for n in (1500, 256))
        values.append(naive_mmd2(real_BF[real_ids], fake_BF[fake_ids]))
    assert row["kid"] == pytest.approx(np.mean(values), abs=1e-9)
    assert row["kid_std"] == pytest.approx(np.std(values), abs=1e-9)

    logits_BK = net.logits(fake).numpy()
    p_BK = np.exp(logits_BK - logits_BK.max(1, keepdims=True))
    p_BK /= p_BK.sum(1, keepdims=True)
    score = np.exp((p_BK * np.log(p_BK / p_BK.mean(0))).sum(1).mean())
    assert row["inception_score"] == pytest.approx(score, rel=1e-9)


def test_row_keys(net, digits):
    row = scores(digits.held_out[:32], digits.train[:64], net)
    assert list(row) == ["fid", "kid", "kid_std", "inception_score", "fid_features", "fid_n", "features_digest",
                         "clipped_fraction", "nonfinite_fraction", "fid_status"]
    assert (row["fid_n"], row["fid_status"], row["fid_features"]) == (32, "ok", "digits16")
    assert row["features_digest"] == features.DIGITS_SHA256
    assert all(type(row[key]) is float for key in MEASURES)


def test_floor_is_far_below_noise_and_collapse(net, digits):
    floors = [real_floor(digits.train, 256, net, seed) for seed in range(3)]
    noise = scores(digits.noise, digits.train, net)
    mean = digits.train.mean(0, keepdim=True).expand(256, -1, -1, -1)  # what a collapsed run would draw
    collapsed = scores(mean, digits.train, net)
    assert max(row["fid"] for row in floors) < 0.1 * noise["fid"] < 0.1 * collapsed["fid"] < 6.4  # 64 is the most
    assert max(abs(row["kid"]) for row in floors) < 0.1 * noise["kid"]
    assert min(row["inception_score"] for row in floors) > 7 > 3 > noise["inception_score"]
    assert collapsed["inception_score"] == pytest.approx(1.0)


def test_floor_falls_with_n_and_with_even_classes(net, digits):
    by_n = [np.mean([real_floor(digits.train, n, net, seed)["fid"] for seed in range(3)]) for n in (64, 256, 750)]
    assert by_n[0] > by_n[1] > by_n[2]
    even = np.mean([real_floor(digits.train, 256, net, seed, digits.train_labels)["fid"] for seed in range(3)])
    assert 0 < even < 0.7 * by_n[1]


def test_even_floor_draws_classes_evenly(monkeypatch, net, digits):
    seen = []
    monkeypatch.setattr(fid, "scores", lambda a, b, *_, **__: seen.extend((a, b)))
    tagged = digits.train.clone()
    tagged[:, 0, 0, 0] = torch.arange(1500)
    real_floor(tagged, 256, net, 5, digits.train_labels)
    drawn, others = (x[:, 0, 0, 0].long() for x in seen)
    assert sorted(torch.cat([drawn, others]).tolist()) == list(range(1500))
    assert set(digits.train_labels[drawn].bincount().tolist()) == {25, 26}


def test_fid_grows_with_noise(net, digits):
    unit = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    fids = [scores(digits.train[:256] + std * unit, digits.train, net)["fid"] for std in (0, 0.1, 0.2, 0.4)]
    assert fids == sorted(fids) and fids[-1] > 2 * fids[0]


def test_a_set_against_itself(net, digits):
    row = scores(digits.train, digits.train, net)
    assert 0.0 <= row["fid"] < 1e-5
    assert abs(row["kid"]) < 0.02
    rank_deficient = digits.train[:8]  # 8 images, 16 features
    assert 0.0 <= scores(rank_deficient, rank_deficient, net)["fid"] < 1e-5


# --- bad pixels ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_samples_get_no_number(bad, net, digits):
    fake = digits.held_out[:64].clone()
    fake[5, 0, 2] = bad  # one row of one image
    row = scores(fake, digits.train, net)
    assert row["fid_status"] == "nonfinite"
    assert [row[key] for key in MEASURES] == [None] * 4
    assert row["nonfinite_fraction"] == 8 / (64 * 64)
    assert row["clipped_fraction"] == 0.0


def test_out_of_range_pixels_are_clamped_and_counted(net, digits):
    fake = digits.held_out[:64].clone()
    fake[:, 0, 0, 0], fake[:, 0, 7, 7] = -3.0, 1.6
    row = scores(fake, digits.train, net)
    assert row["clipped_fraction"] == 2 / 64
    clamped = scores(fake.clamp(0, 1), digits.train, net)
    assert clamped["clipped_fraction"] == 0.0
    assert [row[key] for key in MEASURES] == [clamped[key] for key in MEASURES]


# --- random numbers, order, modes ----------------------------------------------------------------------------------

def test_global_random_state_is_left_alone(digits):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    fresh = fid.extractor()
    scores(digits.noise, digits.train, fresh)
    real_floor(digits.train, 64, fresh)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all() and states[2] == random.getstate()


def test_result_depends_on_seed_only(net, digits):
    def measure(seed):
        return scores(digits.noise, digits.train, net, seed=seed)
    first = measure(0)
    torch.rand(5)  # another place in the global stream
    other = measure(1)
    assert measure(0) == first
    assert other["kid"] != first["kid"] and other["fid"] == first["fid"]


def test_extractor_stays_in_eval_mode(digits):
    from torchmetrics.image.fid import FrechetInceptionDistance
    fresh = fid.extractor()
    metric = FrechetInceptionDistance(feature=fresh)
    metric.train()
    assert not any(module.training for module in fresh.modules())
    metric.update(digits.train, real=True)
    metric.update(digits.noise, real=False)
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == pytest.approx(scores(digits.noise, digits.train, fresh)["fid"], abs=1e-9)


def test_scores_do_not_wait_for_other_ranks(monkeypatch, net, digits):
    """Under `accelerate launch` rank 0 scores alone; a metric that synchronised would hang."""
    import torchmetrics.metric as metric_module

    def gather(*_args, **_kwargs):
        raise AssertionError("a metric tried to synchronise")
    monkeypatch.setattr(metric_module, "jit_distributed_available", lambda: True)
    monkeypatch.setattr(metric_module.Metric, "_sync_dist", gather)
    assert scores(digits.noise, digits.train, net)["fid_status"] == "ok"


def test_scores_warn_of_nothing(recwarn, net, digits):
    scores(digits.noise, digits.train, net)
    assert not recwarn.list


# --- the feature network -------------------------------------------------------------------------------------------

def test_weights_are_the_recorded_ones(net, monkeypatch, tmp_path):
    data = features.DIGITS_WEIGHTS.read_bytes()
    assert hashlib.sha256(data).hexdigest() == features.DIGITS_SHA256 == net.digest
    assert len(data) < 100_000
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(data[:-1] + b"!")
    monkeypatch.setattr(features, "DIGITS_WEIGHTS", changed)
    with pytest.raises(QualityError, match="sha256"):
        fid.extractor()


def test_features_and_accuracy(net, digits):
    out = net(digits.held_out)
    assert out.dtype == torch.float64 and out.shape == (297, 16) == (297, net.num_features)
    assert not out.requires_grad
    assert out.square().sum(1).min() > 15 and out.square().sum(1).max() <= 16  # layer-normalised; eps takes the rest
    torch.testing.assert_close(net(digits.held_out[:3]), out[:3], rtol=0, atol=1e-12)  # no image sees its batch
    hits = net.logits(digits.held_out).argmax(1) == digits.held_out_labels
    assert hits.double().mean().item() == pytest.approx(0.9764, abs=1e-4)


def test_training_script_gives_such_a_network_again():
    state = torch.get_rng_state()
    _, train_accuracy, held_out_accuracy = train_features.train("digits")
    assert train_accuracy > 0.99 and held_out_accuracy == pytest.approx(0.9764, abs=0.015)
    assert torch.equal(state, torch.get_rng_state())


# --- what is refused -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(16, 1, 32, 32), (16, 3, 8, 8), (16, 4, 16, 16)])
def test_other_data_need_inception(shape, net, digits):
    with pytest.raises(QualityError, match="--features inception"):
        scores(torch.rand(shape), digits.train, net)
    with pytest.raises(QualityError, match="--features inception"):
        scores(digits.noise, torch.rand(shape), net)


def test_bad_input_is_refused(net, digits):
    with pytest.raises(QualityError, match="float"):
        scores((digits.noise * 255).byte(), digits.train, net)
    with pytest.raises(QualityError, match="float"):
        scores(digits.noise[0], digits.train, net)
    with pytest.raises(QualityError, match="at least 4"):
        scores(digits.noise[:3], digits.train, net)
    with pytest.raises(QualityError, match="pixel units"):
        scores(digits.noise, (digits.train - 0.3) / 0.4, net)  # standardised
    with pytest.raises(QualityError, match="pixel units"):
        scores(digits.noise, torch.full_like(digits.train, float("nan")), net)
    for n in (3, 1497):
        with pytest.raises(QualityError, match="cannot split"):
            real_floor(digits.train, n, net)


def test_extractor_errors_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv(features.INCEPTION_ENV, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"")
    for arguments, match in [(("dino",), "digits, mnist, inception"), (("digits", weights), "fixed"),
                             (("inception",), features.INCEPTION_ENV), (("inception", tmp_path / "no"), "weights file"),
                             (("inception", weights), "pip install torch-fidelity")]:
        with pytest.raises(QualityError, match=match) as error:
            fid.extractor(*arguments)
        assert "\n" not in str(error.value)


def test_inception_wrapper_on_a_stand_in(monkeypatch, tmp_path):
    """torch-fidelity is absent here: the wrapper is tested round a network with its interface."""
    class StandIn(nn.Module):
        def __init__(self, name, features_list, path):
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])
            self.fc = nn.Linear(2048, 1008)
            self.seen = []

        def forward(self, x_BCHW):
            self.seen.append(x_BCHW)
            return x_BCHW.float().mean((1, 2, 3))[:, None].expand(-1, 2048) / 255

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", StandIn)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: True)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    monkeypatch.setenv(features.INCEPTION_ENV, str(weights))
    state = torch.get_rng_state()
    net = fid.extractor("inception")
    assert torch.equal(state, torch.get_rng_state())
    assert net.digest == hashlib.sha256(b"weights").hexdigest()

    x = torch.tensor([0.0, 0.5, 1.0, 1.7]).view(4, 1, 1, 1).expand(4, 1, 5, 5)
    out = net(x)
    assert out.shape == (4, 2048) and out.dtype == torch.float64
    assert net.net.seen[0].shape == (4, 3, 5, 5)
    assert net.net.seen[0][:, 0, 0, 0].tolist() == [0, 127, 255, 255]
    assert net.logits(x).shape == (4, 1008)
    with pytest.raises(QualityError, match="non-finite"):
        net(x * float("nan"))
    with pytest.raises(QualityError, match="channels"):
        net(torch.rand(2, 4, 8, 8))


# --- the picture ---------------------------------------------------------------------------------------------------

def read_png(path):
    from PIL import Image
    return np.asarray(Image.open(path))


def test_grid_bytes_repeat_and_layout(digits, tmp_path):
    samples, labels = digits.held_out[:200], digits.held_out_labels[:200]
    for name in ("a.png", "deep/b.png"):
        sample_grid(samples, labels, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "deep/b.png").read_bytes()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b.png"]
    page = read_png(tmp_path / "a.png")
    assert page.shape == (10 * 34 + 2, 8 * 34 + 2, 3) and page.dtype == np.uint8
    third_seven = samples[labels == 7][2, 0]
    cell = page[7 * 34 + 2:7 * 34 + 34, 2 * 34 + 2:2 * 34 + 34]
    expected = np.repeat(np.repeat((third_seven * 255).round().byte().numpy(), 4, 0), 4, 1)
    assert (cell == expected[..., None]).all()


def test_grid_shows_bad_pixels_and_gaps(tmp_path):
    samples = torch.full((3, 1, 8, 8), 2.0)  # out of range: white
    samples[1, 0, 0, 0], samples[2] = float("inf"), float("nan")
    sample_grid(samples, torch.tensor([4, 4, 9]), tmp_path / "grid.png")
    page = read_png(tmp_path / "grid.png")
    assert page.shape == (2 * 34 + 2, 274, 3)
    magenta = (page == fid.GRID_BAD).all(-1)
    assert magenta.sum() == 16 + 1024 and magenta[2, 34 + 2] and magenta[34 + 2:, 2:34].sum() == 1024
    assert (page[2:34, 2:34] == 255).all()
    assert (page[2:34, 3 * 34:] == fid.GRID_BACK).all()


def test_grid_takes_colour_and_caps_rows(tmp_path):
    samples = torch.rand(40, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    sample_grid(samples, torch.arange(40), tmp_path / "grid.png")
    page = read_png(tmp_path / "grid.png")
    assert page.shape == (10 * 50 + 2, 8 * 50 + 2, 3)
    assert (page[2:50, 2:50] == (samples[0] * 255).round().byte().permute(1, 2, 0).numpy()).all()
    with pytest.raises(QualityError, match="labels"):
        sample_grid(samples, torch.arange(39), tmp_path / "grid.png")
    with pytest.raises(QualityError, match="1 or 3"):
        sample_grid(samples[:, :2], torch.arange(40), tmp_path / "grid.png")
