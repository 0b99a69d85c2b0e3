"""`enter`: a scheme in a file of its own goes through the contract, through the search, and into the ranking."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from suite.cli.parser import COMMITTED
from suite.cli.training import searched, warn

PROTOCOL = "frontier"  # the ranking's
PRECISION = 0.1  # of its edge: of results/entries/scalar 46 runs, 17 minutes on two idle cores


def enter(args) -> int:
    """Examine the scheme of a file, search its rates, print its row among the committed ones and leave the folder that a pull request
    adds."""
    from suite.evidence import critical_rates, ranking_table
    from suite.evidence.entered import among, ready
    from suite.isolation.catalogue import read
    from suite.sweep import search
    from suite.sweep.plan import Selection

    file = args.file.resolve()
    catalogue = read([file])
    entry = _the_one(file, catalogue)
    warn(catalogue)
    folder = args.results / entry.name
    kept = folder / f"{entry.name}.py"
    if kept.exists() and kept.resolve() != file and kept.read_bytes() != file.read_bytes():
        raise ValueError(f"{kept}: is of another version of {file.name}; remove {folder}, or name another with --results")
    for line in _examined(entry, file, catalogue):
        print(f"passed: {line}", flush=True)
    if kept.resolve() != file:  # before the first run: whoever changes the file on the way is told
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, kept)
    selection = Selection(PROTOCOL, schemes=(entry.name,), arms=(entry.arm,), depths=(args.depth,), plugins=(str(file),))
    runs, known = search.planned(selection, folder, catalogue, PRECISION)
    args.results, args.precision = folder, PRECISION
    if status := searched(args, selection, runs, known, catalogue):
        return status
    if not ready(folder / PROTOCOL):
        raise ValueError(f"{entry.name} trains at no rate that the search tried, so it has no place; its runs are in {folder / PROTOCOL}")
    critical_rates.write(folder)
    ranking_table.write(folder)
    print(among(folder / PROTOCOL, COMMITTED, args.depth))
    print(f"{folder}: your file, its runs and its numbers, which is what a pull request adds; to check it, with two runs trained again: "
          f"python -m suite verify --results {folder} --rerun 2")  # fmt: skip
    return 0


def _the_one(file: Path, catalogue):
    """The only scheme that a file registers. Raises ValueError for more."""
    own = [key for key, entry in catalogue.entries.items() if entry.file == str(file)]
    if len(own) != 1:
        names = ", ".join(name for name, _ in own) or "none"
        raise ValueError(f"{file.name}: an entry is one scheme, in one arm; this file registers {names}")
    return catalogue.get(*own[0])


def _examined(entry, file: Path, catalogue) -> list[str]:
    """What the contract asks of a scheme, passed. Raises ValueError with what was not."""
    from dataclasses import replace

    from suite import environment
    from suite.sweep.exam import examine
    from suite.sweep.plan import Selection, make_plan

    small = Selection("smoke", schemes=(entry.name,), arms=(entry.arm,), depths=(3,), seeds=(0, 1), plugins=(str(file),))
    runs = [replace(run, compiled=bool(environment.compiler())) for run in make_plan(small, catalogue=catalogue)]
    print(f"{entry.name} ({file.name}): half a minute with the contract ...", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        return catalogue.call(entry, examine, runs, Path(folder))
