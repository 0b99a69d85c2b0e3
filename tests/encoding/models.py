"""Tiny models with random weights of the real classes, saved as their libraries save them; pictures and captions to encode."""

import json

import torch
from PIL import Image

WORDS = ("a", "red", "blue", "cat", "dog", "on", "the", "mat", "sees", "bird")


def flux2(folder, pipeline=False):
    """AutoencoderKLFlux2: 4 latent channels at 1/2, 16 at 1/4 after the unshuffle; its BatchNorm has seen other data."""
    from diffusers import AutoencoderKLFlux2

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1, latent_channels=4, norm_num_groups=4, mid_block_add_attention=False,
        )  # fmt: skip
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2)
    vae.save_pretrained(folder / "vae" if pipeline else folder)
    return str(folder)


def kl(folder, channels=3, seed=1, **config):
    """AutoencoderKL: 4 channels at 1/2, with a shift and a scale."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            in_channels=channels, out_channels=channels, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, mid_block_add_attention=False,
            **{"scaling_factor": 0.36, "shift_factor": 0.12} | config,
        )  # fmt: skip
    vae.save_pretrained(folder)
    return str(folder)


def qwen3(folder, width=12):
    """Qwen3 of two layers and a fast tokenizer of whole words, which pads on the right."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    vocabulary = {word: i for i, word in enumerate(("<pad>", "<unk>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(2)
        Qwen3Model(config).save_pretrained(folder)
    return str(folder)


def pictures(root, n=14, size=(20, 16), mode="RGB"):
    """n smooth pictures in two class folders, and captions.jsonl beside the folder; returns the names."""
    generator = torch.Generator().manual_seed(3)
    names = [f"{'ab'[i % 2]}/{i:02}.png" for i in range(n)]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        coarse = (torch.rand(3, 3, 3, generator=generator) * 255).byte().numpy()
        Image.fromarray(coarse).resize(size).convert(mode).save(root / name)
    rows = [{"file_name": name, "caption": caption(i)} for i, name in enumerate(names)]
    (root.parent / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return names


def caption(i):
    """Between 1 and 6 words."""
    return " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 2 + i % 6))


def contents(folder):
    """Every file of a finished folder, and its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
