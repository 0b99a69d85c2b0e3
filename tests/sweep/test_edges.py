"""Files that somebody else has put there, streams that are closed or full, plugins that leave by the back door: the work goes on."""

import io
import json
import os
import stat
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
from sweeps import WORDS, left_over, plan, rows, tables, work

from paper_figures import draw
from paper_figures.samples import samples
from suite import cli, environment
from suite.environment import ROOT
from suite.numerals import decimal, whole
from suite.records.completeness import is_picture
from suite.records.store import picture_path
from suite.sweep.work_folder import record_path, work_folder

ONE = ["run", "--protocol", "smoke", "--schemes", "plain", "--depths", "2"]
PLUGIN = """
import sys, torch
from suite.registry import register
from suite.residual import Residual
{top}

@register("odd")
class Odd(Residual):
    def merge(self, x_BTD, f_BTD, ctx):
        {body}
        return x_BTD + f_BTD
"""


def program(*words, env=None, shell=""):
    """`python -m suite ...`, in a shell."""
    line = " ".join([sys.executable, "-m", "suite", *map(str, words), shell])
    return subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ | (env or {}))


def command(*words):
    """The same in this process, with streams as Python opens them."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True) for errors in ("strict", "backslashreplace"))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
    return SimpleNamespace(returncode=status, stdout=out.buffer.getvalue().decode(), stderr=err.buffer.getvalue().decode())


# ---- the cache of compiled code

def cache_in(home, **env):
    code = "from suite import environment; print(environment.compile_cache())"
    clean = {k: v for k, v in os.environ.items() if k not in ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=clean | {"HOME": str(home)} | env)
    return Path(done.stdout.strip())


def test_the_cache_is_the_users_own(tmp_path):
    usual = cache_in(tmp_path)
    assert usual.parent == tmp_path / ".cache" / "screambench" and stat.S_IMODE(usual.stat().st_mode) == 0o700
    assert cache_in(tmp_path, XDG_CACHE_HOME=str(tmp_path / "x")).parent == tmp_path / "x" / "screambench"
    assert cache_in(tmp_path, XDG_CACHE_HOME="relative").parent == usual.parent  # as its specification has it
    mine = cache_in(tmp_path, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "mine"))
    assert mine == tmp_path / "mine" / usual.name and cache_in(tmp_path, TORCHINDUCTOR_CACHE_DIR=str(mine)) == mine  # as a worker has it
    assert cache_in(tmp_path, ATEN_CPU_CAPABILITY="avx2").name != usual.name
    usual.chmod(0o777)  # anybody may have planted something here
    assert usual not in (private := cache_in(tmp_path)).parents and private != usual
    usual.chmod(0o700)
    (tmp_path / "file").write_text("")
    assert cache_in(tmp_path / "file").name.startswith("screambench-")  # no folder can be made there


FIRST_LOSSES = """
import sys, tempfile, torch
from pathlib import Path
from dataclasses import replace
from suite.data.load import cached
from suite.sweep.plan import Selection, make_plan
from suite.training.trainer import Trainer
torch.set_num_threads(1)
(run,) = make_plan(Selection("laptop", schemes=("rezero",), depths=(3,), lrs=(1e-2,)))
trainer = Trainer(replace(run, compiled=sys.argv[1] == "compiled"), cached("digits"), Path(tempfile.mkdtemp()))
for _ in range(4):
    trainer.advance()
