"""When the audit looks: at a uniform stride, at gradient spikes, and at every step around a crash, by replay."""

from __future__ import annotations

import numpy as np

from suite.diagnosis.audit_pass import audit_step
from suite.protocol import evenly
from suite.training.trainer import REPLAY_BEFORE, Trainer
from suite.verdict.outcome import DEAD, Verdict
from suite.verdict.signature import SIGNATURE_EARLY, SIGNATURE_LATE, of_audit

REPLAY_AFTER = SIGNATURE_LATE  # steps; the transition takes about ten in the paper's published trace
FULL_BEFORE = 30  # steps before a crash from which a run audited at full depth looks at all layers, the paper's figures' span
FULL_EVERY = 4  # a run audited at full depth looks at all layers at every fourth stride; they cost 8 times the anchors
SPIKE_FACTOR = 4.0  # over the running median; the paper gives no formula, its spikes are 3 to 100 times
SPIKE_MEMORY = 100  # steps in that median
SPIKE_FAMILIES = 15  # Figures 9 and 10


def spike_threshold(norms: list[float]) -> float | None:
    """The level that the next gradient norm must pass to be a spike; None while fewer than 20 norms are known."""
    recent = np.asarray(norms[-SPIKE_MEMORY:])
    return SPIKE_FACTOR * float(np.median(recent)) if len(recent) >= 20 else None


class Auditor:
    """Observes one trainer; rows gather in its log, so that a resumed run has those from before."""

    def __init__(self, trainer: Trainer) -> None:
        p, depth = trainer.run.protocol, trainer.run.depth
        self.trainer = trainer
        self.anchors = evenly(range(depth), p.audit_layers)
        self.full = trainer.run.scheme in p.audit_full and trainer.run.seed == p.seeds[0]

    def before_update(self, step: int) -> None:
        """Audit at the stride, and take the families of a gradient norm that crosses its threshold upwards."""
        trainer, every = self.trainer, self.trainer.run.protocol.audit_every
        norms = [norm for _, _, norm in trainer.state.curve[-SPIKE_MEMORY - 2 :]]
        here, before = spike_threshold(norms[:-1]), spike_threshold(norms[:-2])
        already = before is not None and norms[-2] > before
        if here is not None and norms[-1] > here and not already:
            trainer.state.log.setdefault("spikes", []).extend(self.families(step, norms[-1], here))
        if step == 1 or step % every == 0:
            everything = self.full and step % (every * FULL_EVERY) == 0
            with trainer.clock.timed("audit"):
                rows = audit_step(trainer, range(trainer.run.depth) if everything else self.anchors, step)
            trainer.state.log.setdefault("audit", []).extend(row for row in rows if row["segment"] == "all")

    def families(self, step: int, norm: float, threshold: float) -> list[dict]:
        """The parameter families with the largest raw gradient norms, such as "L2 Q" or "Embed" (Figures 9 and 10)."""
        flat, clip = self.trainer.state.flat, self.trainer.run.protocol.clip
        raw = max(1.0, (norm + 1e-6) / clip)  # undoes `FlatParameters.clip`
        squares: dict[str, float] = {}
        for name, place in flat.slices.items():
            grad = flat.grads[place].double()
            for family, part in _family(name, grad):
                squares[family] = squares.get(family, 0.0) + part.square().sum().item()
        largest = sorted(squares.items(), key=lambda item: (-item[1], item[0]))[:SPIKE_FAMILIES]
        return [
            {"step": step, "grad_norm": norm, "threshold": threshold, "rank": rank, "family": family,
             "family_grad_norm": raw * square**0.5}
            for rank, (family, square) in enumerate(largest, 1)
        ]  # fmt: skip

    def spikes(self, verdict: Verdict) -> list[dict]:
        """The rows of spikes.csv."""
        return recovered(self.trainer.state.log.get("spikes", []), verdict, self.trainer.run.protocol.window)

    def around(self, verdict: Verdict) -> dict[str, object]:
        """The cells of a dead run that its replay gives; none of a living one's."""
        if verdict.outcome not in DEAD:
            return {}
        reason = self.replay(verdict)
        log, depth = self.trainer.state.log, self.trainer.run.depth
        return {"reason": reason, "mms_signature": of_audit(log["audit"], verdict.crash_step, deep_from=depth // 2)}

    def replay(self, verdict: Verdict) -> str:
        """Audit every step of a window around the crash, from the last checkpoint before it; returns "" or why not.

        The trainer is left inside the window. A replay is exact or it is refused: its curve must be that of the run.
        """
        trainer, crash = self.trainer, verdict.crash_step
        first, last = max(1, crash - REPLAY_BEFORE), min(crash + REPLAY_AFTER, len(trainer.state.curve))
        curve, evals, log = trainer.state.curve, trainer.state.evals, trainer.state.log
        if not trainer.restore(at_most=first - 1):
            return "no checkpoint before the crash to replay from"
        rows: list[dict] = []

        def watch(step: int) -> None:
            if step >= first:
                layers = range(trainer.run.depth) if self.full and step >= crash - FULL_BEFORE else self.anchors
                rows.extend(audit_step(trainer, layers, step, window=True))

        clock, count = dict(trainer.clock.seconds), dict(trainer.clock.counts)
        with trainer.clock.timed("replay", last - first + 1):
            while trainer.state.step < last and trainer.advance(watch):
                pass
        replay = {"replay": trainer.clock.seconds["replay"]}
        trainer.clock.seconds.update(clock | replay)
        trainer.clock.counts.update(count | {"replay": last - first + 1})
        replayed, trainer.state.curve, trainer.state.evals, trainer.state.log = trainer.state.curve, curve, evals, log
        if not np.array_equal(replayed, curve[: len(replayed)], equal_nan=True):
            return "the replay around the crash differs from the run; its window is left out"
        dense = {row["step"] for row in rows}
        keep = [row for row in log.get("audit", []) if row["step"] not in dense]
        apart = range(0) if self.full else range(crash - SIGNATURE_EARLY, last + 1)  # image and caption tokens, where it happens
        log["audit"] = keep + [row for row in rows if row["segment"] == "all" or row["step"] in apart]
        return ""


def _family(name: str, grad):
    """(family, part of the gradient) pairs of a parameter: Q, K and V are thirds of one weight."""
    parts = name.split(".")
    if parts[0] != "blocks":
        return [(parts[0].capitalize(), grad)]
    layer = f"L{parts[1]} "
    if parts[2] == "wqkv":
        return [(layer + label, third) for label, third in zip("QKV", grad.chunk(3), strict=True)]
    return [(layer + ("gates" if parts[2] == "residuals" else parts[2].upper()), grad)]


def recovered(spikes: list[dict], verdict: Verdict, window: int) -> list[dict]:
    """Spike rows with the column `recovered`: false from one confirmation window before the crash on."""
    crash = verdict.crash_step
    return [row | {"recovered": crash is None or row["step"] < crash - window} for row in spikes]
