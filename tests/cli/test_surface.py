"""The command line: frozen, quick to answer; list and plan, and the verbs that no other file tests."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import forked
import pytest
from commands import GOOD, call, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suite import cli, registry
from suite.data.dataset import NAMED
from suite.environment import ROOT
from suite.isolation import forks
from suite.isolation.catalogue import Catalogue
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.records.csvfile import read_rows, render
from suite.records.schema import TABLES
from suite.records.store import table_path
from suite.sweep.plan import Selection, make_plan

SELECTION = ["--protocol NAME", "--schemes A,B", "--params [SCHEME:]K=V,...", "--arms A,B", "--depths N,N", "--lrs X,X",
             "--seeds N,N", "--data SOURCE", "--control NAME", "--plugin FILE", "--precision X",
             "--shard I/N", "--results DIR"]
VERBS = {
    "list": ["--plugin FILE"],
    "plan": [*SELECTION, "--cost", "--gpus N,N"],
    "run": [*SELECTION, "--workers N", "--replicas N", "--features digits|inception", "--executor local|slurm", "--slurm K=V,...",
            "--retry-failed"],
    "enter": ["file FILE", "--workers N", "--results DIR"],
    "encode": ["--images DIR", "--captions FILE", "--out DIR", "--vae NAME", "--text NAME", "--size N", "--tokens N", "--batch N"],
    "status": ["--results DIR"],
    "collect": ["--from DIR", "--protocol NAME", "--results DIR"],
    "figures": ["--check", "--out DIR", "--results DIR"],
    "verify": ["--rerun K", "--seed N", "--plugin FILE", "--results DIR"],
    "report": ["--write", "--html FILE", "--results DIR"],
    "claims": ["--write", "--results DIR"],
    "detect": ["file", "--score MODULE:FUNCTION", "--column NAME", "--step NAME", "--constant-loss X", "--plot FILE", "--results DIR"],
    "bench": ["--quick", "--only EXPR", "--results DIR"],
    "autopsy": [*SELECTION],
}


# ---- the surface

def surface(parser) -> list[str]:
    out = []
    for action in parser._actions:
        if action.dest == "help":
            continue
        value = "|".join(action.choices) if action.choices else action.metavar or ""
        out.append(f"{'/'.join(action.option_strings) or action.dest} {value}".rstrip() if action.nargs != 0 else action.option_strings[0])
    return out


def test_verbs_and_flags_are_frozen():
    """Adding a verb or flag: add it here. Changing or dropping one breaks somebody's script."""
    verbs = cli.parser()._subparsers._group_actions[0].choices
    assert {name: surface(parser) for name, parser in verbs.items()} == VERBS


def test_defaults_are_frozen():
    args = vars(cli.parser().parse_args(["run"]))
    assert args == {"verb": "run", "protocol": "laptop", "schemes": None, "params": None, "arms": None, "depths": None,
                    "lrs": None, "seeds": None, "data": None, "control": None, "plugin": [], "precision": None, "shard": (1, 1),
                    "results": Path("results/local"),
                    "workers": None, "replicas": None, "features": "digits", "executor": "local", "slurm": [],
                    "retry_failed": False}


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help_imports_nothing_heavy(words):
    code = ("import sys, suite.cli\ntry: suite.cli.main(sys.argv[1:])\nexcept SystemExit: pass\n"
            "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'pandas', 'numpy', 'datasets', 'scipy', "
            "'sklearn', 'matplotlib', 'PIL', 'accelerate'}))")
    out = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "usage: python -m suite" in out and out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["suite.tables", "suite.protocol", "suite.registry", "suite.environment", "suite.verdict.outcome",
                                    "suite.detect.judge"])  # fmt: skip
def test_light_modules_do_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_unknown_flag_or_half_a_flag_is_refused(capsys):
    assert "--dep" in refused(capsys, "plan", "--dep", "3")
    assert "--colour" in refused(capsys, "run", "--colour", "red")
    assert "bogus" in refused(capsys, "bogus")
    assert "VERB" in refused(capsys)


# ---- list and plan

def test_list_shows_protocols_and_schemes(capsys):
    status, out, err = call(capsys, "list")
    assert status == 0 and not err
    for name in [*PROTOCOLS, *registry.names()]:
        assert any(line.split()[:1] == [name] for line in out), name


