"""The command line; `parser` has its verbs. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from suite.environment import ROOT
from suite.numerals import decimal, directory, filled, list_of, positive, rate, shard, whole

RESULTS = Path("results/local")  # a user's own runs; the committed tables are made with --results results
COMMITTED = ROOT / "results"


class Parser(argparse.ArgumentParser):
    """Whole flags only, and a mistake is one line."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str):
        line = " ".join(message.split())
        self.exit(2, f"error: {line} (see: {self.prog} --help)\n")


def _selection_flags(parser: argparse.ArgumentParser) -> None:
    names = list_of(str, "a name")
    parser.add_argument("--protocol", default="laptop", metavar="NAME", help="what is fixed (default: laptop)")
    parser.add_argument("--schemes", type=names, metavar="A,B", help="residual schemes (default: the protocol's)")
    parser.add_argument("--params", type=filled, action="append", metavar="[SCHEME:]K=V,...",
                        help="scheme parameters, writers=zero|std included; repeat for more cells")
    parser.add_argument("--arms", type=names, metavar="A,B", help="controlled, native (default: the protocol's)")
    parser.add_argument("--depths", type=list_of(whole, "a number of blocks, 1 to 100000", lambda v: 0 < v <= 100_000), metavar="N,N")
    parser.add_argument("--lrs", type=list_of(decimal, "a positive learning rate of at most six digits", rate), metavar="X,X")
    parser.add_argument("--seeds", type=list_of(whole, "a seed, 0 to 2147483647", lambda v: 0 <= v < 2**31), metavar="N,N")
    parser.add_argument("--data", type=filled, metavar="SOURCE",
                        help="digits, imagefolder:DIR, parquet:FILE or a hub name; options as "
                             "SOURCE,size=32,colour=grey,label=COLUMN,image=COLUMN,split=NAME")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE",
                        help="a Python file that registers schemes; it is executed")
    parser.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="take every N-th run from the I-th")
    _results_flag(parser)


def _results_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=directory, default=RESULTS, metavar="DIR", help=f"where tables live (default: {RESULTS})")


