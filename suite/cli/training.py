"""`plan`, `run`, `autopsy` and `encode`: from a selection to runs, from runs to tables, and from pictures to data."""

from __future__ import annotations

import sys
from pathlib import Path

from suite.cli.interrupt import interruptible
from suite.cli.parser import COMMITTED

COSTED = 10_000  # blocks whose shapes `plan --cost` lays out, a millisecond each: ten times the deepest network of the paper
ALONE = ("accelerate started one process, not several (--cpu needs MPI): this is an ordinary run; for data parallelism say "
         "--multi_gpu instead of --cpu, which needs no GPU")  # fmt: skip


def _selection(args):
    from suite.sweep.plan import Selection

    wanted = ("protocol", "schemes", "arms", "depths", "lrs", "seeds", "data", "control", "shard")
    params = tuple(args.params) if args.params else None
    return Selection(plugins=tuple(args.plugin), params=params, **{k: getattr(args, k) for k in wanted})


def warn(catalogue) -> None:
    """Say which files of schemes are left out."""
    for line in catalogue.warnings:
        print(f"warning: {line}", file=sys.stderr)


def plan(args) -> int:
    """What the selection asks for, and which of it is done; or, trained nowhere, what it will take."""
    from suite.isolation.catalogue import read
    from suite.sweep.backlog import Standing
    from suite.sweep.search import planned

    if args.gpus and not args.cost:
        raise ValueError("--gpus goes with --cost")
    catalogue = read(args.plugin)
    if args.cost:
        return _cost(args, catalogue)
    runs, known = planned(_selection(args), args.results, catalogue, args.precision)
    warn(catalogue)
    now = Standing(runs, args.results)
    for run in runs:
        state = "done" if run.run_id in now.done else "failed" if run.run_id in now.failed else "to do"
        print(f"{run.run_id}  {state:6}  {run.label()}")
    what = f", {sum(run.run_id in now.done for run in runs)} done"
    if known is not None:
        print("\n".join(known))
        what = f" in the next round of the search (none: all {len(known)} cells are done)"
    print(f"{len(runs)} runs{what}")
    return 0


def _cost(args, catalogue) -> int:
    from suite.isolation import forks
    from suite.sweep.plan import make_plan

    if deep := next((depth for depth in args.depths or () if depth > COSTED), None):
        raise ValueError(f"--cost lays out every block of a network: {COSTED} of them at most, not {deep}; parameters and hours grow in "
                         "proportion to them")  # fmt: skip
    runs = make_plan(_selection(args), for_costs=True, catalogue=catalogue)
    warn(catalogue)
    print("\n".join(forks.once(_cost_lines, catalogue.sound, runs, args.gpus, COMMITTED / "bench" / "bench.csv")))
    return 0


def _cost_lines(files, runs, gpus, bench: Path) -> list[str]:
    """What `plan --cost` says, from a process that knows the schemes of all these files, as it never trains."""
    from suite import registry
    from suite.scale.price import describe

    for file in files:
        registry.load(file)
    return describe(runs, gpus, bench)


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
    """Train what the selection asks for and is not done: as one process of a launcher, round by round of a search, or at once."""
    from suite.environment import launched, launched_alone
    from suite.isolation.catalogue import read
    from suite.sweep import search
    from suite.sweep.plan import say_quality

    if args.slurm and args.executor != "slurm":
        raise ValueError("--slurm goes with --executor slurm")
    selection, catalogue = _selection(args), read(args.plugin)
    runs, known = search.planned(selection, args.results, catalogue, args.precision, args.replicas)
    warn(catalogue)
    if runs and runs[0].protocol.compiled and not runs[0].compiled:
        print("no C++ compiler found: blocks run eager, about half as fast (and under run ids of their own)", file=sys.stderr)
    if launched():
        from suite.scale.distributed import run_distributed

        return run_distributed(runs, args.results.resolve(), args.features, catalogue)
    if launched_alone():
        print(ALONE, file=sys.stderr)
    say_quality(runs, args.features)
    train = _on_slurm if args.executor == "slurm" else _here
    if known is None:
        return train(args, runs, catalogue)
    status = searched(args, selection, runs, known, catalogue, train)
    from suite.evidence.report import beside

    print(beside(args.results / selection.protocol, COMMITTED / selection.protocol))
    return status


