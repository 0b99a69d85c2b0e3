"""Does `Monitor` call healthy networks dying, and those dying that die? Small networks that learn, and short runs of the suite that die.

    PYTHONPATH=.:results/detect OMP_NUM_THREADS=1 python results/detect/zoo.py --results results [--seeds 5] [--only NAME ...]

writes RESULTS/detect/zoo.csv: a row a network and seed, each some 5 to 10 seconds of one core; what is there under today's rule is kept, so
that a call goes on where the last was stopped. `by_cosine` is what the rule was before: the first measurement whose cosines are near 1. A
network that learns is one whose loss at the end is lower than at its start by more than its scatter; the program stops where one does not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from zoo_networks import ZOO

from suite import environment, registry
from suite.audit import Monitor
from suite.data.load import load
from suite.diagnosis.alarms import EQUAL
from suite.environment import ROOT
from suite.evidence.shares import share
from suite.identity.codedigest import file_digest
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.records.csvfile import read_rows, render
from suite.records.package import write_package
from suite.records.schema import TABLES
from suite.records.store import format_value
from suite.training.trainer import Trainer
from suite.verdict.smooth import robust_sd

TABLE, EVERY, STEPS = TABLES["zoo"], 50, 300  # Monitor's default; steps of a network that learns
BEHIND = 40  # steps that a dying run is followed behind the first alarm by cosine
SHOWN = ("network", "seed", "tcs_most", "share_most", "share_least", "by_cosine", "tokens_equal", "loss_jumped", "alarms", "withdrawn")
RULE = ("diagnosis/alarms", "diagnosis/watch", "verdict/smooth")  # files of the suite
DYING = (  # scheme, parameters, blocks, rate, steps at most: the frontier's dead, near the edge and far above it
    ("plain", "", 50, 1.08e-2, 200), ("plain", "", 25, 2.5e-2, 100), ("layerscale", "init=0.1", 25, 4.35e-2, 200),
    ("deepnorm", "", 25, 4.35e-2, 200),
)  # fmt: skip


class Seen:
    """What a Monitor measured of one training, for its row."""

    def __init__(self, model: nn.Module) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.monitor = Monitor(model, every=EVERY, told=lambda *_: None)
        self.losses: list[float] = []
        self.cosines: list[tuple[int, float]] = []
        self.shares: list[float] = []

    def step(self, loss: float, norm: float | None = None) -> None:
        self.monitor.step(loss, norm)
        self.losses.append(self.monitor.row["loss"])
        if "tcs" in self.monitor.row:
            self.cosines.append((self.monitor.at, self.monitor.row["tcs"]))
            mean, centered = self.monitor.row["g_mean"], self.monitor.row["g_ctr"]
            if mean or centered:
                self.shares.append(centered / math.hypot(mean, centered))

    def row(self) -> dict[str, object]:
        told = self.monitor._judge.told
        stands = [alarm.step for alarm in told if alarm.kind == "tokens equal" and alarm.withdrawn_at is None]
        equal = [at for at, cosine in self.cosines if cosine > EQUAL]
        self.monitor.close()
        return {
            "steps": len(self.losses), "measured": len(self.cosines),
            "first_loss": self.losses[0], "last_loss": float(np.median(self.losses[-20:])),
            "tcs_start": self.cosines[0][1], "tcs_most": max(cosine for _, cosine in self.cosines), "equal": len(equal),
            "share_most": max(self.shares, default=None), "share_least": min(self.shares, default=None),
            "by_cosine": equal[0] if equal else None, "tokens_equal": stands[0] if stands else None,
            "loss_jumped": next((alarm.step for alarm in told if alarm.kind == "loss jumped" and alarm.withdrawn_at is None), None),
            "alarms": len(told), "withdrawn": sum(alarm.withdrawn_at is not None for alarm in told),
        }  # fmt: skip


def alive(name: str, seed: int) -> dict[str, object]:
    """The row of a network that learns."""
    make, rate = ZOO[name]
    torch.manual_seed(seed)
    net, draw, loss_of = make()
    optimiser, seen = torch.optim.AdamW(net.parameters(), rate), Seen(net)
    for _ in range(STEPS):
        batch = draw()
        loss = loss_of(net(*batch), *batch)
        optimiser.zero_grad()
        loss.backward()
        seen.step(loss)
        optimiser.step()
    row = {"truth": "alive", "network": name, "seed": seed, "lr": rate, **seen.row()}
    if row["first_loss"] - row["last_loss"] < robust_sd(np.diff(seen.losses)):
        raise SystemExit(f"zoo: {name}, seed {seed} does not learn: {row['first_loss']:.3g} to {row['last_loss']:.3g}")
    return row


def watchable(dit: nn.Module) -> nn.Module:
    """The suite's network, in place, with its writers as modules: what they compute stays the same."""
    for block in dit.blocks:
        block.o_proj, block.down_proj = (nn.Linear(w.shape[1], w.shape[0], bias=False) for w in (block.wo, block.w2))
        block.o_proj.weight, block.down_proj.weight = block.wo, block.w2
        block.attention = lambda x, rope, ctx, b=block: b.o_proj(b.residuals[0].inner(b.heads_out(*b.qkv(x, rope)), ctx))
        block.ffn = lambda x, ctx, b=block: b.down_proj(b.residuals[-1].inner(b.ffn_hidden(x), ctx))
    return dit


