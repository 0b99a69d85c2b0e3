"""Random numbers: streams keyed by names and numbers, and the state of those that belong to the process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def generator(*key: object) -> torch.Generator:
    """A CPU generator keyed by names and numbers, so that no stream depends on how often another was drawn from."""
    return torch.Generator().manual_seed(_seed(*key))


def _seed(*key: object) -> int:
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def random_state() -> tuple[Tensor, bytes]:
    """The state of every generator that belongs to the process: of torch on a CPU, and of Python and numpy."""
    kind, words, *rest = np.random.get_state()
    return torch.get_rng_state(), repr((random.getstate(), kind, words.tobytes(), *rest)).encode()


@contextmanager
def seeded(*key: object) -> Iterator[None]:
    """What the body draws from torch, Python or numpy follows from the key alone, and what others draw does not depend on it."""
    seed, python, numpy = _seed(*key), random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too, which stay unforked
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
