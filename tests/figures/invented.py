"""Invented results folders: a laptop's five schemes with one seed, and an atlas of seeds, rates and variants."""

import hashlib

import numpy as np
from PIL import Image

from suite.protocol import SCHEMES
from suite.records.store import Store
from suite.verdict.outcome import DEAD

CONSTANT = 2.0


def record(scheme, depth, *, lr=0.004, seed=0, protocol="laptop", outcome="survived", at=None, quality=True, params="",
           steps=450, every=1, **run):
    """The record of one invented run: a noisy decay to a level that depends on the scheme, and a jump at step `at`."""
    rng = np.random.default_rng([len(scheme), depth, seed, int(lr * 1e5)])
    run_id = hashlib.sha256(f"{scheme}-{depth}-{lr}-{seed}-{params}".encode()).hexdigest()[:12]
    step = np.arange(steps if at is None else min(steps, at + 50))
    level = 0.6 + 0.03 * (sum(scheme.encode()) % 5) + 0.001 * depth + rng.normal() * 0.02
    loss = level + (CONSTANT - level) * np.exp(-step / 60)
    if at is not None:
        loss = np.where(step >= at, CONSTANT, loss)
    loss = loss + rng.normal(0, 0.1, len(step))
    if outcome == "nonfinite":
        loss[-1] = np.nan
    ended = loss[-50:].mean() if outcome != "nonfinite" else np.nan
    row = {
        "run_id": run_id, "protocol": protocol, "protocol_version": 1, "scheme": scheme, "arm": "controlled",
        "params": params, "writers": "std" if scheme == "rezero" else "zero", "depth": depth, "lr": lr, "seed": seed,
        "data": "digits", "horizon": 400, "window": 50, "status": "done", "outcome": outcome,
        "crash_step": at if outcome in DEAD else None, "confirmed": True if outcome in DEAD else None, "last_step": len(step),
        "constant_loss": CONSTANT, "compiled": True,
        "best_loss": level, "final_loss": ended, "heldout_loss": ended, "commit": "0123456789abcdef0123-dirty",
    }  # fmt: skip
    out = {"run": row | run, "curve": [{"step": s, "loss": x, "grad_norm": 1.0} for s, x in enumerate(loss)][::every]}
    if quality:
        shared = {"fid_features": "digits16", "fid_n": 256}
        mine = {"step": 450, "fid_status": "crashed"} if at is not None else {
            "step": 450, "fid": 0.8 + 3 * (level - 0.6) + depth / 50, "fid_status": "ok", **shared}
        out["quality"] = [mine, {"run_id": "real", "fid": 0.1, "fid_status": "ok", **shared}]
    return out


def broken(scheme, depth, status="error", **run):
    """The record of an attempt that left nothing behind."""
    run = {"run_id": f"broken-{scheme}-{depth}", "protocol": "laptop", "protocol_version": 1, "scheme": scheme,
           "seed": 0, "arm": "controlled", "depth": depth, "lr": 0.004, "data": "digits", "writers": "zero"} | run
    return {"run": run | {"status": status, "reason": "RuntimeError: no"}}


def picture(folder, run):
    """A sample grid of the size that the suite writes."""
    path = folder / "samples" / f"{run['scheme']}-L{run['depth']}-{run['run_id']}.png"
    path.parent.mkdir(exist_ok=True, parents=True)
    noise = np.random.default_rng(run["depth"]).integers(0, 255, (85, 68), dtype=np.uint8)
    Image.fromarray(noise).resize((272, 340), Image.Resampling.NEAREST).save(path)


def laptop(folder, quality=True):
    """Five schemes, one seed and learning rate: plain collapses at depth 100, one scheme never trains, one attempt broke."""
    store = Store(folder)
    with store.lock():
        for scheme in SCHEMES:
            for depth in (25, 100):
                if (scheme, depth) == ("deepnorm", 25):
                    record_ = broken(scheme, depth)
                elif (scheme, depth) == ("rezero", 100):
                    record_ = record(scheme, depth, outcome="nonfinite", at=222, quality=quality)
                elif (scheme, depth) == ("plain", 100):
                    record_ = record(scheme, depth, outcome="collapsed", at=151, quality=quality)
                else:
                    record_ = record(scheme, depth, quality=quality)
                if record_["run"]["status"] == "done":
                    picture(folder, record_["run"])
                store.add(record_)
    return folder


def atlas(folder, depths=(25, 100), seeds=(0, 1, 2), lrs=(0.004, 0.01)):
    """Several seeds and learning rates, a plugin's scheme, variants, mixed cells, a failed seed; shorter curves."""
    store = Store(folder)
    variants = [(scheme, "") for scheme in (*SCHEMES[:4], "hyper-connections")]
    variants += [("mvsplit", "alpha=0,beta=1"), ("mvsplit", "alpha=0,beta=0.03")]
    with store.lock():
        for scheme, params in variants:
            for depth in depths:
                for lr in lrs:
                    for seed in seeds:
                        dies = scheme == "plain" and (lr > 0.005 or depth > 50 and seed)
                        outcome = ("collapsed", "degraded", "collapsed")[seed]
                        fate = {"at": 60 + 30 * seed, "outcome": outcome} if dies else {}
                        if (scheme, depth, lr) == ("layerscale", depths[-1], lrs[-1]):
                            fate = {"at": 0, "outcome": "untrained"}
                        item = record(scheme, depth, lr=lr, seed=seed, params=params, protocol="atlas", steps=200,
                                      every=4, **fate)
                        if (scheme, depth, seed) == ("deepnorm", depths[0], 2):
                            item = broken(scheme, depth, "oom", run_id=f"oom-{lr}", lr=lr, seed=seed, protocol="atlas")
                        store.add(item)
    return folder