def parser() -> argparse.ArgumentParser:
    """The whole command line; frozen by a test."""
    top = Parser(prog="python -m suite", description="ScreamBench: residual schemes in very deep transformers.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    add = verbs.add_parser
    add("list", help="protocols and schemes").add_argument("--plugin", action="append", default=[], metavar="FILE")
    _selection_flags(add("plan", help="the runs of a selection, and which are done"))
    run = add("run", help="train what is not done yet")
    _selection_flags(run)
    run.add_argument("--workers", type=positive, metavar="N", help="processes (default: one per GPU, or per usable core)")
    run.add_argument("--replicas", type=positive, metavar="N",
                     help="most runs, alike but for rate and seed, that are trained as one model (default: 1 on a CPU, by depth on CUDA)")
    run.add_argument("--features", choices=("digits", "inception"), default="digits", help="network behind FID (default: digits)")
    run.add_argument("--executor", choices=("local", "slurm"), default="local", help="this machine, or a Slurm cluster (default: local)")
    run.add_argument("--slurm", type=filled, action="append", default=[], metavar="K=V,...",
                     help="with --executor slurm: jobs=N,time=MINUTES and what submitit takes (partition, account, cpus_per_task, ...)")
    run.add_argument("--kernels", choices=("auto", "off"), default="auto",
                     help="fused kernels on CUDA, or never (default: auto); recorded, but no part of a run id: compare in two --results")
    run.add_argument("--retry-failed", action="store_true", help="also repeat runs that ended in oom, timeout or error")
    _results_flag(add("status", help="how many runs of each protocol are done, by outcome"))
    collect = add("collect", help="your cells beside the committed ones; with --from, after gathering other folders into yours")
    collect.add_argument("--from", dest="sources", type=directory, nargs="+", action="extend", default=[], metavar="DIR",
                         help="results folders to gather into --results first")
    collect.add_argument("--protocol", metavar="NAME", help="one protocol (default: all)")
    _results_flag(collect)
    figures = add("figures", help="draw every figure its tables allow")
    figures.add_argument("--out", type=Path, metavar="DIR", help="default: paper_figures/out for results, DIR/figures otherwise")
    _results_flag(figures)
    verify = add("verify", help="recompute what can be recomputed from the tables; exit status 1 where something differs")
    verify.add_argument("--rerun", type=positive, metavar="K", help="also train K randomly chosen committed runs again")
    verify.add_argument("--seed", type=list_of(whole, "a seed"), default=(0,), metavar="N", help="which K (default: 0)")
    verify.add_argument("--plugin", action="append", default=[], metavar="FILE", help="schemes of these runs that are not in baselines/")
    verify.add_argument("--results", type=directory, default=COMMITTED, metavar="DIR", help="default: the committed tables")
    report = add("report", help="the outcomes of `laptop` and the critical rates of `frontier`, in Markdown")
    report.add_argument("--write", action="store_true", help="put them into README.md")
    report.add_argument("--results", type=directory, default=COMMITTED, metavar="DIR", help="default: the committed tables")
    detect = add("detect", help="what became of a run, from its log: CSV, JSON (lines), trainer_state.json, event files, gz; - for a pipe")
    detect.add_argument("file", type=Path)
    detect.add_argument("--column", metavar="NAME", help="the column of the loss, where it cannot be told")
    detect.add_argument("--constant-loss", type=float, metavar="X", help="loss of the best constant predictor, if known")
    detect.add_argument("--plot", type=Path, metavar="FILE", help="draw the loss and what was found: .png, .pdf or .svg")
    bench = add("bench", help="what a step costs by scheme and depth, beside the project's targets; about 40 minutes on an idle machine")
    bench.add_argument("--quick", action="store_true", help="two schemes and few depths, in about five minutes")
    bench.add_argument("--only", default="", metavar="EXPR", help="rows whose name fits, as in: 'cuda and merge'")
    _results_flag(bench)
    return top


def _list(args) -> int:
    from suite import registry
    from suite.protocol import PROTOCOLS

    for plugin in args.plugin:
        registry.load_plugin(plugin)
    print("protocols")
    for p in PROTOCOLS.values():
        print(f"  {p.name:10} v{p.version}  {p.purpose}")
    print("schemes")
    for name in registry.names():
        for arm in registry.ARMS:
            if name in registry.names(arm):
                entry = registry.get(name, arm)
                print(f"  {name:10} {arm:10}  {entry.paper:16}  {registry.format_params(entry, {})}")
    return 0


def _selection(args):
    from suite.sweep.plan import Selection

    wanted = ("protocol", "schemes", "arms", "depths", "lrs", "seeds", "data", "shard")
    params = tuple(args.params) if args.params else None
    return Selection(plugins=tuple(args.plugin), params=params, **{k: getattr(args, k) for k in wanted})


def _plan_of(selection, results: Path):
    """(runs, cells of a search or None): what is to be trained; of a search its next round."""
    from suite.records.completeness import done_ids
    from suite.records.tables import Store
    from suite.sweep.plan import make_plan
    from suite.sweep.search import cells, is_search, next_runs

    if not is_search(selection):
        return make_plan(selection), None
    wanted = cells(selection)
    store = Store(results / selection.protocol)
    done = done_ids(store)
    return next_runs(wanted, [row for row in store.runs() if row["run_id"] in done]), wanted


def _plan(args) -> int:
    from suite.records.completeness import done_ids
    from suite.records.tables import Store
    from suite.sweep import footprint

    runs, cells = _plan_of(_selection(args), args.results)
    store = Store(args.results / args.protocol)
    done, failed = done_ids(store), store.failed_ids()
    for run in runs:
        state = "done" if run.run_id in done else "failed" if run.run_id in failed else "to do"
        print(f"{run.run_id}  {state:6}  {run.label()}")
    what = f", {sum(r.run_id in done for r in runs)} done"
    if cells is not None:
        what = f" in the next round of the search (none: the edges of all {len(cells)} cells are known)"
    print(f"{len(runs)} runs{what}{footprint.said([run for run in runs if run.run_id not in done])}")
    return 0


def _run(args) -> int:
    from suite.evidence.report import beside
    from suite.sweep.plan import check_quality
    from suite.sweep.search import core_hours

    selection = _selection(args)
    runs, cells = _plan_of(selection, args.results)
    if args.features == "inception":
        from suite.quality.features import extractor

        extractor(args.features)  # refused now rather than after the first training
    if note := check_quality(runs, args.features):
        print(note, file=sys.stderr)
    if runs and runs[0].protocol.compiled and not runs[0].compiled:
        print("no C++ compiler found: blocks run eager, about half as fast (and under run ids of their own)", file=sys.stderr)
    from suite.sweep.distributed import launched, launched_alone, run_distributed

    if launched_alone():
        print("accelerate started one process, not several (--cpu needs MPI): this is an ordinary run; for data parallelism say "
              "--multi_gpu instead of --cpu, which needs no GPU", file=sys.stderr)  # fmt: skip
    if launched():
        return run_distributed(runs, args.results.resolve(), args.features, args.kernels)
    if args.slurm and args.executor != "slurm":
        raise ValueError("--slurm goes with --executor slurm")
    if cells is None:
        return _sweep(args, runs)
    print(f"a search for the edges of {len(cells)} cells: about {core_hours(cells):.1f} core-hours from nothing; it goes on from what "
          f"{args.results / selection.protocol} holds", file=sys.stderr)  # fmt: skip
    status = 0
    while runs and not status:
        status = _sweep(args, runs)
        runs, _ = _plan_of(selection, args.results)
    print(beside(args.results / selection.protocol, COMMITTED / selection.protocol))
    return status


def _sweep(args, runs) -> int:
    """Train these runs, here or on a cluster; the exit status."""
    from suite import environment

    if args.executor == "slurm":
        from suite.sweep.slurm import run_on_slurm

        with _interruptible():
            return run_on_slurm(
                runs, args.results.resolve(), settings=args.slurm, workers=args.workers, features=args.features, kernels=args.kernels,
                replicas=args.replicas, plugins=args.plugin, retry=args.retry_failed,
            )  # fmt: skip
    if args.workers and args.workers > (cores := environment.usable_cores()):
        print(f"--workers {args.workers}: only {cores} cores may be used, so {cores} workers", file=sys.stderr)
    from suite.sweep.sweep import Sweep

    sweep = Sweep(
        runs, args.results.resolve(), workers=environment.workers(args.workers), features=args.features,
        plugins=args.plugin, retry=args.retry_failed, kernels=args.kernels, replicas=args.replicas,
    )  # fmt: skip
    (args.results / ".work").mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is refused here
    backlog = sweep.backlog
    for run, lacks in backlog.partial:
        print(f"{run.label()}: was done but lacks {lacks}; it is trained again", file=sys.stderr)
    print(f"{len(runs)} runs: {backlog.skipped} done before, {backlog.total} to do", file=sys.stderr)
    try:
        with _interruptible():
            sweep.run()
    except KeyboardInterrupt:
        print("\nstopped; everything finished is kept, and the same command goes on from the last checkpoints", file=sys.stderr)
        return 130
    for run, reason in sweep.broken:
        print(f"broken: {run.label()}: {reason}", file=sys.stderr)
    if backlog.old_failures:
        print(f"{backlog.old_failures} runs broke before; --retry-failed repeats them", file=sys.stderr)
    return 1 if sweep.broken or backlog.old_failures else 0


def _protocol_folders(results: Path) -> list[Path]:
    return sorted(p.parent for p in results.glob("*/runs.csv"))


def _status(args) -> int:
    from collections import Counter

    from suite.records.tables import Store

    folders = _protocol_folders(args.results)
    if not folders:
        print(f"{args.results}: no results yet; start with: python -m suite run")
    for folder in folders:
        counts = Counter(row["outcome"] or row["status"] for row in Store(folder).runs())
        print(f"{folder.name:10} {sum(counts.values()):4} runs: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
    return 0


def _collect(args) -> int:
    from suite.evidence.report import beside
    from suite.protocol import PROTOCOLS
    from suite.records.completeness import check_parts
    from suite.records.tables import Store, check_folder

    if args.protocol and args.protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {args.protocol!r}; known: {', '.join(PROTOCOLS)}")
    if args.sources:
        from suite.records.gather import gather

        print(f"{gather(args.sources, args.results, args.protocol)} runs gathered into {args.results}", file=sys.stderr)
    folders = [f for f in _protocol_folders(args.results) if args.protocol in (None, f.name)]
    if not folders:
        print(f"{args.results}: no results to collect; start with: python -m suite run", file=sys.stderr)
        return 2
    problems = []
    for folder in folders:
        print(f"{folder.name}: yours ({folder}) beside the committed runs ({COMMITTED.name}/{folder.name})")
        print(beside(folder, COMMITTED / folder.name))
        with Store(folder).still():
            problems += check_folder(folder) + check_parts(folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _figures(args) -> int:
    from paper_figures.draw import draw_all

    return draw_all(args.results, args.out or _pictures(args.results))


def _pictures(results: Path) -> Path:
    """Where the figures of a results folder go."""
    return COMMITTED.parent / "paper_figures" / "out" if results.resolve() == COMMITTED else results / "figures"


def _verify(args) -> int:
    from suite import environment, registry
    from suite.evidence.verify import rerun, verify
    from suite.records.tables import format_table

    for plugin in args.plugin:
        registry.load_plugin(plugin)
    pictures = _pictures(args.results)
    drawn = pictures.is_dir() or args.results.resolve() == COMMITTED  # a user may not have drawn any yet
    checked, problems = verify(args.results, pictures if drawn else None)
    if not checked and not problems:
        raise ValueError(f"{args.results}: no results to verify; start with: python -m suite run")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{args.results}: {checked} runs{' and their pictures' if drawn else ''} checked, {len(problems)} problems")
    if not args.rerun:
        return 1 if problems or not checked else 0
    rows = rerun(args.results, args.rerun, args.seed[0], environment.workers(None), args.plugin)
    print(format_table(rows, ("run", "compared", "agrees", "why")))
    return 0 if not problems and all(row["agrees"] for row in rows) else 1


def _report(args) -> int:
    from suite.evidence.report import blocks, write_readme

    if not (made := blocks(args.results)):
        raise ValueError(f"{args.results}: no laptop or frontier results to report; start with: python -m suite run")
    if args.write:
        write_readme(args.results)
    else:
        print("\n\n".join(made.values()))
    return 0


def _detect(args) -> int:
    from suite.verdict.detect import judge_logs

    judged = judge_logs(args.file, args.constant_loss, args.column)
    print("\n".join(json.dumps(found) for _, found in judged))
    if args.plot:
        from paper_figures.detected import draw_detected

        draw_detected(args.plot, judged)
    return 0


def _bench(args) -> int:
    from paper_figures.draw import draw_folder
    from suite.evidence.bench import FOLDER, bench

    try:
        with _interruptible():
            failed = bench(args.results, "quick" if args.quick else "full", args.only)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    drawn, broken = draw_folder(args.results / FOLDER, _pictures(args.results))
    for row in drawn:
        print(f"{row['figure']}: {row['file']}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed or broken else 0


def leave(*_: object) -> None:
    """Ctrl-C before anything was begun: libraries that are being imported turn a KeyboardInterrupt into errors of their own."""
    os.write(2, b"\nstopped\n")
    os._exit(130)


@contextmanager
def _interruptible():
    """Where there is something to stop in order, Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is not leave:  # not started by __main__, or ignored (`nohup`)
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, leave)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; a mistake of the user is one line on standard error and exit status 2."""
    args = parser().parse_args(argv)
    verbs = {"list": _list, "plan": _plan, "run": _run, "status": _status, "collect": _collect, "figures": _figures,
             "verify": _verify, "report": _report, "detect": _detect, "bench": _bench}  # fmt: skip
    try:
        return verbs[args.verb](args)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:  # the suite's own errors are ValueErrors
        print(f"error: {str(error).splitlines()[0] if str(error) else type(error).__name__}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from suite.sweep.sweep import SweepError

        if not isinstance(error, SweepError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
