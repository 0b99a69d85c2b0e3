"""What is not in a run's id does not change its numbers: what ran before it, and what the environment says."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from suite import environment, registry
from suite.data.load import cached
from suite.environment import ROOT
from suite.protocol import Run, short_hash
from suite.rng import random_state
from suite.sweep.execute import execute, execute_all
from suite.sweep.groups import group_id
from suite.sweep.plan import Selection, make_plan
from suite.sweep.work_folder import read_record
from suite.training.trainer import Trainer

LOUD = {  # all that Accelerate 1.15 reads and that would change numbers, or wrap the model
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DOWNCAST_BF16": "true",
    "ACCELERATE_DYNAMO_BACKEND": "inductor", "ACCELERATE_DYNAMO_MODE": "max-autotune", "ACCELERATE_DYNAMO_USE_FULLGRAPH": "true",
    "ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2", "ACCELERATE_FP8_BACKEND": "TE",
    "ACCELERATE_GRADIENT_CLIPPING": "0.1", "ACCELERATE_TORCH_DEVICE": "meta", "FSDP_OFFLOAD_PARAMS": "true",
}  # fmt: skip


FILE = '''
import random

import numpy as np
import torch
from torch import nn

from suite.registry import register
from suite.residual import Residual


@register("drawn")
class Drawn(Residual):
    """Gates from torch, numpy and Python, and a writer of its own draw."""

    def __init__(self, site):
        super().__init__(site)
        self.gate = nn.Parameter(torch.randn(site.width) + random.random() + float(np.random.rand()))

    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD + self.gate * f_BTD

    @torch.no_grad()
    def init_weights(self, site, weights):
        weights["o" if site == "attn" else "w2"].normal_()


@register("late")
class Late(Residual):
    """Draws at the width of a model, not at that of the plan's look."""

    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD + (torch.rand(()) if x_BTD.shape[-1] > 8 else 1) * f_BTD
'''


@pytest.fixture
def runs(scratch_registry, tmp_path):
    (tmp_path / "drawing.py").write_text(FILE)
    registry.load(tmp_path / "drawing.py")
    mine = Selection("smoke", depths=(2,), seeds=(0, 1), plugins=(str(tmp_path / "drawing.py"),))
    return {name: make_plan(replace(mine, schemes=(name,))) for name in ("drawn", "late", "plain")}


def curve(run: Run, folder) -> list:
    return execute(run, folder, "digits")["curve"]


def test_a_scheme_that_draws_as_it_is_built_does_not_depend_on_what_ran_before(runs, tmp_path):
    first, second = runs["drawn"]
    alone = curve(second, tmp_path / "alone")
    before = random_state()
    curve(first, tmp_path / "a")
    torch.manual_seed(5)
    assert curve(second, tmp_path / "a") == alone != curve(first, tmp_path / "b")
    assert before[1] == random_state()[1]
    a, b = (block.residuals for block in Trainer(second, cached("digits"), tmp_path / "c").state.dit.blocks)
    gates = {tuple(residual.gate.tolist()) for residual in (*a, *b)}
    assert len(gates) == 4  # each block and site has its own
    execute_all(runs["drawn"], tmp_path / "group", "digits")
    rows = read_record(tmp_path / "group", second.run_id)["curve"]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in alone], rel=1e-3)


def test_a_scheme_that_draws_only_in_a_real_model_is_refused_there(runs, tmp_path):
    with pytest.raises(registry.RegistryError, match="scheme late: it draws random numbers as it trains"):
        curve(runs["late"][0], tmp_path)


def test_what_accelerate_reads_from_the_environment_changes_nothing(runs, tmp_path, monkeypatch):
    quiet = curve(runs["plain"][0], tmp_path / "quiet")
    for name, value in LOUD.items():
        monkeypatch.setenv(name, value)
    trainer = Trainer(runs["plain"][0], cached("digits"), tmp_path / "look")
    assert trainer.accelerator.gradient_accumulation_steps == 1 and trainer.accelerator.mixed_precision == "no"
    for name, value in LOUD.items():
        monkeypatch.setenv(name, value)
    assert curve(runs["plain"][0], tmp_path / "loud") == quiet


def test_what_torch_reads_from_the_environment_is_forgotten_before_it_is_imported():
    loud = {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16", "TORCHINDUCTOR_USE_FAST_MATH": "1", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
            "NVIDIA_TF32_OVERRIDE": "1", "TORCHINDUCTOR_CACHE_DIR": "kept"}  # fmt: skip
    code = ("import os, sys, suite.__main__ as m\nassert 'torch' not in sys.modules\nm.main = lambda: print(sorted(os.environ)) or 0\n"
            "m.program()")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | loud, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [name for name in loud if repr(name) in done.stdout] == ["TORCHINDUCTOR_CACHE_DIR"]


def test_no_id_reads_as_a_number(runs):
    """A letter first: 513216857062 is an integer to every reader of tables, and 27e897249259 infinity."""
    run = runs["plain"][0]
    assert re.fullmatch("r[0-9a-f]{11}", run.run_id) and re.fullmatch("g[0-9a-f]{11}", group_id(runs["plain"]))
    assert all(re.fullmatch("d[0-9a-f]{15}", text) for text in (run.data_digest, run.code_digest))
    for i in range(4000):
        with pytest.raises(ValueError):
            float(short_hash("r", str(i).encode(), 12))
    assert not environment.commit() or environment.commit().startswith("g")


def test_plain_pandas_keeps_plain_and_rezero(tmp_path):
    import pandas as pd

    some = make_plan(Selection("smoke", depths=(2,)))
    pd.DataFrame([{"scheme": run.scheme, "params": run.params, "run_id": run.run_id} for run in some]).to_csv(tmp_path / "runs.csv")
    table = pd.read_csv(tmp_path / "runs.csv")
    assert len(table.groupby(["scheme", "params"])) == 5 and set(table.loc[table["scheme"] == "plain", "params"]) == {"-"}
    assert [run.run_id for run in make_plan(Selection("smoke", schemes=("plain",), depths=(2,), params=("plain:-",)))] == [
        run.run_id for run in some if run.scheme == "plain"]
    with pytest.raises(registry.RegistryError, match="parameter '-' is not known"):
        make_plan(Selection("smoke", schemes=("mvsplit",), params=("mvsplit:-",)))
