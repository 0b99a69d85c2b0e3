"""FID against moments in a file is FID against the images they are of."""

import pytest
import torch

from suite.quality.features import QualityError, extractor
from suite.quality.fid import scores
from suite.scale import moments


@pytest.fixture(scope="module")
def digits():
    from suite.data.load import load

    data = load("digits")
    return data.pixels(data.images_NCHW).clamp(0, 1)


@pytest.fixture(scope="module")
def net():
    return extractor("digits")


def test_scores_are_those_against_the_images(digits, net, tmp_path):
    noise = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    real, fake = digits[:1000], (digits[1000:1300] + 0.2 * noise).clamp(0, 1)
    (tmp_path / "m").write_bytes(moments.gather(real.split(170), net).to_bytes())
    found = moments.load(tmp_path / "m")
    assert (found.n, found.name, found.digest) == (1000, "digits16", net.digest)
    right, state = scores(fake, real, net), torch.get_rng_state()
    row = moments.scores(fake.split(77), found, net)
    assert row.keys() == right.keys() and torch.equal(torch.get_rng_state(), state)
    assert row["fid"] == pytest.approx(right["fid"], rel=1e-6) and row["fid"] > 0.05
    assert row["inception_score"] == pytest.approx(right["inception_score"], rel=1e-9)
    assert row["kid"] is None and row["fid_n"] == 300 and row["fid_status"] == "ok"


def test_mean_and_covariance_are_the_features_own(digits, net):
    found = moments.gather(digits[:200].split(33), net)
    features = net(digits[:200])
    assert torch.allclose(found.mean_F, features.mean(0), atol=1e-12) and torch.allclose(found.cov_FF, features.T.cov(), atol=1e-10)
    assert moments.gather([digits[:200]], net).to_bytes() == moments.gather([digits[:200]], net).to_bytes()


def test_a_sample_that_is_not_finite_has_no_score(digits, net):
    real = moments.gather([digits[:100]], net)
    spoilt = digits[:20].clone()
    spoilt[3, 0, 0, 0] = float("nan")
    row = moments.scores([digits[:20], spoilt], real, net)
    assert row["fid_status"] == "nonfinite" and row["fid"] is None and row["nonfinite_fraction"] == pytest.approx(1 / 40 / 64)


def test_what_cannot_be_scored(digits, net, tmp_path):
    real = moments.gather([digits[:100]], net)
    with pytest.raises(QualityError, match="at least 4"):
        moments.scores([digits[:3]], real, net)
    with pytest.raises(QualityError, match="at least 4"):
        moments.gather([digits[:3]], net)
    with pytest.raises(QualityError, match="moments are of other"):
        moments.scores([digits[:9]], moments.Moments(real.mean_F, real.cov_FF, 100, "other", "0" * 64), net)
    (tmp_path / "m").write_bytes(real.to_bytes()[:-5])
    for path in (tmp_path / "m", tmp_path / "none"):
        with pytest.raises(QualityError, match="holds no moments"):
            moments.load(path)


def test_a_changed_number_is_no_longer_what_was_written(digits, net, tmp_path):
    path = tmp_path / "m"
    whole = bytearray(moments.gather([digits[:100]], net).to_bytes())
    path.write_bytes(whole)
    assert moments.load(path).n == 100
    whole[-3] ^= 1  # in the last number of the second tensor
    path.write_bytes(whole)
    with pytest.raises(QualityError, match="is not what was written"):
        moments.load(path)
