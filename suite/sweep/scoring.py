"""How good the samples of a run are: its scores and its picture, or why there are none."""

from __future__ import annotations

from pathlib import Path

from accelerate.utils import broadcast_object_list
from torch import Tensor

from suite.quality.fid import GRID_COLUMNS, GRID_ROWS, sample_grid
from suite.records.store import picture_path
from suite.rng import seeded
from suite.training.trainer import Trainer
from suite.verdict.outcome import GONE, Verdict


def final_quality(trainer: Trainer, verdict: Verdict, results: Path, features: str) -> dict:
    """The score row of the finished run; a picture of samples even where it is dead or untrained."""
    run, p, data = trainer.run, trainer.run.protocol, trainer.data
    crashed = verdict.outcome in GONE
    row = {"step": trainer.state.step, "fid_status": "crashed", "nfe": p.nfe, "guidance": p.guidance}
    # a crashed run gets its picture alone, and a run whose weights hold nan gets samples of nan, drawn as such
    shown = GRID_COLUMNS * (data.classes or GRID_ROWS)
    fault = _fault(trainer, features)
    n = min(p.fid_samples, shown) if crashed or fault else p.fid_samples
    with trainer.clock.timed("sample", n):
        samples, labels = trainer.evaluation.sample(n)
    if not trainer.accelerator.is_main_process:
        return row
    row |= {} if crashed else {"fid_status": "unavailable"} if fault else _scores(trainer, samples, features)
    seen = (labels[:shown] < GRID_ROWS).nonzero()[:, 0]  # a picture has no more rows, and decoding takes its time
    grid = data.images(samples[seen])
    if grid is None:
        return row
    path = picture_path(results / p.name, run.scheme, run.depth, run.run_id)
    for left in path.parent.glob(f"*{path.name}.*.part"):  # by a worker that was killed while it drew
        left.unlink(missing_ok=True)
    sample_grid(grid, labels[seen], path)
    return row


def _fault(trainer: Trainer, features: str) -> str:
    """The data's `quality_fault`; where all processes sample together the first one asks for all, as a file may fail one of them."""
    asks = trainer.accelerator.is_main_process or not trainer.state.dit.sharded
    fault = trainer.data.quality_fault(features, trainer.run.protocol.fid_samples) if asks else ""
    return broadcast_object_list([fault])[0] if trainer.state.dit.sharded else fault


def _scores(trainer: Trainer, samples: Tensor, features: str) -> dict:
    """FID and its kin, for data that have no fault."""
    with trainer.clock.timed("score"):
        return trainer.data.scores(samples, features)


def unscored(row: dict, verdict: Verdict) -> dict:
    """The row as it is, or without its scores if the run proved dead by that step, or untrained."""
    if verdict.outcome not in GONE or verdict.crash_step is not None and row["step"] < verdict.crash_step:
        return row
    return {name: row[name] for name in ("step", "nfe", "guidance")} | {"fid_status": "crashed"}


@seeded("quality")
def checkpoint_quality(trainer: Trainer, features: str, step: int) -> None:
    """Score the run at the protocol's quality steps (Table 1 and Figure 5); a crash is known only later, see `final_quality`."""
    p = trainer.run.protocol
    if step in p.quality_at:
        scored = {"fid_status": "unavailable"}
        if not _fault(trainer, features):
            with trainer.clock.timed("sample", p.fid_samples):
                samples, _ = trainer.evaluation.sample(p.fid_samples)
            scored = _scores(trainer, samples, features) if trainer.accelerator.is_main_process else {}
        row = {"step": step, "nfe": p.nfe, "guidance": p.guidance} | scored
        trainer.state.log.setdefault("quality", []).append(row)