def searched(args, selection, runs, known, catalogue, train=None) -> int:
    """Go through the rounds of a search, from the first that was planned; the exit status. train: where, by default here."""
    from suite.sweep import search

    cost = search.core_hours(search.cells(selection, catalogue))
    print(f"a search through {len(known)} cells: about {cost:.1f} core-hours from nothing; it goes on from what "
          f"{args.results / selection.protocol} holds", file=sys.stderr)  # fmt: skip
    status = 0
    while True:
        print("\n".join(known), file=sys.stderr)
        if not runs or status:
            return status
        status = (train or _here)(args, runs, catalogue)
        runs, known = search.planned(selection, args.results, catalogue, args.precision, args.replicas)


def _how(args) -> dict[str, object]:
    """What a sweep is told beside its runs, here and in a task of Slurm."""
    return {"workers": args.workers, "features": args.features, "replicas": args.replicas, "retry": args.retry_failed}


def _on_slurm(args, runs, catalogue) -> int:
    from suite.sweep.slurm import run_on_slurm

    with interruptible():
        return run_on_slurm(runs, args.results.resolve(), args.slurm, args.plugin, _how(args))


def _here(args, runs, catalogue) -> int:
    """Train on this machine; the exit status."""
    from suite import environment
    from suite.sweep.sweep import Sweep

    how = _how(args)
    if args.workers and args.workers > (cores := environment.usable_cores()):
        print(f"--workers {args.workers}: only {cores} cores may be used, so {cores} workers", file=sys.stderr)
        how["workers"] = cores
    sweep = Sweep(runs, args.results.resolve(), catalogue=catalogue, **how)
    (args.results / ".work").mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is refused here
    print("\n".join(sweep.before.describe()), file=sys.stderr)
    try:
        with interruptible():
            sweep.run()
    except KeyboardInterrupt:
        print("\nstopped; everything finished is kept, and the same command goes on from the last checkpoints", file=sys.stderr)
        return 130
    for run, reason in sweep.broken:
        print(f"broken: {run.label()}: {reason}", file=sys.stderr)
    if old := sweep.before.old_failures:
        print(f"{old} runs broke before; --retry-failed repeats them", file=sys.stderr)
    return 1 if sweep.broken or old else 0


def autopsy(args) -> int:
    """Examine the networks of a selection, one by one; those that the table has are left alone."""
    from suite.isolation import forks
    from suite.isolation.catalogue import read
    from suite.presets import PROTOCOLS
    from suite.records.store import TABLES, put_rows, read_rows, write_package, write_rows
    from suite.sweep.plan import make_plan

    if args.control:
        raise ValueError("--control: an autopsy has no column for it; leave it out")
    catalogue, folder = read(args.plugin), args.results.resolve() / "autopsy"
    runs = make_plan(_selection(args), catalogue=catalogue)
    warn(catalogue)
    if not runs:
        raise ValueError(f"{args.protocol}: a search, which has no rates of its own; name some with --lrs and --seeds")
    examined, levels = ((TABLES[name], folder / TABLES[name].path) for name in ("autopsy", "references"))
    known, others = (read_rows(path, table) if path.exists() else [] for table, path in (examined, levels))
    todo = [run for run in runs if run.run_id not in {row["run_id"] for row in known}]
    print(f"{len(runs)} networks, {len(runs) - len(todo)} of them examined", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is refused before the training
    data = runs[0].data
    patches = {runs[0].protocol.patch, *(p.patch for p in PROTOCOLS.values() if p.data == data)}
    rows = [row for row in others if row["data"] != data] + forks.once(_references, data, sorted(patches))
    write_rows(levels[1], levels[0], rows)
    write_package(folder)
    try:
        with interruptible():
            for run in todo:
                rows = forks.once(_examined, run, catalogue.get(run.scheme, run.arm).file, folder.parent)
                put_rows(examined[1], examined[0], rows)
                write_package(folder)
                print(f"{run.run_id}  {run.label()}: {rows[0]['outcome']}, {rows[0]['state']}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nstopped; what was examined is kept, and the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    print(f"{examined[1]}; to draw it: python -m suite figures --results {args.results}")
    return 0


def _references(data: str, patches: list[int]) -> list[dict]:
    from suite.data.load import cached
    from suite.diagnosis.references import references

    return [row for patch in patches for row in references(cached(data), patch)]


def _examined(run, file: str, results: Path) -> list[dict]:
    """Rows of the network of a run, trained to its end in this process; no checkpoint stays."""
    from suite import environment, files
    from suite.data.load import cached
    from suite.diagnosis.autopsy import autopsy
    from suite.sweep.execute import load_alone
    from suite.sweep.work_folder import work_folder
    from suite.training.trainer import Trainer

    load_alone(run, file)
    trainer = Trainer(run, cached(run.data), work_folder(results, run.run_id))
    trainer.restore()
    trainer.train()
    rows = [row | environment.provenance() for row in autopsy(trainer)]
    files.remove(trainer.folder)
    return rows
