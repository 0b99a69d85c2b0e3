"""`plan`, `run` and `encode`: from a selection to runs, from runs to tables, and from pictures to data."""

from __future__ import annotations

import sys
from pathlib import Path

from suite.cli.interrupt import interruptible
from suite.cli.parser import COMMITTED


def _selection(args):
    from suite.sweep.plan import Selection

    wanted = ("protocol", "schemes", "arms", "depths", "lrs", "seeds", "data", "shard")
    params = tuple(args.params) if args.params else None
    return Selection(plugins=tuple(args.plugin), params=params, **{k: getattr(args, k) for k in wanted})


def _plan_of(selection, catalogue, results: Path):
    """(runs, cells of a search or None): what is to be trained; of a search its next round."""
    from suite.records.tables import Store
    from suite.sweep.plan import make_plan
    from suite.sweep.search import cells, is_search, next_runs

    if not is_search(selection):
        return make_plan(selection, catalogue=catalogue), None
    wanted = cells(selection, catalogue)
    store = Store(results / selection.protocol)
    done = store.done_ids()
    return next_runs(wanted, [row for row in store.runs() if row["run_id"] in done]), wanted


def plan(args) -> int:
    from suite.isolation.catalogue import read
    from suite.records.tables import Store

    if args.gpus and not args.cost:
        raise ValueError("--gpus goes with --cost")
    if args.cost:
        return _cost(args)
    catalogue = read(args.plugin)
    runs, cells = _plan_of(_selection(args), catalogue, args.results)
    warn(catalogue)
    store = Store(args.results / args.protocol)
    done, failed = store.done_ids(), store.failed_ids()
    for run in runs:
        state = "done" if run.run_id in done else "failed" if run.run_id in failed else "to do"
        print(f"{run.run_id}  {state:6}  {run.label()}")
    what = f", {sum(r.run_id in done for r in runs)} done"
    if cells is not None:
        what = f" in the next round of the search (none: the edges of all {len(cells)} cells are known)"
    print(f"{len(runs)} runs{what}")
    return 0


def _cost(args) -> int:
    """What the selection will take, without training or a GPU."""
    from suite.isolation import forks
    from suite.isolation.catalogue import read
    from suite.sweep.plan import make_plan

    catalogue = read(args.plugin)
    runs = make_plan(_selection(args), for_costs=True, catalogue=catalogue)
    warn(catalogue)
    print("\n".join(forks.once(_said, catalogue.sound, runs, args.gpus, COMMITTED / "bench" / "bench.csv")))
    return 0


def _said(files, runs, gpus, bench: Path) -> list[str]:
    """The lines of `plan --cost`, in a process that knows the schemes of all these files, as it never trains."""
    from suite import registry
    from suite.scale.cost import said

    for file in files:
        registry.load(file)
    return said(runs, gpus, bench)


def warn(catalogue) -> None:
    """Say which files of schemes are left out."""
    for line in catalogue.warnings:
        print(f"warning: {line}", file=sys.stderr)


def encode(args) -> int:
    """Make a folder of latents."""
    from suite.scale.encoding.encode import encode

    settings = {name: getattr(args, name) for name in ("vae", "text", "size", "tokens", "batch")}
    with interruptible():
        try:
            encode(args.images, args.captions, args.out, **{name: value for name, value in settings.items() if value is not None})
        except KeyboardInterrupt:
            print("\nstopped; whole shards are kept, and the same command goes on from there", file=sys.stderr)
            return 130
    return 0


def run(args) -> int:
    from suite.isolation.catalogue import read
    from suite.sweep.launcher import launched, launched_alone
    from suite.sweep.plan import say_quality
    from suite.sweep.search import core_hours

    selection, catalogue = _selection(args), read(args.plugin)
    runs, cells = _plan_of(selection, catalogue, args.results)
    warn(catalogue)
    if runs and runs[0].protocol.compiled and not runs[0].compiled:
        print("no C++ compiler found: blocks run eager, about half as fast (and under run ids of their own)", file=sys.stderr)
    if launched_alone():
        print("accelerate started one process, not several (--cpu needs MPI): this is an ordinary run; for data parallelism say "
              "--multi_gpu instead of --cpu, which needs no GPU", file=sys.stderr)  # fmt: skip
    if launched():
        from suite.scale.distributed import run_distributed

        return run_distributed(runs, args.results.resolve(), args.features, catalogue)
    say_quality(runs, args.features)
    if args.slurm and args.executor != "slurm":
        raise ValueError("--slurm goes with --executor slurm")
    if cells is None:
        return _sweep(args, runs, catalogue)
    print(f"a search for the edges of {len(cells)} cells: about {core_hours(cells):.1f} core-hours from nothing; it goes on from what "
          f"{args.results / selection.protocol} holds", file=sys.stderr)  # fmt: skip
    status = 0
    while runs and not status:
        status = _sweep(args, runs, catalogue)
        runs, _ = _plan_of(selection, catalogue, args.results)
    from suite.evidence.report import beside

    print(beside(args.results / selection.protocol, COMMITTED / selection.protocol))
    return status


def _sweep(args, runs, catalogue) -> int:
    """Train these runs, here or on a cluster; the exit status."""
    from suite import environment

    if args.executor == "slurm":
        from suite.sweep.slurm import run_on_slurm

        with interruptible():
            return run_on_slurm(
                runs, args.results.resolve(), settings=args.slurm, workers=args.workers, features=args.features,
                replicas=args.replicas, plugins=args.plugin, retry=args.retry_failed,
            )  # fmt: skip
    if args.workers and args.workers > (cores := environment.usable_cores()):
        print(f"--workers {args.workers}: only {cores} cores may be used, so {cores} workers", file=sys.stderr)
    from suite.sweep.sweep import Sweep, workers

    sweep = Sweep(
        runs, args.results.resolve(), workers=workers(args.workers), features=args.features,
        retry=args.retry_failed, replicas=args.replicas, catalogue=catalogue,
    )  # fmt: skip
    (args.results / ".work").mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is refused here
    backlog = sweep.backlog
    for run, words in backlog.lost:
        print(f"{run.label()}: was done but {words}; it is trained again", file=sys.stderr)
    print(f"{len(runs)} runs: {backlog.skipped} done before, {backlog.total} to do", file=sys.stderr)
    try:
        with interruptible():
            sweep.run()
    except KeyboardInterrupt:
        print("\nstopped; everything finished is kept, and the same command goes on from the last checkpoints", file=sys.stderr)
        return 130
    for run, reason in sweep.broken:
        print(f"broken: {run.label()}: {reason}", file=sys.stderr)
    if backlog.old_failures:
        print(f"{backlog.old_failures} runs broke before; --retry-failed repeats them", file=sys.stderr)
    return 1 if sweep.broken or backlog.old_failures else 0
