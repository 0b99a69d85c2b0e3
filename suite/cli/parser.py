"""What the command line takes; frozen by a test."""

from __future__ import annotations

import argparse
from pathlib import Path

from suite.environment import ROOT
from suite.numerals import decimal, directory, filled, list_of, positive, rate, shard, share, up_to, whole

RESULTS = Path("results/local")  # a user's own runs; the committed tables are made with --results results
ENTRIES = Path("results/entries")
TOKENS = 4096  # sixteen times the paper's; a caption of more would be longer than its image by far
COMMITTED = ROOT / "results"


class Parser(argparse.ArgumentParser):
    """Whole flags only, and a mistake is one line."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str):
        line = " ".join(message.split())
        self.exit(2, f"error: {line} (see: {self.prog} --help)\n")


def _selection_flags(parser: argparse.ArgumentParser, protocol: str = "laptop") -> None:
    names = list_of(str, "a name")
    parser.add_argument("--protocol", default=protocol, metavar="NAME", help=f"what is fixed (default: {protocol})")
    parser.add_argument("--schemes", type=names, metavar="A,B", help="residual schemes (default: the protocol's)")
    parser.add_argument("--params", type=filled, action="append", metavar="[SCHEME:]K=V,...",
                        help="scheme parameters, and writers=zero|std, gate_lr=FACTOR; repeat for more cells")
    parser.add_argument("--arms", type=names, metavar="A,B", help="controlled, native (default: the protocol's)")
    parser.add_argument("--depths", type=list_of(whole, "a number of blocks, 1 to 100000", lambda v: 0 < v <= 100_000), metavar="N,N")
    parser.add_argument("--lrs", type=list_of(decimal, "a positive learning rate of at most six digits", rate), metavar="X,X")
    parser.add_argument("--seeds", type=list_of(whole, "a seed, 0 to 2147483647", lambda v: 0 <= v < 2**31), metavar="N,N")
    parser.add_argument("--data", type=filled, metavar="SOURCE",
                        help="digits, mnist, latents:DIR, imagefolder:DIR, parquet:FILE or a hub name; options as "
                             "SOURCE,size=32,colour=grey,label=COLUMN,image=COLUMN,split=NAME")
    parser.add_argument("--control", type=filled, metavar="NAME",
                        help="a remedy that is no scheme, for every cell: a name of suite/controls.py, or none; never ranked")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE",
                        help="a Python file that registers schemes; it is executed")
    parser.add_argument("--precision", type=share, metavar="X",
                        help="of a search: half-width of an edge's 95 %% interval, as a share of the rate (default: 0.07)")
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
    plan = add("plan", help="the runs of a selection, and which are done")
    _selection_flags(plan)
    plan.add_argument("--cost", action="store_true", help="parameters, memory of a GPU, steps and hours instead, without a GPU")
    plan.add_argument("--gpus", type=list_of(positive, "a number of GPUs"), default=(), metavar="N,N",
                      help="with --cost: how many H100 (default: 1 where that holds every model, else 1 to 16)")
    run = add("run", help="train what is not done yet")
    _selection_flags(run)
    run.add_argument("--workers", type=positive, metavar="N", help="processes (default: one per GPU, or per usable core)")
    run.add_argument("--replicas", type=positive, metavar="N",
                     help="most runs, alike but for rate and seed, that are trained as one model (default: 1 on a CPU, by depth on CUDA)")
    run.add_argument("--features", choices=("digits", "inception"), default="digits", help="network behind FID (default: digits)")
    run.add_argument("--executor", choices=("local", "slurm"), default="local", help="this machine, or a Slurm cluster (default: local)")
    run.add_argument("--slurm", type=filled, action="append", default=[], metavar="K=V,...",
                     help="with --executor slurm: jobs=N,time=MINUTES and what submitit takes (partition, account, cpus_per_task, ...)")
    run.add_argument("--retry-failed", action="store_true", help="also repeat runs that ended in oom, timeout or error")
    enter = add("enter", help="a scheme of yours through the contract, the search and into the ranking; about 20 minutes on 2 idle cores")
    enter.add_argument("file", type=Path, metavar="FILE", help="a Python file that registers one scheme; it is executed")
    enter.add_argument("--workers", type=positive, metavar="N", help="processes (default: one per GPU, or per usable core)")
    enter.add_argument("--results", type=directory, default=ENTRIES, metavar="DIR",
                       help=f"a folder NAME is made in it, with all that a pull request adds (default: {ENTRIES})")
    enter.set_defaults(depth=100, replicas=None, features="digits", retry_failed=True)
    encode = add("encode", help="make a folder for --data latents:DIR: images through an autoencoder, captions through a text encoder")
    encode.add_argument("--images", type=directory, required=True, metavar="DIR", help="pictures; without --captions in class folders")
    encode.add_argument("--captions", type=Path, metavar="FILE", help="CSV, JSON lines or Parquet with file_name and caption")
    encode.add_argument("--out", type=directory, required=True, metavar="DIR", help="a call that was stopped goes on there")
    encode.add_argument("--vae", type=filled, metavar="NAME", help="a hub name or folder (default: FLUX.2's, as the paper)")
    encode.add_argument("--text", type=filled, metavar="NAME", help="a hub name or folder (default: Qwen3-0.6B, as the paper)")
    encode.add_argument("--size", type=positive, metavar="N", help="pixels of the square (default: 256, as the paper)")
    encode.add_argument("--tokens", type=up_to(TOKENS, f"every caption is padded to it: {TOKENS} at most"), metavar="N",
                        help="of every caption (default: the longest's, at most 256)")
    encode.add_argument("--batch", type=positive, metavar="N", help="images at once (default: what fits)")
    autopsy = add("autopsy", help="train runs again, here and one by one, and ask what their networks use; about a minute a run")
    _selection_flags(autopsy, "autopsy")
    _results_flag(add("status", help="how many runs of each protocol are done, by outcome"))
    collect = add("collect", help="your cells beside the committed ones; with --from, after gathering other folders into yours")
    collect.add_argument("--from", dest="sources", type=directory, nargs="+", action="extend", default=[], metavar="DIR",
                         help="results folders to gather into --results first")
    collect.add_argument("--protocol", metavar="NAME", help="one protocol (default: all)")
    _results_flag(collect)
    figures = add("figures", help="draw every figure its tables allow")
    figures.add_argument("--check", action="store_true", help="draw nothing: do the pictures that are there show what the tables give?")
    figures.add_argument("--out", type=Path, metavar="DIR", help="default: paper_figures/out for results, DIR/figures otherwise")
    _results_flag(figures)
    verify = add("verify", help="recompute what can be recomputed from the tables; exit status 1 where something differs")
    verify.add_argument("--rerun", type=positive, metavar="K", help="also train K randomly chosen committed runs again")
    verify.add_argument("--seed", type=list_of(whole, "a seed"), default=(0,), metavar="N", help="which K (default: 0)")
    verify.add_argument("--plugin", action="append", default=[], metavar="FILE", help="schemes of these runs that are not in baselines/")
    verify.add_argument("--results", type=directory, default=COMMITTED, metavar="DIR",
                        help="default: the committed tables; of a folder that `enter` has made, the scheme's file in it is executed")
    report = add("report", help="the outcomes of `laptop` and the critical rates of `frontier`, in Markdown")
    report.add_argument("--write", action="store_true", help="put them into README.md and docs/")
    report.add_argument("--html", type=Path, metavar="FILE", help="instead write one page with all of it, claims and figures too")
    report.add_argument("--results", type=directory, default=COMMITTED, metavar="DIR", help="default: the committed tables")
    claims = add("claims", help="a verdict on every claim of the paper, in Markdown")
    claims.add_argument("--write", action="store_true", help="write them to REPRODUCTION.md")
    claims.add_argument("--results", type=directory, default=COMMITTED, metavar="DIR", help="default: the committed tables")
    detect = add("detect", help="what became of a run, from its log: CSV, JSON (lines), printed output, event files, gz; - for a pipe")
    what = detect.add_mutually_exclusive_group(required=True)
    what.add_argument("file", type=Path, nargs="?")
    what.add_argument("--score", metavar="MODULE:FUNCTION",
                      help="instead of judging a log, score a detector of yours on our runs, row by row (docs/detect.md)")  # fmt: skip
    detect.add_argument("--column", metavar="NAME", help="the column of the loss, where it cannot be told")
    detect.add_argument("--step", metavar="NAME", help="the column that counts the steps, where it cannot be told")
    detect.add_argument("--constant-loss", type=float, metavar="X", help="loss of the best constant predictor, if known")
    detect.add_argument("--plot", type=Path, metavar="FILE", help="draw the loss and what was found: .png, .pdf or .svg")
    detect.add_argument("--results", type=directory, default=COMMITTED, metavar="DIR", help="with --score: the runs (default: committed)")
    bench = add("bench", help="what a step costs by scheme and depth, beside the project's targets; about 40 minutes on an idle machine")
    bench.add_argument("--quick", action="store_true", help="two schemes and few depths, in about five minutes")
    bench.add_argument("--only", default="", metavar="EXPR", help="rows whose name fits, as in: 'cuda and step'")
    _results_flag(bench)
    return top
