"""How good is `detect` without a constant loss? Our own curves whole, thinned and cut, and synthetic logs that are healthy by construction.

    PYTHONPATH=. python results/detect/judge_all.py --results results

writes RESULTS/detect/detect.csv, a few minutes on one core. Of our own runs the truth is the outcome in runs.csv, which knows the constant
loss; a run that survived, and whose curve has no event behind its horizon either, is alive. The rule's thresholds were fixed on seeds from
10,000 on; the synthetic logs here have the seeds from 0 to 999.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from suite import environment
from suite.detect.change import MIN_BEFORE, MIN_BEHIND
from suite.detect.judge import judge_foreign
from suite.environment import ROOT
from suite.evidence.cells import runs_of
from suite.evidence.trajectories import once
from suite.identity.codedigest import file_digest
from suite.records.csvfile import render
from suite.records.package import write_package
from suite.records.schema import TABLES
from suite.records.store import RowsByRun, format_value
from suite.verdict.outcome import DEAD

DETECT, SEEDS = TABLES["detect"], 1000
THINNED = (1, 2, 3, 5, 10, 20, 50)
PROTOCOLS = ("frontier", "laptop", "anatomy", "anatomy64", "deep", "frontier64")
SHOWN = ("logs", "dead", "unknown", "within_1", "worst")
RULE = ("detect/change", "detect/doubts", "detect/judge", "verdict/outcome", "verdict/smooth")  # files of the suite

Case = tuple[np.ndarray, np.ndarray, int | None]  # steps, loss, and the step of the death where there is one


def own(results: Path, dead: bool) -> list[Case]:
    """The curves of our runs that died with a finite loss, or of those that live; each trajectory once, as far as it was followed."""
    folders = [results / name for name in PROTOCOLS if (results / name).is_dir()]
    parts = {folder.name: RowsByRun(folder) for folder in folders}
    runs = once(pd.concat([runs_of(folder) for folder in folders], ignore_index=True).query("status == 'done'"))
    died = runs["outcome"].isin(["collapsed", "degraded"])
    out = []
    for row in runs[died if dead else (runs["outcome"] == "survived") & runs["late_step"].isna()].to_dict("records"):
        steps, loss = (parts[row["protocol"]].frame("curves", row)[name].to_numpy() for name in ("step", "loss"))
        out.append((steps, loss, int(row["crash_step"]) if dead else None))
    return out


def cuts(cases: list[Case]) -> Iterator[tuple[str, int, list[Case]]]:
    """(cut, every, cases) of runs that died."""
    for every in THINNED:
        yield "whole", every, [(s[::every], x[::every], at) for s, x, at in cases]
    for behind in (3, 10, 20):
        yield f"{behind} points behind", 1, [(s[s < at + behind], x[s < at + behind], at) for s, x, at in cases]
    yield "from half way to the death", 1, [(s[s >= at // 2], x[s >= at // 2], at) for s, x, at in cases]
    yield "before the death", 1, [(s[s < at - 10], x[s < at - 10], None) for s, x, at in cases]


def paper_like(seed: int) -> Case:
    """A log as the paper's authors posted: every 10 steps, flat at .85, then 1.4 higher for good, with an overshoot."""
    rng = np.random.default_rng((90, seed))
    n, sd = int(rng.integers(100, 1000)), rng.uniform(0.005, 0.1)
    at = int(rng.integers(50, n - 30))
    loss = 0.85 + sd * rng.standard_normal(n)
    loss[at:] += 1.4
    loss[at + 1] += rng.uniform(0, 0.4)
    steps = 10 * np.arange(1, n + 1)
    return steps, loss, int(steps[at])


def trained(rng, n: int) -> np.ndarray:
    """A mean that falls as training does, from its start or from its middle."""
    end = rng.uniform(0.1, 2.0)
    height = rng.uniform(1, 8) if rng.random() < 0.5 else rng.uniform(0, 0.3) * end
    early = rng.uniform(1, 50)
    return end + height * ((np.arange(n) + early) / early) ** -rng.uniform(0.1, 0.6)


