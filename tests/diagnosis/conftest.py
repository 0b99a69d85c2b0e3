"""Fixtures of the tests of the audit pass, and of what watches from outside."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from trainers import WIDTH

from suite import registry
from suite.data.in_memory import standardise
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.training.trainer import Trainer


@pytest.fixture(scope="module")
def data():
    """60 images of 4 x 4 pixels in three classes, brighter by class."""
    labels = np.arange(60) % 3
    pixels = np.random.default_rng(0).random((60, 1, 4, 4)) + 0.3 * labels[:, None, None, None]
    return standardise("toy", pixels.astype(np.float32), labels, 3)


@pytest.fixture
def start(data, tmp_path):
    """Factory of trainers: start("mvsplit", lr=1e-2, audit_every=2, ...), protocol fields among the keywords."""
    count = iter(range(100))

    def make(scheme="plain", *, params="", writers="std", depth=3, lr=3e-3, seed=0, folder=None, **fields):
        fields = {"width": WIDTH, "ffn": 24, "caption_tokens": 3, "horizon": 20, "final": "std"} | fields
        protocol = replace(PROTOCOLS["smoke"], **fields)
        entry = registry.get(scheme, "controlled")
        values = registry.parse_params(entry, params)
        params = registry.format_params(entry, values)
        source = ("toy", data.digest, entry.code_digest(values))
        run = Run(protocol, scheme, "controlled", params, writers, depth, lr, seed, *source, compiled=False)
        return Trainer(run, data, folder or tmp_path / str(next(count)))

    return make


@pytest.fixture
def silent(capsys):
    """What a Monitor prints is not shown with a test that fails for another reason."""
    yield
    capsys.readouterr()


@pytest.fixture
def told():
    """What was said in warnings, in order."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield told
