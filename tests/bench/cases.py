"""What is measured: settings, cases as rows of the bench table begin, and the trainers behind them. Torch waits until one is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from suite.protocol import PROTOCOLS, SCHEMES

SETTINGS = {  # changes to the laptop protocol
    "digits": {},
    "wide": {"width": 64, "heads": 4, "ffn": 192, "patch": 1, "batch": 32, "checkpoint_blocks": True},
    "tiny": {"compiled": False},
}
IMAGE = 8  # pixels a side of a digit
FULL, QUICK, TINY = "full", "quick", "tiny"  # sizes of the bench: the whole, about five minutes, seconds (a test of the machinery)

__all__ = ["FULL", "IMAGE", "QUICK", "SCHEMES", "SETTINGS", "TINY", "case", "protocol", "trainer"]


def protocol(setting: str):
    """The laptop protocol with a setting's changes."""
    return replace(PROTOCOLS["laptop"], **SETTINGS[setting])


def case(phase: str, scheme: str, depth: int | None, *, variant: str = "suite", setting: str = "digits", device: str = "cpu",
         workers: int = 1) -> dict:  # fmt: skip
    """The columns of the bench table that are known before anything is measured."""
    p = protocol(setting)
    return {
        "phase": phase, "variant": variant, "scheme": scheme, "depth": depth, "setting": setting, "width": p.width,
        "image_tokens": (IMAGE // p.patch) ** 2, "caption_tokens": p.caption_tokens, "batch": p.batch, "dtype": p.dtype,
        "device": device, "workers": workers,
    }  # fmt: skip


def trainer(case: dict):
    """A Trainer of a case that has taken no step; the learning rate is one at which nothing collapses."""
    from suite.sweep.execute import load_data
    from suite.sweep.plan import Selection, make_plan
    from suite.training.trainer import Trainer

    (run,) = make_plan(Selection("laptop", schemes=(case["scheme"],), depths=(case["depth"],), lrs=(1e-3,)))
    p = protocol(case["setting"])
    run = replace(run, protocol=p, compiled=run.compiled and p.compiled)
    return Trainer(run, load_data("digits"), Path("nowhere"))  # nothing is saved unless `train` is called
