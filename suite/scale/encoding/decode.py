"""Latents back to images, by the autoencoder that a folder's manifest names, and their FID against the folder's real images.

Shapes: B latents, C channels, H = W positions; K channels of an image, S = S pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from suite.data.dataset import DataError
from suite.quality.features import QualityError, extractor
from suite.quality.fid import MIN_IMAGES
from suite.scale import moments
from suite.scale.encoding import frozen
from suite.scale.encoding.autoencoder import Autoencoder
from suite.scale.encoding.reference import FILE
from suite.scale.latents import Latents

BATCH = 16  # latents decoded at once; measured: the FLUX.2 decoder takes 0.35 GiB a 256-pixel image on a CPU, and 13 s on one core


def pixels(data: Latents, latents_BCHW: Tensor) -> Iterator[Tensor]:
    """(b, K, S, S) images in [0, 1] on the CPU, b of the B latents at a time; nan where a latent is. Raises DataError.

    latents: in the autoencoder's units, as `Latents.pixels` gives them for what a model makes.
    """
    decoder = _decoder(data)
    decoder.vae.to(decoder.device)
    try:
        for part in latents_BCHW.split(BATCH):
            yield decoder.decode(part).float().cpu()
    finally:
        decoder.vae.to("cpu")  # beside a model in training it would take memory for nothing


def picture(data: Latents, latents_BCHW: Tensor) -> Tensor | None:
    """(B, K, S, S) images for a picture, or None where nothing decodes these latents."""
    try:
        return torch.cat(list(pixels(data, latents_BCHW)))
    except DataError:
        return None


def fault(data: Latents, features: str, n: int) -> str:
    """What is missing to score n samples with these features, or ""."""
    if features == "digits":
        return "the digit features judge the shipped digits alone; other images need --features inception"
    try:
        real, net = moments.load(data.folder / FILE), extractor(features)
        decoder = _decoder(data)
    except QualityError as error:
        missing = not (data.folder / FILE).is_file()
        return f"no {FILE} in {data.folder}; encode again with {features} weights at hand" if missing else str(error)
    except DataError as error:
        return str(error)
    if real.digest != net.digest:
        return f"{data.folder / FILE} is of {real.name} {real.digest[:9]}..., not {net.digest[:9]}...; delete it and encode again"
    made = data.manifest.notes["encoder"]
    if real.images != frozen.digest_of(made["files"], made["size"], decoder.image_channels):
        return f"{data.folder / FILE} is of other images than the latents; delete it and encode again"
    return f"FID needs {MIN_IMAGES} samples" if n < MIN_IMAGES else ""


def scores(data: Latents, latents_BCHW: Tensor, features: str) -> dict:
    """The row of `suite.quality.fid.scores`, without KID. latents: as for `pixels`. Raises where `fault` names something."""
    return moments.scores(pixels(data, latents_BCHW), moments.load(data.folder / FILE), extractor(features).to(frozen.device()))


def _decoder(data: Latents) -> Autoencoder:
    encoder = data.manifest.notes["encoder"]
    if not encoder:
        raise DataError(f"{data.folder / 'latents.json'} names no autoencoder: these latents cannot be decoded")
    decoder = _loaded(encoder["vae"]["name"])
    if isinstance(decoder, DataError):
        raise decoder
    if decoder.identity["sha256"] != encoder["vae"]["sha256"]:
        raise DataError(f"autoencoder {decoder.name}: its weights are not those that made {data.folder}")
    return decoder


@cache
def _loaded(name: str) -> Autoencoder | DataError:
    """The autoencoder, or why there is none: without a network that takes a minute to find out."""
    try:
        return Autoencoder(name, frozen.device())
    except DataError as error:
        return error
