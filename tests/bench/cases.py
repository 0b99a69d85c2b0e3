"""What is measured: settings, cases as rows of the bench table begin, and the trainers behind them. Torch waits until one is built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from suite.presets import PROTOCOLS
from suite.protocol import SCHEMES

SETTINGS = {  # changes to the laptop protocol
    "digits": {},
    "wide": {"width": 64, "heads": 4, "ffn": 192, "patch": 1, "batch": 32, "checkpoint_blocks": True},
    "tiny": {"compiled": False},
}
IMAGE = 8  # pixels a side of a digit
FULL, QUICK, TINY = "full", "quick", "tiny"  # sizes of the bench: the whole, about five minutes, seconds (a test of the machinery)

__all__ = ["FULL", "IMAGE", "QUICK", "SCHEMES", "SETTINGS", "TINY", "case", "group", "protocol", "trainer"]


def protocol(setting: str):
    """The laptop protocol with a setting's changes."""
    return replace(PROTOCOLS["laptop"], **SETTINGS[setting])


def case(phase: str, scheme: str, depth: int | None, *, variant: str = "suite", setting: str = "digits", device: str = "cpu",
         workers: int = 1, replicas: int = 1) -> dict:  # fmt: skip
    """The columns of the bench table that are known before anything is measured."""
    p = protocol(setting)
    return {
        "phase": phase, "variant": variant, "scheme": scheme, "depth": depth, "setting": setting, "width": p.width,
        "image_tokens": (IMAGE // p.patch) ** 2, "caption_tokens": p.caption_tokens, "batch": p.batch, "dtype": p.dtype,
        "device": device, "workers": workers, "replicas": replicas,
    }  # fmt: skip


def _runs(case: dict) -> list:
    from suite.sweep.plan import Selection, make_plan

    seeds = tuple(range(case["replicas"]))
    plan = make_plan(Selection("laptop", schemes=(case["scheme"],), depths=(case["depth"],), lrs=(1e-3,), seeds=seeds))
    p = protocol(case["setting"])
    return [replace(run, protocol=p, compiled=run.compiled and p.compiled) for run in plan]


def trainer(case: dict):
    """A Trainer of a case that has taken no step; the learning rate is one at which nothing collapses."""
    from suite.data.load import cached
    from suite.training.trainer import Trainer

    return Trainer(_runs(case)[0], cached("digits"), Path("nowhere"))  # nothing is saved unless `train` is called


def group(case: dict):
    """(step, evaluation) of as many runs trained as one model as the case says: a function that takes one step of all, and its like."""
    from suite.data.load import cached
    from suite.training.evaluation import Evaluation
    from suite.training.group_step import GroupStep
    from suite.training.trainer import Trainer

    data, runs, taken = cached("digits"), _runs(case), [0]
    trainers = [Trainer(run, data, Path("nowhere"), "bench") for run in runs]
    joint = GroupStep([t.train_step for t in trainers], runs[0].compiled)

    def step():
        taken[0] += 1
        joint.forward_backward(taken[0])
        joint.update(taken[0], [True] * len(runs))

    captions = trainers[0].train_step.captions
    return step, Evaluation(joint.velocity, captions, data, runs[0].protocol, (len(runs),))
