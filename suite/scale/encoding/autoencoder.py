"""Images to latents and back by an autoencoder of `diffusers`, in the units that its own pipelines give to their models.

AutoencoderKLFlux2, the paper's: the posterior's mean, 2 x 2 positions made channels, then the statistics of its
BatchNorm (`Flux2Pipeline._encode_vae_image`). AutoencoderKL: the posterior's mean, shifted and scaled
(`FluxImg2ImgPipeline`). Shapes: B images, C channels of a latent, K of an image, H = W positions of a latent, S = S
pixels.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from suite.data.dataset import DataError
from suite.data.sources import one_line
from suite.scale.encoding import frozen

KNOWN = ("AutoencoderKLFlux2", "AutoencoderKL")


class Autoencoder:
    """name: of the hub, or a folder; a pipeline's too, of which it takes `vae`. Weights in float32. Raises DataError."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = os.path.abspath(name) if os.path.isdir(name) else name
        self.vae = frozen.load("autoencoder", name, "diffusers", lambda: _read(name))
        if type(self.vae).__name__ not in KNOWN:
            raise DataError(one_line(f"autoencoder {name}: is a {type(self.vae).__name__}; known: {', '.join(KNOWN)}"))
        self.config, self.device = self.vae.config, device
        if self.config.in_channels not in (1, 3):
            raise DataError(one_line(f"autoencoder {name}: takes images of {self.config.in_channels} channels, not 1 or 3"))
        if any(self.config.get(key) for key in ("latents_mean", "latents_std")):
            raise DataError(one_line(f"autoencoder {name}: has latents_mean and latents_std, which are not known here"))
        self.vae.requires_grad_(False).eval().to(device)
        self.patch = self.config.patch_size[0] if "patch_size" in self.config else 1
        self.factor = self.patch * 2 ** (len(self.config.block_out_channels) - 1)  # pixels a position
        self.identity = frozen.identity(self.vae, dict(self.config))

    @property
    def image_channels(self) -> int:
        """K: 1 grey, 3 colour."""
        return self.config.in_channels

    @torch.inference_mode()
    def encode(self, pixels_BKSS: Tensor) -> Tensor:
        """(B, C, H, W) float32 latents, on the device, of images in [0, 1]."""
        from diffusers.image_processor import VaeImageProcessor

        pixels = VaeImageProcessor.normalize(pixels_BKSS.to(self.device))
        latents = self.vae.encode(pixels).latent_dist.mode()
        if self.patch > 1:
            latents = F.pixel_unshuffle(latents, self.patch)
        mean, std = self._statistics()
        return (latents - mean) / std

    @torch.inference_mode()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """(B, K, S, S) images in [0, 1], on the device; nan where a latent is."""
        from diffusers.image_processor import VaeImageProcessor

        mean, std = self._statistics()
        latents = latents_BCHW.to(self.device) * std + mean
        if self.patch > 1:
            latents = F.pixel_shuffle(latents, self.patch)
        return VaeImageProcessor.denormalize(self.vae.decode(latents, return_dict=False)[0])

    def _statistics(self) -> tuple[Tensor | float, Tensor | float]:
        """What is taken away from latents, and what they are then divided by."""
        if self.patch == 1:
            return self.config.shift_factor or 0.0, 1 / self.config.scaling_factor
        norm = self.vae.bn
        return norm.running_mean[:, None, None], (norm.running_var[:, None, None] + self.config.batch_norm_eps).sqrt()


def _read(name: str):
    import diffusers

    if Path(name).is_dir():
        inside = (Path(name) / "vae" / "config.json").is_file()
        return diffusers.AutoModel.from_pretrained(name, torch_dtype=torch.float32, **({"subfolder": "vae"} if inside else {}))
    try:
        return diffusers.AutoModel.from_pretrained(name, subfolder="vae", torch_dtype=torch.float32)
    except Exception as first:  # no pipeline
        try:
            return diffusers.AutoModel.from_pretrained(name, torch_dtype=torch.float32)
        except Exception:
            raise first from None