def test_list_shows_a_plugin(capsys, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(GOOD)
    status, out, _ = call(capsys, "list", "--plugin", plugin)
    assert status == 0 and any(line.split()[0] == "halved" for line in out if line.strip())
    assert [path.name for path in plugin.parent.iterdir() if path.name != "cwd"] == ["mine.py"]  # not even bytecode


def test_plan_says_what_is_to_do(capsys):
    status, out, err = call(capsys, "plan", "--protocol", "smoke", "--schemes", "plain")
    assert status == 0 and not err and all("to do" in line for line in out[:-1])
    assert out[-1] == "2 runs, 0 done"
    assert not list(Path().iterdir())


@pytest.fixture
def asked_once(monkeypatch):
    """What a plan asks other processes of the same schemes and data it asks once: of many plans most of the time."""
    answers, call, once = {}, Catalogue.call, forks.once

    def kept(ask, *key):
        if key not in answers:
            answers[key] = ask()
        return answers[key]

    monkeypatch.setattr(Catalogue, "call", lambda self, entry, *asked: kept(lambda: call(self, entry, *asked), entry.file, *asked))
    monkeypatch.setattr(forks, "once", lambda *asked: kept(lambda: once(*asked), *asked))


def ids(**selection):
    return [run.run_id for run in make_plan(Selection("smoke", **selection))]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 13])
def test_shards_partition_the_plan(asked_once, n):
    whole, parts = ids(), [ids(shard=(i, n)) for i in range(1, n + 1)]
    assert len(whole) == len(set(whole)) == 10
    assert sorted(sum(parts, [])) == sorted(whole) and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == [whole[i::n] for i in range(n)]  # every n-th, so that deep and shallow runs are shared out evenly


def test_a_selection_narrows_or_extends_the_plan(asked_once):
    whole = make_plan(Selection("smoke"))
    schemes = ("plain", "layerscale", "rezero", "deepnorm", "mvsplit")
    assert [(r.scheme, r.depth) for r in whole] == [(s, d) for s in schemes for d in (2, 3)]
    assert all(r.arm == "controlled" and r.seed == 0 and r.lr == 1e-3 and not r.compiled for r in whole)
    assert {r.writers for r in whole if r.scheme == "rezero"} == {"std"} and {r.writers for r in whole if r.scheme == "plain"} == {"zero"}
    part = make_plan(Selection("smoke", schemes=("mvsplit", "plain"), depths=(5,), lrs=(0.1, 0.2), seeds=(3, 4)))
    assert [(r.scheme, r.lr, r.seed) for r in part] == [(s, x, i) for s in ("mvsplit", "plain") for x in (0.1, 0.2) for i in (3, 4)]
    native = make_plan(Selection("smoke", arms=("native",), depths=(2,)))
    assert {r.scheme for r in native} == set(registry.names("native")) and {r.writers for r in native} == {"std"}
    params = make_plan(Selection("smoke", schemes=("plain", "mvsplit"), params=("mvsplit:beta=0.03", "plain:writers=std"), depths=(2,)))
    assert [(r.scheme, r.params, r.writers) for r in params] == [("mvsplit", "alpha=0,beta=0.03,sites=both", "zero"), ("plain", "-", "std")]


def test_the_same_parameters_in_other_words_are_the_same_run(asked_once):
    (base,) = ids(schemes=("mvsplit",), depths=(2,))
    for text in ("beta=1", "beta=1.0,alpha=0", " alpha = 0 ".replace(" ", ""), "sites=both,beta=1e0", "writers=zero,beta=1"):
        assert ids(schemes=("mvsplit",), depths=(2,), params=(text,)) == [base]
    assert ids(schemes=("mvsplit",), depths=(2,), params=("beta=1", "beta=1.0")) == [base]
    others = [ids(schemes=("mvsplit",), depths=(2,), params=(text,))[0] for text in ("beta=0.5", "alpha=1", "sites=attn", "writers=std")]
    assert len({base, *others}) == 5


def test_a_run_survives_its_way_to_a_worker():
    for protocol in PROTOCOLS.values():
        if protocol.data in NAMED:
            for run in make_plan(Selection(protocol.name))[:3]:
                again = Run.from_json(run.to_json())
                assert again == run and again.run_id == run.run_id


def test_the_run_id_sees_what_changes_the_numbers_and_nothing_else():
    smoke = PROTOCOLS["smoke"]
    base = Run(smoke, "mvsplit", "controlled", "alpha=0,beta=1,sites=both", "zero", 100, 4e-3, 0, "digits", "d" * 16, "c" * 16, True)
    ids = {"": base.run_id}
    for field, value in {"scheme": "plain", "depth": 99, "lr": 3e-3, "seed": 1, "compiled": False, "writers": "std", "arm": "native",
                         "data_digest": "e" * 16, "code_digest": "e" * 16}.items():
        ids[field] = Run(**{**vars(base), field: value}).run_id
    for field, value in {"name": "other", "version": 9, "width": 64, "beta2": 0.95, "horizon": 9, "dtype": "bf16", "nfe": 3}.items():
        ids[field] = Run(**{**vars(base), "protocol": replace(smoke, **{field: value})}).run_id
    assert len(set(ids.values())) == len(ids)
    for field, value in {"data": "imagefolder:elsewhere", "params": "as written"}.items():  # their digests count
        assert Run(**{**vars(base), field: value}).run_id == base.run_id
    for field, value in {"purpose": "x", "depths": (9,), "lrs": (9.0,), "seeds": (9,), "cells": (), "data": "x"}.items():
        assert Run(**{**vars(base), "protocol": replace(smoke, **{field: value})}).run_id == base.run_id, field


