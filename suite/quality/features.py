"""Feature networks behind FID, KID and the score: the shipped ones, for digits of 8 and of 28 pixels, and, on request, Inception v3.

Shapes: B images, C channels, H rows, W columns, F features, K classes.
Images are floats in pixel units [0, 1]. Distances from different networks are not comparable, so every network carries
a `name` and a `digest` (sha256 of its weights file) that go into the tables beside the number.
"""
from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

DIGITS_WEIGHTS = Path(__file__).parent / "digit_features.safetensors"
# Both printed by tests/quality/train_features.py. Other weights change every FID in the tables, so they are an error.
DIGITS_SHA256 = "94c9c008d903269a2ba4ceae12b1f97a420dce6c88e4d024f907cfbdbd297b6f"
MNIST_WEIGHTS = Path(__file__).parent / "mnist_features.safetensors"
MNIST_SHA256 = "c9f333d4a1f8bdd242fc91bc5348a684910061cfdfecda116c2e0b041821d490"
INCEPTION_ENV = "INCEPTION_WEIGHTS"  # environment variable holding the path of the Inception v3 weights file


class QualityError(ValueError):
    """Image quality cannot be measured on what was given; the message says what to change."""


class FeatureNet(nn.Module):
    """What the metrics need of a network: (B, C, H, W) in [0, 1] -> (B, F) float64 features and (B, K) logits."""

    name: str          # column `fid_features`
    digest: str        # sha256 of the weights file, hex
    num_features: int  # F; torchmetrics reads it, else it pushes a (3, 299, 299) dummy image through the network

    def train(self, mode: bool = True) -> FeatureNet:
        """Stay in eval mode: a torchmetrics metric hands its own `train()` down to the network it was given."""
        return super().train(False)

    def check_shape(self, x_BCHW: Tensor) -> None:
        """Raise QualityError where the network cannot read images of this shape."""
        raise NotImplementedError

    def classify(self, features_BF: Tensor) -> Tensor:
        """(B, F) features -> (B, K) class logits."""
        raise NotImplementedError

    def logits(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) images -> (B, K) class logits."""
        return self.classify(self(x_BCHW))


class DigitFeatures(FeatureNet):
    """Small conv net on the 8x8 digits; its features are the 16 numbers before the 10-class head.

    No BatchNorm and no dropout: nothing in it depends on a mode or on the other images of a batch. The features are
    layer-normalised: none is longer than 4, so the FID of any two image sets lies between 0 and about 64.
    """

    name = "digits16"
    side = 8  # pixels
    num_features = 16  # far below the 256 images scored: the bias of FID grows with F/N (arXiv:1911.07023)

    def __init__(self) -> None:
        super().__init__()
        *convolutions, values = self.layers()
        self.body = nn.Sequential(
            *(layer for convolution in convolutions for layer in (convolution, nn.SiLU())),
            nn.Flatten(),
            nn.Linear(values, self.num_features),
            nn.LayerNorm(self.num_features, elementwise_affine=False),
        )
        self.head = nn.Linear(self.num_features, 10)

    @staticmethod
    def layers() -> tuple[nn.Conv2d | int, ...]:
        """The convolutions, and the number of values that come out of the last."""
        down = partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)
        return nn.Conv2d(1, 16, 3, padding=1), down(16, 24), down(24, 32), 32 * 2 * 2

    def check_shape(self, x_BCHW: Tensor) -> None:
        """Raise QualityError unless the images are (B, 1, side, side)."""
        if tuple(x_BCHW.shape[1:]) != (1, self.side, self.side):
            raise QualityError(
                f"the {self.name} features read images of shape (B, 1, {self.side}, {self.side}), not {tuple(x_BCHW.shape)}; "
                "quality on other data needs --features inception"
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, 1, side, side) images in [0, 1] -> (B, 16) features, in the dtype of the weights (float64 once loaded)."""
        self.check_shape(x_BCHW)
        return self.body(x_BCHW.to(self.head.weight.dtype))

    def classify(self, features_BF: Tensor) -> Tensor:
        """(B, 16) features -> (B, 10) digit logits."""
        return self.head(features_BF)


