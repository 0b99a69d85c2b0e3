"""Train the digit feature network (`suite.quality.features.DigitFeatures`) and print its accuracy and sha256; 5 s on one core.

    OMP_NUM_THREADS=1 python -m suite.quality.train_digit_features [OUT.safetensors]

Data: the 1,500 training digits of the project's own split; the 297 held-out digits are only tested on. Every draw is
from one seeded generator, so the bytes repeat on one CPU model and torch version; elsewhere the accuracy agrees but
the sha256 may not, which is why the weights are shipped. Shipped (torch 2.13.0, AMD EPYC): held-out accuracy 0.9764.

Shapes: B images (C=1, H=8, W=8), N images in all. Pixels in [0, 1].
"""
from __future__ import annotations

import argparse
import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cross_entropy

from suite.quality.features import DigitFeatures

SEED = 0
EPOCHS, BATCH = 40, 100     # training accuracy is .999 by then
LR, DECAY = 3e-3, 1e-2      # AdamW's usual LR x 3, torch's default decay
# No augmentation, on purpose: a network taught to ignore noise would not see noise in the samples.


def split_digits() -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """x (1797, 1, 8, 8) float32 in [0, 1], y (1797,), sorted indices of the 1,500 training and 297 held-out images."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, held_out = train_test_split(
        np.arange(1797), test_size=297, stratify=digits.target, random_state=0  # as in suite/data/dataset.py
    )
    x_NCHW = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]  # 17 grey levels
    return x_NCHW, torch.tensor(digits.target), np.sort(train), np.sort(held_out)


def train() -> tuple[DigitFeatures, float, float]:
    """-> the trained network (float32), its training accuracy and its held-out accuracy, as fractions."""
    return fit(DigitFeatures, *split_digits(), EPOCHS)


def fit(
    kind: type[DigitFeatures], x_NCHW: Tensor, y_N: Tensor, train_ids: np.ndarray, held_out_ids: np.ndarray, epochs: int
) -> tuple[DigitFeatures, float, float]:
    """A network of this kind (float32) trained on the training rows, its accuracy on them and on the held-out ones, as fractions."""
    rng = torch.Generator().manual_seed(SEED)
    with torch.device("meta"):
        net = kind()
    net.to_empty(device="cpu")
    for param in net.parameters():  # U(+-1/sqrt(fan_in)), torch's default, zero biases, but from our generator
        bound = 1 / math.sqrt(param[0].numel()) if param.ndim > 1 else 0.0
        torch.nn.init.uniform_(param, -bound, bound, generator=rng)

    x_NCHW_train, y_N_train = x_NCHW[train_ids], y_N[train_ids]
    steps = epochs * -(-len(train_ids) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps)
    for _ in range(epochs):
        for ids in torch.randperm(len(train_ids), generator=rng).split(BATCH):
            loss = cross_entropy(net.logits(x_NCHW_train[ids]), y_N_train[ids])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()

    with torch.no_grad():
        hit_N = net.logits(x_NCHW).argmax(1) == y_N
    return net, hit_N[train_ids].double().mean().item(), hit_N[held_out_ids].double().mean().item()


def main(train=train, description: str = __doc__) -> None:
    """Train, print, and write the file if asked; a new file also needs its sha256 in suite/quality/features.py."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, help="where to write the weights (default: nowhere)")
    out = parser.parse_args().out
    torch.set_num_threads(1)  # the number of threads changes bits
    net, train_accuracy, held_out_accuracy = train()
    data = save({name: tensor.contiguous() for name, tensor in net.state_dict().items()})
    print(f"accuracy: train {train_accuracy:.4f}, held-out {held_out_accuracy:.4f}")
    print(f"sha256:   {hashlib.sha256(data).hexdigest()}  ({len(data)} bytes)")
    if out is not None:
        out.write_bytes(data)


if __name__ == "__main__":
    main()
