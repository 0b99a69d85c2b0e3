"""Shared by every test file: one thread, and a model small enough to be checked by explicit loops."""

import sys
from functools import partial

import pytest
import torch

from suite import registry
from suite.isolation import forks
from suite.model.backbone import DiT

torch.set_num_threads(1)
forks._context.set_forkserver_preload([*forks.PRELOAD, "torchmetrics"])  # which each worker would import at its first score: 4 s
TINY = {"width": 16, "heads": 2, "ffn": 24, "depth": 2, "patch": 2, "channels": 2, "image_size": 4, "caption_tokens": 3}


@pytest.fixture(autouse=True)
def any_precision():
    """Accelerate keeps one precision for as long as a process lives; here a test may have another than the one before."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state()


@pytest.fixture
def tiny_model():
    """Factory of drawn models: tiny_model("mvsplit", params="beta=0.5", depth=3). No weight is 0 with its init."""

    def make(scheme="plain", arm="controlled", params="", *, seed=0, writers="std", final="std", init="fan_in", **sizes):
        entry = registry.get(scheme, arm)
        model = DiT(**TINY | sizes, scheme=partial(entry.cls, **registry.parse_params(entry, params)))
        model.init_weights(seed, init=init, writers=writers, final=final)
        return model

    return make


@pytest.fixture
def scratch_registry():
    """What a test registers is forgotten afterwards."""
    registry.discover()
    entries, modules = dict(registry._entries), set(sys.modules)
    yield
    registry._entries.clear()
    registry._entries.update(entries)
    for name in set(sys.modules) - modules:
        if name.startswith("screambench_plugin"):
            del sys.modules[name]