class MnistFeatures(DigitFeatures):
    """The same for the 28 x 28 digits of `--data mnist`: one halving more."""

    name = "mnist16"
    side = 28

    @staticmethod
    def layers() -> tuple[nn.Conv2d | int, ...]:
        """The convolutions, and the number of values that come out of the last."""
        down = partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)
        return nn.Conv2d(1, 8, 3, padding=1), down(8, 16), down(16, 24), down(24, 24), 24 * 4 * 4


class InceptionFeatures(FeatureNet):
    """Inception v3 (2048 pooled features, 1008 logits without bias) as torchmetrics runs it; needs torch-fidelity."""

    name = "inception2048"
    num_features = 2048  # torchmetrics' default layer

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3  # 2.9 s to import

        self.net = NoTrainInceptionV3("inception-v3-compat", [str(self.num_features)], str(weights))

    def check_shape(self, x_BCHW: Tensor) -> None:
        """Raise QualityError unless the images are (B, 1 or 3, H, W)."""
        if x_BCHW.ndim != 4 or x_BCHW.shape[1] not in (1, 3):
            raise QualityError(f"the inception features read images of 1 or 3 channels, not {tuple(x_BCHW.shape)}")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) images in [0, 1] -> (B, 2048) float64 features; QualityError on a non-finite pixel."""
        self.check_shape(x_BCHW)
        if not torch.isfinite(x_BCHW).all():  # as a byte, NaN would be a valid pixel and give a finite FID
            raise QualityError("non-finite pixels have no inception features")
        bytes_BCHW = (x_BCHW.clamp(0, 1) * 255).byte()  # truncated, as torchmetrics' normalize=True does
        return self.net(bytes_BCHW.expand(-1, 3, -1, -1)).double()

    def classify(self, features_BF: Tensor) -> Tensor:
        """(B, 2048) features -> (B, 1008) logits_unbiased, torchmetrics' default for the Inception score."""
        return features_BF @ self.net.fc.weight.T.to(features_BF.dtype)


def extractor(kind: str = "digits", weights: str | Path | None = None) -> FeatureNet:
    """The frozen feature network of this kind, in eval mode on the CPU. Takes no random numbers.

    kind: "digits" (the default) or "mnist", both shipped, or "inception"; weights: Inception v3 weights file, else
    $INCEPTION_WEIGHTS. Raises QualityError for an unknown kind, a missing or changed weights file, or a missing
    torch-fidelity.
    """
    if kind in ("digits", "mnist"):
        digits, mnist = (DigitFeatures, DIGITS_WEIGHTS, DIGITS_SHA256), (MnistFeatures, MNIST_WEIGHTS, MNIST_SHA256)
        net, path, sha256 = digits if kind == "digits" else mnist
        if weights is not None:
            raise QualityError(f"the {kind} features are fixed ({path.name}); weights go with inception only")
        return _shipped(net, path, sha256).requires_grad_(False).eval()
    if kind == "inception":
        return _inception(weights).requires_grad_(False).eval()
    raise QualityError(f"unknown features {kind!r}; there are: digits, mnist, inception")


def _shipped(kind: type[DigitFeatures], path: Path, sha256: str) -> DigitFeatures:
    """The network from its shipped file, in float64; QualityError where the file is not the recorded one."""
    from safetensors.torch import load

    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise QualityError(f"{path} has sha256 {digest[:9]}..., not {sha256[:9]}...; restore it")
    with torch.device("meta"):  # the usual initialisation would draw from the global generator
        net = kind()
    net.load_state_dict(load(data), assign=True)
    net.digest = digest
    # float32 would round FID's digits away; torchmetrics casts its result back to the dtype of the features.
    return net.double()


def _inception(weights: str | Path | None) -> InceptionFeatures:
    """InceptionFeatures from a weights file; QualityError in one line where the file or torch-fidelity is missing."""
    from importlib.util import find_spec

    path = Path(weights or os.environ.get(INCEPTION_ENV, ""))
    if not path.is_file():
        raise QualityError(f"inception features need a weights file: name it, or {INCEPTION_ENV} (now {str(path)!r})")
    if find_spec("torch_fidelity") is None:
        raise QualityError("inception features need torch-fidelity: pip install torch-fidelity")
    with torch.random.fork_rng(devices=[]):  # torch-fidelity builds the network with random weights before it loads
        net = InceptionFeatures(path)
    net.digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return net