def named(scheme: str, params: str, depth: int) -> tuple[str, str]:
    """(what a run of the suite is called, its parameters in full)."""
    entry = registry.get(scheme, "controlled")
    params = registry.format_params(entry, registry.parse_params(entry, params))
    return " ".join(filter(None, (scheme, params, f"{depth} blocks"))), params


def dead(scheme: str, params: str, depth: int, rate: float, steps: int, seed: int) -> dict[str, object]:
    """The row of a run of the suite, eager, until some steps behind its tokens became equal."""
    data, entry = load("digits"), registry.get(scheme, "controlled")
    values = registry.parse_params(entry, params)
    name, params = named(scheme, params, depth)
    protocol, source = replace(PROTOCOLS["frontier"], compiled=False), (data.name, data.digest, entry.code_digest(values))
    run = Run(protocol, scheme, "controlled", params, "zero", depth, rate, seed, *source, compiled=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(run, data, Path(folder))
        seen, until = Seen(watchable(trainer.state.dit)), steps
        while trainer.state.step < until and trainer.advance(lambda _: seen.step(*trainer.state.curve[-1][1:])):
            if seen.cosines[-1][1] > EQUAL:
                until = min(until, seen.cosines[-1][0] + BEHIND)
    return {"truth": "dead", "network": name, "seed": seed, "lr": rate, **seen.row()}


def rule_digest() -> str:
    """The digest of the files that make an alarm."""
    return "+".join(file_digest(ROOT / "suite" / f"{name}.py") for name in RULE)


def of(k: int, n: int) -> str:
    """A share with its exact interval."""
    return f"{k} of {n} {share(k, n)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="networks of the zoo, or schemes; all where none is named")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.results / "detect" / TABLE.path
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for row in read_rows(path, TABLE) if row["rule_digest"] == rule_digest()] if path.exists() else []
    done = {(row["network"], row["seed"]) for row in rows}
    todo = [(f"{name}", seed, alive, (name, seed)) for seed in range(args.seeds) for name in ZOO if not args.only or name in args.only]
    for scheme, params, depth, *rest in DYING:
        name, params = named(scheme, params, depth)
        todo += [(name, 0, dead, (scheme, params, depth, *rest, 0))] if not args.only or scheme in args.only else []
    for name, seed, make, arguments in todo:
        if (name, str(seed)) in done:
            continue
        row = make(*arguments) | {"rule_digest": rule_digest(), **environment.provenance()}
        rows.append({column.name: format_value(row.get(column.name), column.type) for column in TABLE.columns})
        rows.sort(key=lambda row: [row[name] for name in TABLE.key])
        path.write_bytes(render(TABLE, rows))
        print(*(f"{key}={row[key]}" for key in SHOWN), flush=True)
    write_package(path.parent)
    living, died = ([row for row in rows if row["truth"] == truth] for truth in ("alive", "dead"))
    if living:
        print("healthy networks with an alarm that stands:", of(sum(row["alarms"] != row["withdrawn"] for row in living), len(living)))
        print("with any alarm:", of(sum(row["alarms"] != "0" for row in living), len(living)))
        print("by cosines alone, as before:", of(sum(row["by_cosine"] != "" for row in living), len(living)))
    late = [row for row in died if row["by_cosine"] and (not row["tokens_equal"] or int(row["tokens_equal"]) > int(row["by_cosine"]))]
    print(f"deaths: {len(died)}, of these told later than by cosines, or not at all: {len(late)}")


if __name__ == "__main__":
    main()
