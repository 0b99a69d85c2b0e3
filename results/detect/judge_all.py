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

from suite import environment
from suite.detect.change import MIN_BEFORE, MIN_BEHIND
from suite.detect.judge import judge_foreign
from suite.detect.simulated import FAMILIES, Case, healthy, paper_like
from suite.environment import ROOT
from suite.identity.codedigest import file_digest
from suite.records.corpus import corpus
from suite.records.csvfile import render
from suite.records.package import write_package
from suite.records.schema import TABLES
from suite.records.store import format_value
from suite.verdict.outcome import DEAD

DETECT, SEEDS = TABLES["detect"], 1000
THINNED = (1, 2, 3, 5, 10, 20, 50)
PROTOCOLS = ("frontier", "laptop", "anatomy", "anatomy64", "deep", "frontier64")
SHOWN = ("logs", "dead", "unknown", "within_1", "worst")
RULE = ("detect/change", "detect/doubts", "detect/judge", "verdict/outcome", "verdict/smooth")  # files of the suite


def own(results: Path, dead: bool) -> list[Case]:
    """The curves of our runs that died with a finite loss, or of those that live; each trajectory once, as far as it was followed."""
    return [(log.steps, log.loss, log.crash_step) for log in corpus(results, PROTOCOLS)
            if log.dead == dead and log.outcome != "nonfinite"]  # fmt: skip


def cuts(cases: list[Case]) -> Iterator[tuple[str, int, list[Case]]]:
    """(cut, every, cases) of runs that died."""
    for every in THINNED:
        yield "whole", every, [(s[::every], x[::every], at) for s, x, at in cases]
    for behind in (3, 10, 20):
        yield f"{behind} points behind", 1, [(s[s < at + behind], x[s < at + behind], at) for s, x, at in cases]
    yield "from half way to the death", 1, [(s[s >= at // 2], x[s >= at // 2], at) for s, x, at in cases]
    yield "before the death", 1, [(s[s < at - 10], x[s < at - 10], None) for s, x, at in cases]


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