# ---- other verbs

def test_status_and_collect_of_nothing(capsys):
    status, out, err = call(capsys, "status")
    assert status == 0 and not err and "no results yet" in out[0]
    status, out, err = call(capsys, "collect")
    assert status == 2 and not out and "no results to collect" in err[0]
    assert not list(Path().iterdir())
    assert "unknown protocol" in refused(capsys, "collect", "--protocol", "smok")


CURVE = "step,loss\n" + "".join(f"{i},{0.8 if i < 200 else 2.0}\n" for i in range(1, 400))


def test_detect_prints_one_json_object(capsys):
    Path("log.csv").write_text(CURVE)
    for more in ([], ["--constant-loss", "2.0"]):
        status, out, err = call(capsys, "detect", "log.csv", *more)
        assert status == 0 and not err and len(out) == 1
        found = json.loads(out[0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert (found["outcome"], found["crash_step"], found["confirmed"]) == ("collapsed", 200, True)


@pytest.mark.parametrize(("text", "words"), [
    ("", "empty"), ("step,loss\n", "no rows"), ("a,b\n1,2\n", "'step'"), ("step,loss\n1,x\n", "not a number"),
    ("step,loss\n1,\n2,\n", "no row has a loss"), ("step,loss\n1,0.5\n2\n", "cut off"),
])
def test_detect_refuses_what_is_no_log(capsys, text, words):
    Path("log.csv").write_text(text)
    assert words in refused(capsys, "detect", "log.csv")


def test_detect_draws_what_it_found(capsys):
    Path("log.csv").write_text(CURVE + "400,nan\n")
    for name, start in (("seen.png", b"\x89PNG"), ("seen.pdf", b"%PDF")):
        assert call(capsys, "detect", "log.csv", "--plot", name)[0] == 0 and Path(name).read_bytes().startswith(start)
    for name, words in (("seen.txt", "ends in none of"), ("nowhere/seen.png", "cannot be written")):
        status, out, err = call(capsys, "detect", "log.csv", "--plot", name)
        assert status == 2 and len(out) == len(err) == 1 and words in err[0]  # the verdict is said all the same


def test_detect_refuses_bad_arguments(capsys):
    Path("log.csv").write_text(CURVE)
    assert "cannot be read" in refused(capsys, "detect", "nowhere.csv")
    for value in ("nan", "-1", "0", "inf", "high"):
        refused(capsys, "detect", "log.csv", f"--constant-loss={value}")


def test_detect_scores_a_detector(capsys, monkeypatch):
    """One that never speaks finds nothing; one that always does is wrong of every run. On three committed runs in a folder of their own."""
    runs, curves = TABLES["runs"], TABLES["curves"]
    rows = read_rows(ROOT / "results" / "laptop" / runs.path, runs)
    chosen = [row for outcome, n in (("survived", 2), ("collapsed", 1)) for row in [row for row in rows if row["outcome"] == outcome][:n]]
    for row in chosen:
        path = table_path(Path("mine/laptop"), curves, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(table_path(ROOT / "results" / "laptop", curves, row), path)
    Path("mine/laptop", runs.path).write_bytes(render(runs, chosen))
    Path("here.py").write_text("""
def never():
    return lambda step, loss, norm: None
def always():
    return lambda step, loss, norm: True
def late():
    return lambda step, loss, norm: 1 // (step < 10)
number = 3
""")
    monkeypatch.syspath_prepend(".")
    Path("log.csv").write_text(CURVE)
    monkeypatch.setattr("suite.evidence.online.SIMULATED", 2)
    for name, found in (("never", 0), ("always", 1)):
        status, out, err = call(capsys, "detect", "--score", f"here:{name}", "--results", "mine")
        first = json.loads(out[0])
        assert status == 0 and not err and first["detector"] == f"here:{name}" and first["lived"] == 2 and first["died"] == 1
        assert first["false_alarms"] == 2 * found and first["early"] == found
    assert "ZeroDivisionError at step 10 of run" in refused(capsys, "detect", "--score", "here:late", "--results", "mine")
    for what, words in (("here", "module:function"), ("nowhere:make", "cannot be imported"), ("here:none", "no function none"),
                        ("here:number", "no function number")):  # fmt: skip
        assert words in refused(capsys, "detect", "--score", what)
    assert "none of --column" in refused(capsys, "detect", "--score", "here:never", "--column", "a")
    assert "not allowed with" in refused(capsys, "detect", "--score", "here:never", "log.csv")
    assert "no runs here" in refused(capsys, "detect", "--score", "here:never", "--results", "empty")


def test_a_closed_pipe_is_no_traceback():
    heard, said = os.pipe()
    with open("err", "w") as err:
        pid = forked.suite("list", streams={1: said, 2: err.fileno(), heard: None})
    os.close(said)
    with open(heard) as out:
        assert out.readline() == "protocols\n"
    assert forked.status_of(pid) in (0, 141) and Path("err").read_text() == ""


def test_ctrl_c_while_libraries_are_imported():
    """Some turn a KeyboardInterrupt into an ImportError; this plugin swallows it."""
    Path("slow.py").write_text(f"import time\nopen({str(Path('go').resolve())!r}, 'w')\nfor _ in range(60):\n    try: time.sleep(1)\n"
                               "    except KeyboardInterrupt: pass\n")
    with open("err", "w") as err:
        pid = forked.suite("list", "--plugin", Path("slow.py").resolve(), streams={2: err.fileno()})
    while not Path("go").exists():
        time.sleep(0.01)
    started = time.monotonic()
    os.kill(pid, signal.SIGINT)
    assert forked.status_of(pid) == 130 and time.monotonic() - started < 2
    assert Path("err").read_text().strip() == "stopped"


# ---- any words at all

PIECE = st.one_of(st.sampled_from(["0", "1", "-1", "2", "1e-3", "nan", "inf", "-inf", "1_0", "plain", "native", "1/2", "2/1", "",
                                   " ", ",", "=", "²", "１", "0x10", "1e999", "beta=1", "mvsplit:beta=1"]), st.text(max_size=6))
VALUE = st.lists(PIECE, min_size=1, max_size=4).map(",".join)
FLAG = st.sampled_from(["--protocol", "--schemes", "--params", "--arms", "--depths", "--lrs", "--seeds", "--data", "--plugin",
                        "--shard", "--results", "--workers", "--features"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FLAG, VALUE).map("=".join), max_size=5))
def test_the_parser_gives_values_or_one_line(words):
    """Never another exception; what it lets through is in range."""
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            args = cli.parser().parse_args(["run", *words])
    except SystemExit as stop:
        assert stop.code == 2 and err.getvalue().startswith("error: ") and len(err.getvalue().splitlines()) == 1
        return
    assert all(0 < depth <= 100_000 and isinstance(depth, int) for depth in args.depths or ())
    assert all(0 < lr < float("inf") and float(f"{lr:g}") == lr for lr in args.lrs or ())
    assert all(0 <= seed < 2**31 for seed in args.seeds or ())
    for values in (args.schemes, args.arms, args.depths, args.lrs, args.seeds):
        assert values is None or (values and len(set(values)) == len(values))
    assert all(args.schemes or ("x",)) and 1 <= args.shard[0] <= args.shard[1] and (args.workers or 1) >= 1
    assert args.features in ("digits", "inception") and (args.data is None or args.data.strip())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schemes=st.none() | st.lists(st.sampled_from(["plain", "mvsplit", "rezero", "nosuch"]), min_size=1, max_size=3),
       arms=st.none() | st.lists(st.sampled_from(["controlled", "native", "x"]), min_size=1, max_size=2),
       params=st.none() | st.lists(st.one_of(st.text(max_size=10), st.sampled_from(
           ["beta=1", "mvsplit:alpha=.5", "plain:writers=std", "writers=zero", "init=3", "sites=ffn,beta=2"])), min_size=1, max_size=2),
       shard=st.sampled_from([(1, 1), (2, 3)]))
def test_the_plan_is_runs_or_one_line(asked_once, schemes, arms, params, shard):
    """A selection gives distinct runs whose parameters are canonical, or a ValueError of one line."""
    try:
        runs = make_plan(Selection("smoke", schemes and tuple(schemes), params and tuple(params), arms and tuple(arms), shard=shard))
    except ValueError as error:
        assert str(error).strip()
        return
    assert len({run.run_id for run in runs}) == len(runs)
    for run in runs:
        entry = registry.get(run.scheme, run.arm)
        assert registry.format_params(entry, registry.parse_params(entry, run.params)) == run.params
        assert run.writers in registry.WRITERS and run.params.isprintable()