print(*(loss for _, loss, _ in trainer.state.curve))
"""


@pytest.mark.slow
@pytest.mark.skipif(not environment.compiler(), reason="no C++ compiler")
def test_compiled_code_of_another_instruction_set_is_not_taken(tmp_path):
    """One cache for processes with wide and with narrow vectors: all start as the eager run does. (They gave nan.)"""

    def losses(kind, isa=None):
        env = {k: v for k, v in os.environ.items() if k not in ("TORCHINDUCTOR_CACHE_DIR", "ATEN_CPU_CAPABILITY")}
        env |= {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"} | ({"ATEN_CPU_CAPABILITY": isa} if isa else {})
        done = subprocess.run([sys.executable, "-c", FIRST_LOSSES, kind], cwd=ROOT, capture_output=True, text=True, env=env)
        return [float(word) for word in done.stdout.split()]

    eager = losses("eager")
    assert len(eager) == 4
    for isa in (None, "avx2", "default", None):
        assert losses("compiled", isa) == pytest.approx(eager, rel=1e-4), isa


def test_nothing_in_a_results_folder_is_loaded_as_code(tmp_path):
    work(plan(("plain",), depths=(2,)), tmp_path)
    assert not list(tmp_path.rglob("compile-cache")) and left_over(tmp_path) == []


DAMAGED = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from suite.data.load import cached
from suite.sweep.plan import Selection, make_plan
from suite.training.trainer import Trainer

run, *_ = make_plan(Selection("laptop", schemes=("plain",), depths=(1,)))
trainer = Trainer(run, cached("digits"), Path("nowhere"))
assert trainer.advance()
print(trainer.state.curve[0])
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # nine processes that compile
@pytest.mark.skipif(not environment.compiler(), reason="no C++ compiler")
def test_a_damaged_cache_is_dropped_and_filled_again(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def first_loss():
        done = subprocess.run([sys.executable, "-c", DAMAGED], cwd=ROOT, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-900:]
        return done.stdout

    good = first_loss()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".so" for path in files)
    for keep, of in ((100, files), (0, files), (5000, [path for path in files if path.suffix == ".so"]),
                     (50, [path for path in files if path.suffix != ".so"])):  # fmt: skip
        for path in of:
            path.write_bytes(path.read_bytes()[:keep])
        assert first_loss() == good, keep
        assert first_loss() == good


# ---- what lies in a working folder

@pytest.fixture
def record(replayed, known, tmp_path):
    """The record of a run, as text."""
    (run,) = plan(("plain",), depths=(2,))
    work([run], tmp_path / "aside")
    replayed.clear()
    return known[run.run_id][0]


@pytest.mark.parametrize("change", [
    lambda r: r["run"].update(depth=[2]), lambda r: r.update(curve=3), lambda r: r["curve"].append("x"), lambda r: r["run"].pop("scheme"),
    lambda r: r["run"].update(status=7), lambda r: r["run"].update(last_step="x"), lambda r: r["curve"][0].update(loss={"a": 1}),
    lambda r: r["run"].update(final_loss="low"), lambda r: r.update(evals=[[1, 2]]), lambda r: r["run"].update(seed=10**30),
])  # fmt: skip
def test_a_record_that_was_edited_by_hand_is_trained_again(reference, record, tmp_path, replayed, change):
    (run,) = plan(("plain",), depths=(2,))
    record = json.loads(record)
    change(record)
    path = record_path(tmp_path, run.run_id)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    done = work([run], tmp_path)
    assert done.broken == [] and replayed == [run.run_id] and rows(tmp_path)[run.run_id] == rows(reference)[run.run_id]


def test_a_file_where_a_checkpoint_should_be_is_passed_over(reference, tmp_path):
    (run,) = plan(("plain",), depths=(2,))
    folder = work_folder(tmp_path, run.run_id)
    folder.mkdir(parents=True)
    for name in ("step-00000008", "step-00000012", "step-99999999"):
        (folder / name).write_text("no folder")
    (folder / "step-00000004").symlink_to(tmp_path)
    done = work([run], tmp_path)
    assert done.broken == [] and rows(tmp_path)[run.run_id] == rows(reference)[run.run_id] and tmp_path.is_dir()


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_picture_that_is_none_is_made_again_and_stops_no_figure(copy, replayed, content, monkeypatch):
    monkeypatch.setattr(draw, "figures", lambda: [samples])  # the figure of such pictures
    (run,) = plan(("plain",), depths=(2,))
    path = picture_path(copy / "smoke", run.scheme, run.depth, run.run_id)
    whole_picture = path.read_bytes()
    path.write_bytes(whole_picture[:-20] if content is None else content)
    assert not is_picture(path)
    done = command("figures", "--results", copy, "--out", copy / "figures")
    assert done.returncode == 0 and "Traceback" not in done.stderr + done.stdout
    work(plan(), copy)
    assert replayed == [run.run_id] and path.read_bytes() == whole_picture and is_picture(path)


# ---- streams

def trained_alone(results):
    (run,) = plan(("plain",), depths=(2,))
    assert rows(results)[run.run_id]["status"] == "done"
    assert (results / "smoke" / "runs.csv").read_text().startswith("run_id,")  # and nothing was printed into it


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["2>&-", "2>/dev/full", ">&-", ">/dev/full", "<&-", ">&- 2>&- <&-"])
def test_nobody_has_to_listen(tmp_path, shell):
    program(*ONE, "--results", tmp_path, shell=shell)
    trained_alone(tmp_path)


@pytest.mark.parametrize(("closed", "full"), [((0, 1, 2), ()), ((0, 1), (2,)), ((2,), (1,))])
def test_closed_and_full_streams_stop_nothing(tmp_path, closed, full):
    """The same, forked."""
    with open("/dev/full", "w") as nowhere:
        forked.status_of(forked.suite(*ONE, "--results", tmp_path, streams=dict.fromkeys(closed) | dict.fromkeys(full, nowhere.fileno())))
    trained_alone(tmp_path)


# ---- plugins

@pytest.mark.parametrize(("top", "body", "message"), [
    ("sys.exit(3)", "pass", "SystemExit: 3"), ("raise BaseException('out')", "pass", "BaseException: out"),
    ("", "raise GeneratorExit('out')", "GeneratorExit: out"), ("", "sys.exit('gone')", "SystemExit: gone"),
    ("raise ValueError('\\udcff')", "pass", "ValueError: \\udcff"), ("", "raise ValueError('\\udcff')", "ValueError: \\udcff"),
])  # fmt: skip
def test_a_plugin_that_leaves_is_one_line(tmp_path, top, body, message):
    file = tmp_path / "odd.py"
    file.write_text(PLUGIN.format(top=top, body=body))
    done = command("plan", "--plugin", file, "--schemes", "odd", "--results", tmp_path / "r")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


LEAVES = ["raise ValueError('\\udcff')", "raise BaseException('out')", "sys.exit(1)", "raise KeyboardInterrupt"]
SCHEMES = """
import sys, torch
from suite.registry import register
from suite.residual import Residual

