"""`reference.safetensors` beside the shards: the real images as FID sees them, once their pixels are gone.

Shapes: B images, K channels, S = S pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suite.data import contents
from suite.data import images as pictures
from suite.files import write_whole
from suite.quality.features import QualityError, extractor
from suite.scale import moments
from suite.scale.encoding import frozen
from suite.scale.encoding.listing import Listing

FILE = "reference.safetensors"
BATCH, THREADS = 256, 8


def write(found: Listing, files: str, size: int, channels: int, out: Path, say: Callable[[str], object]) -> None:
    """Features of all images, cropped and resized as they were encoded; one line where there is no network to make them.

    Goes over the images by itself: it takes one pass, and is made again from the start if it is killed. files: their
    digest.
    """
    of = frozen.digest_of(files, size, channels)
    try:
        if moments.load(out / FILE).images == of:
            return
    except QualityError:
        pass
    try:
        net = extractor("inception")
    except QualityError as error:
        say(f"no FID of runs over this folder: {error}; encode again with them, and only that is made")
        return
    net.to(frozen.device())
    gathered = moments.gather(_batches(found, size, channels), net)
    if found.digest(out / contents.NOTES) != files:
        raise found.source.error(f"images changed while their features were measured; delete {out} and encode again")
    write_whole(out / FILE, replace(gathered, images=of).to_bytes())
    say(f"measured the features of {len(found.files):,} images, for FID")


def _batches(found: Listing, size: int, channels: int) -> Iterator[Tensor]:
    with ThreadPoolExecutor(THREADS) as pool:
        for at in range(0, len(found.files), BATCH):
            part = zip(found.names[at : at + BATCH], found.files[at : at + BATCH])
            jobs = [pool.submit(pictures.square, found.source, name, file, size, channels) for name, file in part]
            yield torch.from_numpy(np.stack([job.result() for job in jobs])).float() / 255
