"""The shipped network for the 28 x 28 digits of `--data mnist`: its bytes, its accuracy, and that no other network judges them."""

import hashlib

import numpy as np
import pytest
import torch
import train_features

from suite.data.load import cached, load
from suite.quality import features
from suite.quality.features import QualityError, extractor
from suite.quality.fid import real_floor, scores


@pytest.fixture(scope="module")
def mnist():
    return cached("mnist")


def pixels(data, rows):
    return data.pixels(data.images_NCHW[rows]).clamp(0, 1)


def test_weights_are_the_recorded_ones():
    data = features.MNIST_WEIGHTS.read_bytes()
    assert hashlib.sha256(data).hexdigest() == features.MNIST_SHA256 == extractor("mnist").digest and len(data) < 100_000
    with pytest.raises(QualityError, match="mnist features are fixed"):
        extractor("mnist", features.MNIST_WEIGHTS)


def test_it_was_trained_on_the_training_part_alone(mnist):
    _, _, train, held_out = train_features.split("mnist")
    assert np.array_equal(train, mnist.train.numpy()) and np.array_equal(held_out, mnist.heldout.numpy())


def test_features_and_accuracy(mnist):
    net, images, labels = extractor("mnist"), pixels(mnist, mnist.heldout), mnist.labels_N[mnist.heldout]
    out = net(images)
    assert out.dtype == torch.float64 and out.shape == (826, 16) == (826, net.num_features) and not out.requires_grad
    torch.testing.assert_close(net(images[:3]), out[:3], rtol=0, atol=1e-12)  # no image sees its batch
    assert (net.logits(images).argmax(1) == labels).double().mean().item() == pytest.approx(0.9625, abs=1e-4)


@pytest.mark.slow
def test_the_training_script_gives_such_a_network_again():
    _, train_accuracy, held_out_accuracy = train_features.train("mnist")
    assert train_accuracy > 0.99 and held_out_accuracy == pytest.approx(0.9625, abs=0.015)


def test_each_of_the_named_data_is_judged_by_the_network_of_its_name(mnist):
    digits = load("digits")
    assert [data._network("digits").name for data in (digits, mnist)] == ["digits16", "mnist16"]
    assert mnist.quality_fault("digits", 512) == digits.quality_fault("digits", 256) == ""
    with pytest.raises(QualityError, match="shape .B, 1, 28, 28."):
        mnist._network("digits").check_shape(digits.images_NCHW)


def test_held_out_images_score_near_the_floor_and_blurred_or_noisy_ones_far_from_it(mnist):
    net, real = extractor("mnist"), pixels(mnist, mnist.train)
    floor = real_floor(real, 512, net, labels=mnist.labels_N[mnist.train])["fid"]
    held_out = pixels(mnist, mnist.heldout)
    blurred = torch.nn.functional.avg_pool2d(held_out, 7, stride=1, padding=3)
    noisy = (held_out + 0.3 * torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    fids = [scores(images, real, net)["fid"] for images in (held_out, blurred, noisy)]
    assert 0 <= floor < 0.2 and fids[0] < 0.1 and min(fids[1:]) > 10 * floor + 0.5, (floor, fids)