def healthy(family: str, seed: int) -> Case:
    """One healthy log of 30 to 3,000 points."""
    rng = np.random.default_rng((FAMILIES.index(family), seed))
    n = int(np.exp(rng.uniform(np.log(30), np.log(3000))))
    mean, noise = trained(rng, n), rng.standard_normal(n)
    sd = rng.uniform(0.01, 0.15) * mean[-1]
    if family == "white":
        loss = mean + sd * noise
    elif family == "heavy tails, t(2)":
        loss = mean + 0.5 * sd * rng.standard_t(2, n)
    elif family == "wandering, AR(.9)":
        for i in range(1, n):
            noise[i] = 0.9 * noise[i - 1] + np.sqrt(1 - 0.81) * noise[i]
        loss = mean + sd * noise
    elif family == "multiplicative":
        loss = mean * np.exp(rng.uniform(0.05, 0.4) * noise)
    elif family == "power law":
        loss = 3 * (np.arange(n) + rng.uniform(1, 20)) ** -rng.uniform(0.2, 0.6) * np.exp(0.03 * noise)
    elif family == "spikes that recover":
        loss = mean + sd * noise
        for _ in range(rng.integers(1, 5)):
            width = rng.uniform(1, max(2, min(30, n / 20)))
            since = np.arange(n) - rng.integers(0, max(1, n - int(8 * width) - 8))
            loss += np.where(since >= 0, rng.uniform(0.5, 5) * mean[-1] * np.exp(-np.maximum(since, 0) / width), 0)
    elif family == "rate drops":
        for at in np.sort(rng.integers(n // 5, n, 3)):
            mean[at:] *= rng.uniform(0.6, 0.95)
        loss = mean + sd * noise
    else:
        loss = np.array([float(f"{value:.3g}") for value in mean + sd * rng.uniform(0.001, 0.3) * noise])
    return 10 * np.arange(1, n + 1), loss, None


FAMILIES = ("white", "heavy tails, t(2)", "wandering, AR(.9)", "multiplicative", "power law", "spikes that recover", "rate drops",
            "three digits")  # fmt: skip


def judged(cases: Iterable[Case]) -> dict[str, object]:
    """What became of one group of logs: counts, and the error of the step in logging intervals."""
    n, outcomes, errors = Counter(), defaultdict(int), []
    for steps, loss, at in cases:
        n["logs"] += 1
        found = judge_foreign(steps, loss)[0]
        outcomes[found.outcome] += 1
        if at is None:
            continue
        first = int(np.searchsorted(steps, at))
        n["too_few"] += first < MIN_BEFORE or len(steps) - first < MIN_BEHIND
        if found.outcome in DEAD:
            errors.append(abs(int(np.searchsorted(steps, found.crash_step)) - first))
    return {
        "logs": n["logs"], "too_few": n["too_few"], "dead": sum(outcomes[name] for name in DEAD), "unknown": outcomes["unknown"],
        "survived": outcomes["survived"], "too_short": outcomes["too_short"], "within_1": sum(e <= 1 for e in errors) if errors else None,
        "within_5": sum(e <= 5 for e in errors) if errors else None, "worst": max(errors, default=None),
    }  # fmt: skip


def groups(results: Path) -> Iterator[tuple[dict[str, object], Iterable[Case]]]:
    """What names a row, and its logs."""
    for cut, every, cases in cuts(own(results, dead=True)):
        yield {"truth": "alive" if cut.startswith("before") else "dead", "family": "our runs", "cut": cut, "every": every}, cases
    yield {"truth": "dead", "family": "the paper's trace", "cut": "whole", "every": 1}, (paper_like(seed) for seed in range(SEEDS))
    living = own(results, dead=False)
    for every in THINNED:
        thinned = [(s[::every], x[::every], at) for s, x, at in living]
        yield {"truth": "alive", "family": "our runs", "cut": "whole", "every": every}, thinned
    for family in FAMILIES:
        yield {"truth": "alive", "family": family, "cut": "whole", "every": 1}, (healthy(family, seed) for seed in range(SEEDS))


def rule_digest() -> str:
    """The digest of the files that make a verdict without a constant loss."""
    return "+".join(file_digest(ROOT / "suite" / f"{name}.py") for name in RULE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    args = parser.parse_args()
    path = args.results / "detect" / DETECT.path
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds, rows = {column.name: column.type for column in DETECT.columns}, []
    for name, cases in groups(args.results):
        row = name | judged(cases) | {"rule_digest": rule_digest(), **environment.provenance()}
        rows.append({key: format_value(row.get(key), kind) for key, kind in kinds.items()})
        print(*(f"{key}={row[key]}" for key in kinds if key in name or key in SHOWN), flush=True)
    path.write_bytes(render(DETECT, rows))
    write_package(path.parent)


if __name__ == "__main__":
    main()
