"""The command line: frozen, quick to answer, and one line with status 2 for whatever a user can get wrong."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import cli, registry
from suite.plan import Selection, make_plan
from suite.protocol import PROTOCOLS, Run

ROOT = Path(__file__).resolve().parent.parent
SELECTION = ["--protocol NAME", "--schemes A,B", "--params [SCHEME:]K=V,...", "--arms A,B", "--depths N,N", "--lrs X,X",
             "--seeds N,N", "--data SOURCE", "--plugin FILE", "--shard I/N", "--results DIR"]
VERBS = {
    "list": ["--plugin FILE"],
    "plan": SELECTION,
    "run": [*SELECTION, "--workers N", "--features digits|inception", "--executor local|slurm", "--slurm K=V,...",
            "--kernels auto|off", "--retry-failed"],
    "status": ["--results DIR"],
    "collect": ["--from DIR", "--protocol NAME", "--results DIR"],
    "figures": ["--out DIR", "--results DIR"],
    "verify": ["--rerun K", "--seed N", "--plugin FILE", "--results DIR"],
    "report": ["--write", "--results DIR"],
    "detect": ["file", "--constant-loss X"],
    "bench": ["--quick", "--results DIR"],
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory, and a registry that forgets the plugins of a test."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    registry.discover()
    entries, modules = dict(registry._entries), set(sys.modules)
    yield folder
    registry._entries.clear()
    registry._entries.update(entries)
    for name in set(sys.modules) - modules:
        if name.startswith("screambench_plugin"):
            del sys.modules[name]


def call(capsys, *words):
    """(status, lines on standard output, lines on standard error) of a command in this process."""
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def refused(capsys, *words):
    """The one line of a command that must fail with status 2 and leave nothing behind."""
    before = sorted(Path().rglob("*"))
    status, out, err = call(capsys, *words)
    assert (status, len(err)) == (2, 1), (status, err)
    assert not out and err[0].startswith("error: ") and "Traceback" not in err[0]
    assert sorted(Path().rglob("*")) == before, "something was written"
    return err[0]


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
                    "lrs": None, "seeds": None, "data": None, "plugin": [], "shard": (1, 1), "results": Path("results/local"),
                    "workers": None, "features": "digits", "executor": "local", "slurm": [], "kernels": "auto",
                    "retry_failed": False}


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help_imports_nothing_heavy(words):
    code = ("import sys, suite.cli\ntry: suite.cli.main(sys.argv[1:])\nexcept SystemExit: pass\n"
            "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'pandas', 'numpy', 'datasets', 'scipy', "
            "'sklearn', 'matplotlib', 'PIL', 'accelerate'}))")
    out = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "usage: python -m suite" in out and out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["suite.tables", "suite.protocol", "suite.registry", "suite.schema", "suite.environment"])
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
    assert status == 0 and not err and out[-1] == "2 runs, 0 done" and all("to do" in line for line in out[:-1])
    assert not list(Path().iterdir())


def ids(**selection):
    return [run.run_id for run in make_plan(Selection("smoke", **selection))]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 13])
def test_shards_partition_the_plan(n):
    whole, parts = ids(), [ids(shard=(i, n)) for i in range(1, n + 1)]
    assert len(whole) == len(set(whole)) == 10
    assert sorted(sum(parts, [])) == sorted(whole) and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == [whole[i::n] for i in range(n)]  # every n-th, so that deep and shallow runs are shared out evenly


def test_a_selection_narrows_or_extends_the_plan():
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
    assert [(r.scheme, r.params, r.writers) for r in params] == [("mvsplit", "alpha=0,beta=0.03,sites=both", "zero"), ("plain", "", "std")]


def test_the_same_parameters_in_other_words_are_the_same_run():
    (base,) = ids(schemes=("mvsplit",), depths=(2,))
    for text in ("beta=1", "beta=1.0,alpha=0", " alpha = 0 ".replace(" ", ""), "sites=both,beta=1e0", "writers=zero,beta=1"):
        assert ids(schemes=("mvsplit",), depths=(2,), params=(text,)) == [base]
    assert ids(schemes=("mvsplit",), depths=(2,), params=("beta=1", "beta=1.0")) == [base]
    others = [ids(schemes=("mvsplit",), depths=(2,), params=(text,))[0] for text in ("beta=0.5", "alpha=1", "sites=attn", "writers=std")]
    assert len({base, *others}) == 5


def test_a_run_survives_its_way_to_a_worker():
    for protocol in PROTOCOLS.values():
        if protocol.data == "digits":
            for run in make_plan(Selection(protocol.name))[:3]:
                again = Run.from_json(run.to_json())
                assert again == run and again.run_id == run.run_id


def test_the_run_id_sees_what_changes_the_numbers_and_nothing_else():
    smoke = PROTOCOLS["smoke"]
    base = Run(smoke, "mvsplit", "controlled", "alpha=0,beta=1,sites=both", "zero", 100, 4e-3, 0, "digits", "d" * 16, "c" * 16, True)
    ids = {"": base.run_id}
    for field, value in {"scheme": "plain", "depth": 99, "lr": 3e-3, "seed": 1, "compiled": False, "writers": "std", "arm": "native",
                         "data_digest": "e" * 16, "code_digest": "e" * 16, "params": "alpha=1,beta=1,sites=both"}.items():
        ids[field] = Run(**{**vars(base), field: value}).run_id
    for field, value in {"name": "other", "version": 9, "width": 64, "beta2": 0.95, "horizon": 9, "dtype": "bf16", "nfe": 3}.items():
        ids[field] = Run(**{**vars(base), "protocol": replace(smoke, **{field: value})}).run_id
    assert len(set(ids.values())) == len(ids)
    assert Run(**{**vars(base), "data": "imagefolder:elsewhere"}).run_id == base.run_id  # a path; the digest counts
    for field, value in {"purpose": "x", "depths": (9,), "lrs": (9.0,), "seeds": (9,), "cells": (), "data": "x"}.items():
        assert Run(**{**vars(base), "protocol": replace(smoke, **{field: value})}).run_id == base.run_id, field


# ---- what a user can get wrong

@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(("flag", "value", "culprit"), [
    ("--protocol", "smok", "smok"), ("--protocol", "", "unknown protocol"),
    ("--schemes", "plian", "did you mean plain"), ("--schemes", "", "not a name"), ("--schemes", "plain,,rezero", "not a name"),
    ("--schemes", "xyzzy", "known:"), ("--schemes", "../../etc", "unknown scheme"),
    ("--arms", "natural", "natural"), ("--arms", ",", "not a name"),
    ("--params", "beta", "beta"), ("--params", "gamma=1", "gamma=1"), ("--params", "mvsplit:beta=x", "beta='x'"),
    ("--params", "mvsplit:beta=nan", "finite"), ("--params", "deepnorm:beta=inf", "finite"),
    ("--params", "mvsplit:beta=0.123456789", "six significant"), ("--params", "mvsplit:beta=1,beta=2", "given twice"),
    ("--params", "mvsplit:sites=all", "sites='all'"), ("--params", "nosuch:beta=1", "not selected"),
    ("--params", "", "empty"), ("--params", "mvsplit:", "names no parameter"), ("--params", ":beta=1", "not selected"),
    ("--params", "plain:writers=none", "writers=none"), ("--params", "plain:writers=", "writers is empty"),
    ("--params", "plain:writers=std,writers=zero", "given twice"), ("--params", "rezero:writers=zero", "refuses zero writers"),
    ("--params", "mvsplit:sites=a\nb", "sites"),
    ("--depths", "0", "0"), ("--depths", "-3", "-3"), ("--depths", "2.5", "2.5"), ("--depths", "two", "two"),
    ("--depths", "2,,3", "''"), ("--depths", "1000000000", "1000000000"), ("--depths", "9" * 5000, "is not"),
    ("--lrs", "0", "0"), ("--lrs", "-1e-3", "-1e-3"), ("--lrs", "nan", "nan"), ("--lrs", "inf", "inf"), ("--lrs", "fast", "fast"),
    ("--lrs", "1e-400", "1e-400"), ("--lrs", "0.00123456789", "six digits"),
    ("--seeds", "-1", "-1"), ("--seeds", "1.5", "1.5"), ("--seeds", str(10**20), str(10**20)), ("--seeds", "", "''"),
    ("--data", "", "empty"), ("--data", "imagefolder:/nowhere", "/nowhere"), ("--data", "parquet:/nowhere.parquet", "/nowhere"),
    ("--data", "digits,size=16", "takes no options"),
    ("--plugin", "nowhere.py", "no such file"), ("--plugin", "", "no such file"),
    ("--shard", "3/2", "3/2"), ("--shard", "0/2", "0/2"), ("--shard", "1", "'1'"), ("--shard", "1/2/3", "1/2/3"),
    ("--shard", "-1/2", "-1/2"), ("--shard", "a/b", "a/b"), ("--shard", "²/³", "²/³"),
    ("--results", "", "empty"),
])
def test_bad_values(capsys, verb, flag, value, culprit):
    selection = [] if flag == "--protocol" else ["--protocol", "smoke"]
    assert culprit in refused(capsys, verb, *selection, f"{flag}={value}")


@pytest.mark.parametrize(("flag", "value"), [("--workers", "0"), ("--workers", "-1"), ("--workers", "two"), ("--workers", "1.5"),
                                             ("--features", "vgg"), ("--executor", "cloud")])
def test_bad_values_of_run_alone(capsys, flag, value):
    assert value in refused(capsys, "run", "--protocol", "smoke", f"{flag}={value}")


def test_slurm_settings_without_slurm(capsys):
    assert "goes with --executor slurm" in refused(capsys, "run", "--protocol", "smoke", "--slurm", "jobs=2,time=5")


def test_inception_without_weights_is_refused_before_training(capsys, monkeypatch):
    monkeypatch.delenv("INCEPTION_WEIGHTS", raising=False)
    assert "weights" in refused(capsys, "run", "--protocol", "smoke", "--features", "inception")


def test_a_flag_without_its_value(capsys):
    for flag in ("--depths", "--protocol", "--results"):
        assert flag in refused(capsys, "run", flag)


@pytest.mark.parametrize("verb", ["plan", "run", "status", "collect"])
def test_results_that_are_a_file(capsys, verb):
    Path("taken").write_text("x")
    assert "taken is a file" in refused(capsys, verb, "--results", "taken")
    if verb == "run":
        refused(capsys, verb, "--protocol", "smoke", "--results", "taken/below")


def test_damaged_tables_are_named(capsys):
    Path("r/smoke").mkdir(parents=True)
    for content, words in ((b"", "empty"), (b"run_id,protocol\n", "header"), (b"\xff\n", "UTF-8")):
        Path("r/smoke/runs.csv").write_bytes(content)
        for verb in (["plan", "--protocol", "smoke"], ["run", "--protocol", "smoke"], ["status"]):
            message = refused(capsys, *verb, "--results", "r")
            assert "runs.csv" in message and words in message


def test_other_schema_version_is_refused(capsys):
    Path("r/smoke").mkdir(parents=True)
    Path("r/smoke/runs.csv").write_text("x\n")
    Path("r/smoke/datapackage.json").write_text('{"schema_version": "99", "resources": []}')
    assert "schema version '99'" in refused(capsys, "plan", "--protocol", "smoke", "--results", "r")


def test_images_that_do_not_divide_into_patches(capsys, tmp_path):
    import numpy as np
    from PIL import Image

    for i in range(30):
        (tmp_path / "odd" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (7, 9), dtype=np.uint8)).save(tmp_path / "odd" / str(i % 2) / f"{i}.png")
    message = refused(capsys, "run", "--protocol", "smoke", "--data", f"imagefolder:{tmp_path}/odd")
    assert "7 x 7" in message and "size=6" in message
    assert call(capsys, "plan", "--protocol", "smoke", "--data", f"imagefolder:{tmp_path}/odd,size=6")[0] == 0


# ---- plugins

HEAD = "import torch\nfrom suite.registry import register\nfrom suite.residual import Residual\n"
GOOD = HEAD + "@register('halved')\nclass Halved(Residual):\n    def merge(self, x, f, ctx): return x + 0.5 * f\n"
SCHEME = HEAD + "@register('bad')\nclass Bad(Residual):\n"
PLUGINS = {
    "syntax": ("def broken(:\n", "line 1: SyntaxError"),
    "raises": ("raise RuntimeError('on purpose')\n", "RuntimeError: on purpose"),
    "exits": ("import sys; sys.exit(0)\n", "SystemExit"),
    "imports": ("import no_such_module\n", "no_such_module"),
    "empty": ("", "registers no scheme"),
    "binary": ("\0", "--plugin"),
    "duplicate": (GOOD.replace("'halved'", "'plain'"), "is already registered by"),
    "name": (GOOD.replace("'halved'", "'Half life'"), "scheme name 'Half life'"),
    "arm": (GOOD.replace("'halved'", "'halved', arm='wild'"), "arm 'wild'"),
    "function": (HEAD + "@register('bad')\ndef bad(x): return x\n", "not a class derived from"),
    "no residual": (HEAD + "@register('bad')\nclass Bad: pass\n", "not a class derived from"),
    "no default": (SCHEME + "    def __init__(self, site, gain): super().__init__(site)\n", "gain needs a default"),
    "odd default": (SCHEME + "    def __init__(self, site, gain=None): super().__init__(site)\n", "the default of gain"),
    # below: they would come back from the column `params` as another value, which the run would use without a word
    **{f"default {value}": (SCHEME + f"    def __init__(self, site, ok=1, gain={value}): super().__init__(site)\n", "the default of gain, ")
       for value in ("'a,b'", "'a '", "1 / 3", "float('nan')", "'x\\ny'")},
}
SCHEMES = {
    "constructor": ("    def __init__(self, site): raise ValueError('no depth today')\n", "no depth today"),
    "no merge": ("    pass\n", "scheme bad"),
    "merge raises": ("    def merge(self, x, f, ctx): return x + undefined\n", "NameError"),
    "wrong shape": ("    def merge(self, x, f, ctx): return (x + f)[:, :1]\n", "came back as (2, 1, 8)"),
    "wrong rank": ("    def merge(self, x, f, ctx): return (x + f).mean()\n", "scheme bad"),
    "nan": ("    def merge(self, x, f, ctx): return (x + f) * float('nan')\n", "nan or inf"),
    "no tensor": ("    def forward(self, x, branch, ctx): return None\n", "came back as NoneType"),
}


@pytest.mark.parametrize("kind", PLUGINS)
def test_plugins_that_cannot_be_loaded(capsys, tmp_path, kind):
    text, words = PLUGINS[kind]
    (tmp_path / "mine.py").write_text(text)
    for verb in ("plan", "list"):
        message = refused(capsys, verb, "--plugin", tmp_path / "mine.py")
        assert words in message and "mine.py" in message
    assert call(capsys, "plan", "--protocol", "smoke")[0] == 0  # nothing of it stays


@pytest.mark.parametrize("kind", SCHEMES)
def test_schemes_that_cannot_work(capsys, tmp_path, kind):
    text, words = SCHEMES[kind]
    (tmp_path / "mine.py").write_text(SCHEME + text)
    message = refused(capsys, "run", "--protocol", "smoke", "--plugin", tmp_path / "mine.py", "--schemes", "bad")
    assert words in message


def test_a_default_text_keeps_its_case(tmp_path):
    upper = "    def __init__(self, site, first: int = 1, mode='Ab'): super().__init__(site)\n"
    (tmp_path / "p.py").write_text(SCHEME.replace("bad", "upper") + upper)
    registry.load_plugin(tmp_path / "p.py")
    entry = registry.get("upper")
    try:
        assert registry.format_params(entry, {}) == "first=1,mode=Ab"
        assert registry.parse_params(entry, registry.format_params(entry, {"mode": "A b"})) == {"first": 1, "mode": "A b"}
    finally:
        del registry._entries["upper", "controlled"]


def test_a_plugin_that_is_no_python_file(capsys, tmp_path):
    (tmp_path / "mine.txt").write_text(GOOD)
    assert "end in .py" in refused(capsys, "list", "--plugin", tmp_path / "mine.txt")
    assert "no such file" in refused(capsys, "list", "--plugin", tmp_path)


def test_two_plugins_with_one_name(capsys, tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(GOOD)
    message = refused(capsys, "list", "--plugin", tmp_path / "a.py", "--plugin", tmp_path / "b.py")
    assert "b.py is already registered by" in message and "a.py; choose another name" in message


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
    ("step,loss\n1,0.5\n1,0.5\n", "appears twice"), ("step,loss\n2,0.5\n1,0.5\n", "comes after"), ("step,loss\n1,0.5\n2\n", "cut off"),
])
def test_detect_refuses_what_is_no_log(capsys, text, words):
    Path("log.csv").write_text(text)
    assert words in refused(capsys, "detect", "log.csv")


def test_detect_refuses_bad_arguments(capsys):
    Path("log.csv").write_text(CURVE)
    assert "cannot be read" in refused(capsys, "detect", "nowhere.csv")
    for value in ("nan", "-1", "0", "inf", "high"):
        refused(capsys, "detect", "log.csv", f"--constant-loss={value}")


def test_a_closed_pipe_is_no_traceback():
    words = f"{sys.executable} -m suite list | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert done.stdout == "protocols\n" and done.stderr == "" and done.returncode in (0, 141)


def test_ctrl_c_while_libraries_are_imported():
    """Some turn a KeyboardInterrupt into an ImportError; this plugin swallows it."""
    Path("slow.py").write_text("import time\nprint('go', flush=True)\nfor _ in range(60):\n    try: time.sleep(1)\n"
                               "    except KeyboardInterrupt: pass\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "suite", "list", "--plugin", Path("slow.py").resolve()], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout.readline() == "go\n"
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.strip() == "stopped" and time.monotonic() - started < 2


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


@settings(max_examples=100, deadline=None)
@given(schemes=st.none() | st.lists(st.sampled_from(["plain", "mvsplit", "rezero", "nosuch"]), min_size=1, max_size=3),
       arms=st.none() | st.lists(st.sampled_from(["controlled", "native", "x"]), min_size=1, max_size=2),
       params=st.none() | st.lists(st.one_of(st.text(max_size=10), st.sampled_from(
           ["beta=1", "mvsplit:alpha=.5", "plain:writers=std", "writers=zero", "init=3", "sites=ffn,beta=2"])), min_size=1, max_size=2),
       shard=st.sampled_from([(1, 1), (2, 3)]))
def test_the_plan_is_runs_or_one_line(schemes, arms, params, shard):
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
