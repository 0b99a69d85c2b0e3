"""The paper's protocol but for its size, as a user starts it: encode, launch sharded on two processes, be killed, go on with one."""

import os
import subprocess
import sys
import time

import models
import psutil
import pytest
from paper_small import CUT, PAPER

from suite import cli
from suite.data.load import load
from suite.environment import ROOT
from suite.presets import PROTOCOLS
from suite.records.store import Store, read
from suite.sweep.plan import Selection, make_plan
from suite.training.trainer import Trainer

LENGTH = CUT["horizon"] + CUT["window"]


def launch(latents, results, processes):
    """The command of docs/paper_scale.md, started."""
    words = ["-m", "accelerate.commands.launch", "--config_file", "suite/scale/fsdp2.yaml", "--num_processes", str(processes),
             "--main_process_port", "0", "tests/encoding/paper_small.py", "run", "--protocol", "paper", "--data", f"latents:{latents}",
             "--schemes", "mvsplit", "--params", "beta=1", "--results", str(results)]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_encode_launch_kill_and_go_on_with_another_number_of_processes(tmp_path, monkeypatch):
    models.pictures(tmp_path / "images", n=40)
    vae, text, latents = models.flux2(tmp_path / "vae"), models.qwen3(tmp_path / "text", width=32), tmp_path / "latents"
    words = ["encode", "--images", tmp_path / "images", "--captions", tmp_path / "captions.jsonl", "--out", latents, "--vae", vae]
    assert cli.main([*map(str, words), "--text", text, "--size", "16"]) == 0
    monkeypatch.setitem(PROTOCOLS, "paper", PAPER)
    (run,) = make_plan(Selection("paper", schemes=("mvsplit",), params=("beta=1",), data=f"latents:{latents}"))
    results = tmp_path / "results"
    checkpoint = results / ".work" / run.run_id / "step-00000010"
    killed = launch(latents, results, 2)
    while not checkpoint.exists():
        assert killed.poll() is None, killed.stderr.read()[-3000:]
        time.sleep(0.02)
    for process in [*psutil.Process(killed.pid).children(recursive=True), killed]:  # each rank leads a session of its own
        process.kill()
    killed.wait()
    assert not (results / "paper" / "runs.csv").exists()
    again = launch(latents, results, 1)
    _, said = again.communicate()
    assert again.returncode == 0, said[-3000:]
    (row,), curve = Store(results / "paper").runs(), read(results / "paper", "curves")
    assert row["run_id"] == run.run_id and row["processes"] == "1" and row["dtype"] == "bf16" and row["last_step"] == str(LENGTH)
    assert row["caption_tokens"] == str(load(run.data).caption_shape[0]) and row["image_tokens"] == "16"
    assert not checkpoint.parent.exists()
    alone = Trainer(run, load(run.data), tmp_path / "alone")  # one process that holds the whole model, by the CPU's own compiler
    while alone.state.step < LENGTH:
        assert alone.advance()
    for column, place in (("loss", 1), ("grad_norm", 2)):
        assert curve[column].tolist() == pytest.approx([step[place] for step in alone.state.curve], rel=0.02)
    evals = read(results / "paper", "evals")
    assert evals["step"].tolist() == [10, 20, 30, 40, LENGTH]
    assert evals["heldout_loss"].iloc[-1] == pytest.approx(float(alone.evaluation.heldout_loss()), rel=0.02)
