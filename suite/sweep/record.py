"""The record of a run that has ended: its verdict, its scores, and the rows of every table, runs.csv's own first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from suite import environment
from suite.diagnosis.audit_pass import final_state
from suite.protocol import Run
from suite.records.store import REAL
from suite.sweep.broken import identity
from suite.sweep.scoring import final_quality, unscored
from suite.training.trainer import Trainer
from suite.verdict.outcome import GONE, Verdict

if TYPE_CHECKING:
    from suite.diagnosis.auditor import Auditor


def auditor_of(trainer: Trainer) -> Auditor | None:
    """Who observes a run, where its protocol audits."""
    if not trainer.run.protocol.audit_every:
        return None
    from suite.diagnosis.auditor import Auditor

    return Auditor(trainer)


def record_of(trainer: Trainer, group: Sequence[Run], results: Path, features: str) -> dict:
    """What a run that has ended leaves, measured on its model; the trainer may be left in an earlier state.

    Of a sharded model all processes measure together, and what the first one returns is whole.
    """
    p = trainer.run.protocol
    verdict, last = trainer.judge(), trainer.state.step
    quality = [unscored(q, verdict) for q in trainer.state.log.get("quality", []) if q["step"] != last]
    if p.fid_samples:
        quality.append(final_quality(trainer, verdict, results, features))
    if any("fid" in q for q in quality) and (real := trainer.data.floor(features, p.fid_samples)):  # of an early one too
        quality.append({"run_id": REAL, **real})
    probe_rows = []
    if p.probe and verdict.outcome not in GONE:
        from suite.diagnosis.probe import probe

        with trainer.clock.timed("probe"):
            probe_rows = probe(trainer)
    row = _row(trainer, verdict, group)  # before the replay, which leaves the trainer inside its window
    spikes = []
    if auditor := auditor_of(trainer):
        spikes = auditor.spikes(verdict)
        row |= auditor.around(verdict)
    hardware = torch.cuda.get_device_name() if trainer.device.type == "cuda" else environment.cpu_model()
    peak = environment.peak_memory_mib()
    return {
        "run": row,
        "curve": [{"step": s, "loss": loss, "grad_norm": norm} for s, loss, norm in trainer.state.curve],
        "evals": [{"step": s, "heldout_loss": loss} for s, loss in trainer.state.evals],
        "quality": quality,
        "audit": trainer.state.log.get("audit", []),
        "spikes": spikes,
        "probe": probe_rows,
        "gates": trainer.state.log.get("gates", []),
        "throughput": [
            {"phase": phase, "count": trainer.clock.counts[phase], "seconds": seconds,
             "ms_each": 1e3 * seconds / max(1, trainer.clock.counts[phase]), "peak_mib": peak, "hardware": hardware}
            for phase, seconds in trainer.clock.seconds.items()
        ],
    }  # fmt: skip


def _row(trainer: Trainer, verdict: Verdict, group: Sequence[Run]) -> dict:
    run, p, dit = trainer.run, trainer.run.protocol, trainer.state.dit
    norms = [norm for _, _, norm in trainer.state.curve]
    largest = next((norm for norm in norms if not math.isfinite(norm)), max(norms))
    return {
        **identity(run, group),
        "data_digest": run.data_digest, "width": p.width, "image_tokens": dit.segments[0],
        "caption_tokens": dit.segments[1], "batch": p.batch, "init": p.init, "horizon": p.horizon, "window": p.window,
        "n_params": sum(parameter.numel() for parameter in dit.parameters()), "status": "done",
        "outcome": verdict.outcome, "state": final_state(trainer) if verdict.outcome in GONE else None, "crash_step": verdict.crash_step,
        "confirmed": None if verdict.crash_step is None else verdict.confirmed, "late_step": verdict.late_step,
        "last_step": trainer.state.curve[-1][0],
        "constant_loss": trainer.constant_loss, "best_loss": verdict.best_loss, "final_loss": verdict.final_loss,
        "heldout_loss": trainer.heldout_loss(), "max_grad_norm": largest,
        "spikes": verdict.spikes, "compiled": run.compiled, "dtype": p.dtype, "device": trainer.device.type,
        "processes": trainer.accelerator.num_processes,
        "code_digest": run.code_digest, **environment.provenance(),
        **({"compiler": f"torch.compile, {environment.compiler()}"} if dit.fell_back else {}),
    }  # fmt: skip