@register("odd")
class Odd(Residual):
    def __init__(self, site, what: int = 0):
        super().__init__(site)
        self.what = what

    def merge(self, x_BTD, f_BTD, ctx):
        if x_BTD.shape[0] > 2 and x_BTD.requires_grad:
"""


def test_a_scheme_that_leaves_in_training_is_a_row(tmp_path):
    """However it leaves, each time the worker goes with it, and the sweep goes on."""
    lines = [f"            if self.what == {i}: {what}\n" for i, what in enumerate(LEAVES)]
    file = tmp_path / "odd.py"
    file.write_text(SCHEMES.lstrip() + "".join(lines) + "        return x_BTD + f_BTD\n")
    params = [f"--params=odd:what={i}" for i in range(len(LEAVES))]
    words = ["run", "--protocol", "smoke", "--depths", "2", "--schemes", "odd,plain", "--plugin", file, "--workers", 1, *params]
    done = command(*words, "--results", tmp_path / "r")
    found = {(row["scheme"], row["params"]): row["status"] for row in rows(tmp_path / "r").values()}
    assert found == {("odd", f"what={i}"): "error" for i in range(len(LEAVES))} | {("plain", "-"): "done"}
    assert done.returncode == 1 and "Traceback" not in done.stderr


# ---- numbers and names

@pytest.mark.parametrize("words", [("--seeds", "1_0"), ("--depths", "1_0"), ("--lrs", "1_0e-3"), ("--workers", "1_0"),
                                   ("--seeds", "\u0663"),
                                   ("--lrs", "1e-400"), ("--lrs", "nan"), ("--lrs", "1e999"), ("--lrs", "0x1"), ("--shard", "1_0/1_0"),
                                   ("--params", "layerscale:init=1e-400"), 
                                   ("--params", "layerscale:init=1_0"),
                                   ("--params", "layerscale:init=" + "1" * 5_000)])
def test_a_number_is_what_stands_there_or_it_is_refused(words, tmp_path):
    done = command("run", "--protocol", "smoke", *words, "--results", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr[:300]
    assert not (tmp_path / "smoke").exists()


def test_reading_numbers():
    assert [whole("7"), whole("+7"), whole("-7"), whole("007")] == [7, 7, -7, 7]
    assert [decimal(t) for t in ("1", ".5", "5.", "1e-3", "-2.5E+2")] == [1.0, 0.5, 5.0, 1e-3, -250.0]
    assert str(decimal("-0")) == str(decimal("-0.0e5")) == "0.0" and decimal("0e-999") == 0
    for text in ("", " 1", "1 ", "1_0", "\u0661", "0x1", "1e", "e1", ".", "inf", "nan", "1e400", "1e-400", "1" * 70):
        with pytest.raises(ValueError):
            decimal(text)
    for text in ("", "1.0", "1_0", "\u0661", "1e3", "9" * 19, "--1"):
        with pytest.raises(ValueError):
            whole(text)


def test_two_signs_of_zero_are_one_cell():
    from suite.sweep.plan import Selection, make_plan

    ids = {run.run_id for text in ("alpha=0", "alpha=-0", "alpha=-0.0", "alpha=0e5")
           for run in make_plan(Selection("smoke", schemes=("mvsplit",), params=(text,), depths=(2,)))}
    assert len(ids) == 1


def test_names_and_texts_have_an_end(tmp_path):
    from suite import registry
    from suite.residual import Residual

    with pytest.raises(registry.RegistryError, match="at most 40"):
        registry.register("a" * 245)(Residual)
    done = command("plan", "--protocol", "smoke", "--schemes", "mvsplit", "--params", "sites=" + "x" * 100_000)
    assert done.returncode == 2 and "characters long" in done.stderr and len(done.stderr) < 300


def test_a_commit_is_that_of_this_project_alone(tmp_path, monkeypatch):
    """Installed somewhere inside a repository of another project, it has none."""
    monkeypatch.delenv("GIT_DIR", raising=False)
    for words in ("init -q .", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m x"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    inside = tmp_path / "venv" / "lib"
    (inside / "suite").mkdir(parents=True)
    for root in (inside, tmp_path):  # below the top, and at the top without our files in it
        monkeypatch.setattr(environment, "ROOT", root)
        environment.commit.cache_clear()
        assert environment.commit() == ""
    environment.commit.cache_clear()


@pytest.mark.slow
def test_the_reference_is_what_the_command_line_makes(reference, tmp_path):
    """Two programs at once that share the work make it too (test_kills.py)."""
    done = program(*WORDS, "--results", tmp_path, env={"GIT_DIR": "/nonexistent"})
    assert done.returncode == 0 and tables(tmp_path) == tables(reference)
