"""A scheme's file and the process that it has for itself: it changes no other scheme's bytes, and what it changes is refused in a line.

Both doors: a file in `baselines/` of a copied tree, and a plugin.
"""

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import GOOD, HEAD, call, refused

from suite import registry
from suite.environment import ROOT
from suite.isolation import arithmetic, forks

INIT = HEAD + "@register('bad')\nclass Bad(Residual):\n    def __init__(self, site):\n        super().__init__(site)\n        "
MERGE = "    def merge(self, x, f, ctx): return "
CHANGES = {  # settings that decide numbers: refused
    "dtype": ("torch.set_default_dtype(torch.float64)", "changes torch's default dtype"),
    "device": ("torch.set_default_device('meta')", "changes torch's default device"),
    "threads": ("torch.set_num_threads(3)", "changes torch's threads"),
    "gradients": ("torch.set_grad_enabled(False)", "changes whether torch keeps gradients"),
    "inference": ("mode = torch.inference_mode(); mode.__enter__()", "changes whether torch keeps gradients"),
    "deterministic": ("torch.use_deterministic_algorithms(True, warn_only=True)", "changes whether torch is deterministic"),
    "precision": ("torch.set_float32_matmul_precision('medium')", "changes torch's fp32 precision"),
    "tf32": ("torch.backends.cuda.matmul.allow_tf32 = True", "changes torch's fp32 precision"),
    "denormals": ("torch.set_flush_denormal(True)", "changes what torch does with denormals"),
    "autocast": ("torch.set_autocast_enabled('cpu', True)", "changes autocast"),
    "mkldnn": ("torch.backends.mkldnn.enabled = False", "changes mkldnn_enabled"),
    "cudnn": ("torch.backends.cudnn.benchmark = True", "changes cudnn_benchmark"),
    "inductor": ("import torch._inductor.config as c; c.max_autotune = True", "changes torch._inductor.config"),
    "hooks": ("torch.nn.modules.module.register_module_forward_hook(lambda m, a, o: 2 * o)", "changes hooks of all modules"),
}
REPLACES = {
    "suite": ("import suite.residual; suite.residual.EPS = 1e-2", "replaces suite.residual.EPS"),
    "default": ("from suite.residual import rms_norm; rms_norm.__defaults__ = (1e-2,)", "replaces suite."),
    "contents": ("from suite.presets import PROTOCOLS; PROTOCOLS.clear()", "replaces suite.presets.PROTOCOLS"),
    "added": ("Residual.__call__ = lambda *a: a[1]", "replaces suite.residual.Residual.__call__"),
    "training": ("import suite.training.optim as o; o.FlatParameters.clip = None", "replaces suite.training.optim.FlatParameters.clip"),
    "torch": ("torch.nn.functional.silu = torch.relu", "replaces torch.nn.functional.silu"),
    "method": ("torch.Tensor.mean = torch.Tensor.sum", "replaces torch.Tensor.mean"),
    "kernel": ("lib = torch.library.Library('aten', 'IMPL'); lib.impl('erfinv', lambda x: x, 'CPU')", "replaces torch's kernel aten/"),
    "module": ("import math; math.sqrt = lambda x: x", "replaces math.sqrt"),
}
HARMLESS = [  # of no run: settings that decide no number, and what a process of its own keeps from others
    "torch.autograd.set_detect_anomaly(True, check_nan=False)",
    "import random, numpy; torch.manual_seed(1); random.seed(1); numpy.random.seed(1)",
    "import os; os.environ['ACCELERATE_GRADIENT_ACCUMULATION_STEPS'] = '4'; os.environ['TORCHINDUCTOR_MAX_AUTOTUNE'] = '1'",
    "os.chdir('/'); os.umask(0o77)",
    "import sys; sys.path.insert(0, '/'); sys.meta_path = sys.meta_path[::-1]",
    "import signal as s; s.signal(s.SIGINT, s.SIG_DFL)",
    "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    "from suite import registry; registry._entries.clear()",
    "from baselines.plain import Plain; Plain.merge = lambda s, x, f, c: x",
]
DRAWS = {
    "merge": (HEAD + "@register('bad')\nclass Bad(Residual):\n" + MERGE + "x + torch.rand(()) * f\n", "it draws random numbers"),
    "python": (HEAD + "import random\n@register('bad')\nclass Bad(Residual):\n" + MERGE + "x + random.random() * f\n", "it draws random"),
    "one site": (HEAD + "@register('bad')\nclass Bad(Residual):\n" + MERGE + "x + (torch.rand(()) if ctx.site == 'ffn' else 1) * f\n",
                 "it draws random numbers"),
    "later": (HEAD + "@register('bad')\nclass Bad(Residual):\n" + MERGE + "x + (torch.rand(()) if ctx.step > 9 else 1) * f\n",
              "it draws random numbers"),
    "dropout": (INIT + "self.d = torch.nn.Dropout(0.1)\n" + MERGE + "x + self.d(f)\n", "it draws random numbers"),
    "own generator": (INIT + "self.g = torch.Generator().manual_seed(0)\n" + MERGE + "x + torch.rand((), generator=self.g) * f\n",
                      "it merges the same trunk into other numbers the second time"),
    "counter": (INIT + "Bad.n = getattr(Bad, 'n', 0) + 1; self.k = Bad.n\n" + MERGE + "x + f / self.k\n", "other numbers the second time"),
    "unseeded": (INIT + "import numpy; self.w = torch.nn.Parameter(torch.tensor(numpy.random.default_rng().random()))\n"
                 + MERGE + "x + self.w * f\n", "built again, it holds other numbers"),
    "running mean": (INIT + "self.b = torch.nn.BatchNorm1d(6)\n" + MERGE + "x + self.b(f)\n", "it changes its parameters or buffers"),
    "patch": (INIT + "torch.nn.functional.silu = torch.relu\n" + MERGE + "x + f\n", "replaces torch.nn.functional.silu"),
    "dtype": (INIT + "torch.set_default_dtype(torch.float64)\n" + MERGE + "x + f\n", "changes torch's default dtype"),
    "end": (INIT + "import os; os._exit(7)\n" + MERGE + "x + f\n", "ends its process (exit status 7)"),
}


def hostile(line: str) -> str:
    return HEAD + line + "\n" + GOOD.removeprefix(HEAD)


PATCHES = hostile("torch.nn.functional.silu = torch.nn.functional.relu")
SETS = hostile("torch.set_default_dtype(torch.float64)").replace("halved", "halfed").replace("Halved", "Halfed")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the suite, to which schemes are added."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("suite", "baselines", "paper_figures"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "out"))
    return root


PROGRAM = """
import contextlib, io, json, sys
from pathlib import Path
from suite import cli
from suite.isolation import catalogue, forks

forks._context.set_forkserver_preload([*forks.PRELOAD, "torchmetrics"])
known = None
for line in sys.stdin:
    files = [(path, path.read_text()) for path in sorted(Path("baselines").glob("*.py"))]
    if files != known:
        known = files
        catalogue._built_in.cache_clear()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(json.loads(line))
    print(json.dumps([status, out.getvalue(), err.getvalue(), sorted(sys.modules)]), flush=True)
"""


@pytest.fixture(scope="module")
def run(tree):
    """run(results, *words): `python -m suite run ...` in the tree, in the one process of the tree that takes command after command."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "WORLD_SIZE", "RANK")}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GIT_DIR": "/nonexistent"}
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=tree, env=env, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip

    def call(results, *words, verb="run"):
        workers = ["--workers", 1] if verb == "run" else []
        words = [verb, "--protocol", "smoke", "--depths", "2", "--results", results, *workers, *words]
        program.stdin.write(json.dumps(list(map(str, words))) + "\n")
        program.stdin.flush()
        status, out, err, modules = json.loads(program.stdout.readline())
        return SimpleNamespace(returncode=status, stdout=out, stderr=err, modules=modules)

    with program:
        yield call
        program.stdin.close()


def curves(results) -> dict[str, bytes]:
    """What the runs left in every table but that of times."""
    return {str(path.relative_to(results)): path.read_bytes() for path in sorted(Path(results).rglob("*"))
            if path.is_file() and ".work" not in path.parts and path.name not in ("throughput.csv", ".lock")}  # fmt: skip


@pytest.fixture(scope="module")
def truth(run, tmp_path_factory):
    """The tables of plain without any other's file, alone and as a group of two."""
    found = {}
    for replicas in ("1", "2"):
        results = tmp_path_factory.mktemp("truth")
        done = run(results, "--schemes", "plain", "--seeds", "0,1", "--replicas", replicas)
        assert done.returncode == 0, done.stderr
        found[replicas] = curves(results)
    assert any("curves" in name for name in found["1"]) and found["1"] != found["2"]
    return found


@pytest.mark.parametrize("replicas", ["1", "2"])
@pytest.mark.parametrize("door", ["baselines", "plugin"])
def test_a_hostile_file_changes_no_other_schemes_bytes(tree, run, truth, tmp_path, door, replicas):
    folder = tree / "baselines" if door == "baselines" else tmp_path
    files = [folder / "a_patch.py", folder / "a_setting.py"]  # in alphabetical order before all others
    try:
        for file, text in zip(files, (PATCHES, SETS), strict=True):
            file.write_text(text)
        plugins = [word for file in files if door == "plugin" for word in ("--plugin", file)]
        done = run(tmp_path / "r", "--schemes", "plain", "--seeds", "0,1", "--replicas", replicas, *plugins)
        assert done.returncode == 0 and curves(tmp_path / "r") == truth[replicas], done.stderr
        assert "a_patch.py replaces torch.nn.functional.silu; its schemes are refused" in done.stderr
        if replicas == "1":
            for scheme, what in (("halved", "replaces torch.nn.functional.silu: "), ("halfed", "changes torch's default dtype: ")):
                done = run(tmp_path / "s", "--schemes", scheme, *plugins)
                assert done.returncode == 2 and done.stderr.startswith(f"error: scheme {scheme}: its file {what}")
                assert done.stderr.count("\n") == 1 and not (tmp_path / "s").exists()
    finally:
        if door == "baselines":
            [file.unlink() for file in files]


def test_a_name_that_another_file_has(tree, run, truth, tmp_path):
    """Asked for, it is one line that names both files; other schemes know nothing of it."""
    mine = GOOD.replace("halved", "plain")
    (tmp_path / "mine.py").write_text(mine)
    done = run(tmp_path / "s", "--schemes", "plain", "--plugin", tmp_path / "mine.py")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "mine.py is already registered by baselines/plain.py; choose another name" in done.stderr
    file = tree / "baselines" / "zz_mine.py"
    try:
        file.write_text(mine)
        done = run(tmp_path / "s", "--schemes", "plain")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "s").exists()
        assert "baselines/zz_mine.py is already registered by baselines/plain.py; choose another name" in done.stderr
        file.write_text(mine + GOOD.removeprefix(HEAD) + "def broken(:\n")
        done = run(tmp_path / "s", "--schemes", "halved")
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "unknown scheme 'halved'" in done.stderr and "baselines/zz_mine.py, line 10: SyntaxError" in done.stderr
        done = run(tmp_path / "r", "--schemes", "plain", "--seeds", "0,1")
        assert done.returncode == 0 and curves(tmp_path / "r") == truth["1"]
        assert "warning: baselines/zz_mine.py, line 10: SyntaxError" in done.stderr and "its schemes are left out" in done.stderr
    finally:
        file.unlink()


@pytest.mark.slow
def test_two_processes_of_one_run_know_one_file(tree, tmp_path):
    """Data parallel: a hostile file changes no byte of plain's, and its own scheme is refused by each of them."""
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu", "--main_process_port", "0"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GIT_DIR": "/nonexistent"}
    (tmp_path / "mine.py").write_text(PATCHES)

    def launch(results, scheme, *more):
        words = ["-m", "suite", "run", "--protocol", "smoke", "--depths", "2", "--schemes", scheme, "--results", str(results), *more]
        return subprocess.run([sys.executable, *launcher, *words], cwd=tree, env=env, capture_output=True, text=True, timeout=280)

    for folder, more in (("alone", []), ("beside", ["--plugin", str(tmp_path / "mine.py")])):
        done = launch(tmp_path / folder, "plain", *more)
        assert done.returncode == 0, done.stderr[-2000:]
    assert curves(tmp_path / "alone") == curves(tmp_path / "beside") != {}
    done = launch(tmp_path / "refused", "halved", "--plugin", str(tmp_path / "mine.py"))
    assert done.returncode != 0 and "error: scheme halved: its file replaces torch.nn.functional.silu" in done.stderr


def test_what_decides_no_number_is_let_be(run, tmp_path):
    """Its own curve is what it is without, in a process that nobody else shares."""
    found = []
    for name, lines in (("clean", ["pass"]), ("odd", HARMLESS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(hostile("\n".join(lines)))
        done = run(tmp_path / name / "r", "--schemes", "halved", "--plugin", tmp_path / name / "mine.py")
        assert done.returncode == 0, done.stderr
        (curve,) = (tmp_path / name / "r" / "smoke" / "curves" / "halved-L2").iterdir()
        found.append([line.split(b",", 1)[1] for line in gzip.decompress(curve.read_bytes()).splitlines()])
    assert found[0] == found[1] and len(found[0]) == 15


@pytest.mark.parametrize("kind", CHANGES | REPLACES)
def test_what_a_file_changes_is_refused(capsys, tmp_path, kind):
    line, words = (CHANGES | REPLACES)[kind]
    (tmp_path / "mine.py").write_text(hostile(line))
    message = refused(capsys, "plan", "--protocol", "smoke", "--schemes", "halved", "--plugin", tmp_path / "mine.py")
    assert f"error: scheme halved: its file {words}" in message
    status, out, err = call(capsys, "plan", "--protocol", "smoke", "--schemes", "plain", "--plugin", tmp_path / "mine.py")
    assert status == 0 and len(out) == 3 and len(err) == 1 and f"warning: --plugin mine.py {words}" in err[0]


@pytest.mark.parametrize("kind", DRAWS)
def test_a_scheme_that_gives_not_the_same_twice_is_refused(capsys, tmp_path, kind):
    text, words = DRAWS[kind]
    (tmp_path / "mine.py").write_text(text)
    silu = torch.nn.functional.silu
    message = refused(capsys, "run", "--protocol", "smoke", "--plugin", tmp_path / "mine.py", "--schemes", "bad")
    assert "scheme bad (controlled): " in message and words in message
    assert torch.nn.functional.silu is silu


def test_what_only_training_does_is_a_broken_run(run, tmp_path):
    """Neither its file nor a tiny trunk shows it; the next run of the same file gets a process that has seen nothing of it."""
    (tmp_path / "mine.py").write_text(
        HEAD + "@register('late')\nclass Late(Residual):\n    def merge(self, x, f, ctx):\n"
        "        if x.shape[0] > 2 and ctx.step > 3: torch.nn.functional.silu = torch.nn.functional.relu\n        return x + f\n")
    done = run(tmp_path / "r", "--schemes", "late", "--seeds", "0,1", "--plugin", tmp_path / "mine.py")
    lines = [line for line in done.stderr.splitlines() if line.startswith("broken: late")]
    assert done.returncode == 1 and len(lines) == 2
    assert all("scheme late: it replaces torch.nn.functional.silu, on which the numbers of all schemes rest" in line for line in lines)


def test_a_scheme_may_build_on_anothers_file(capsys, tmp_path):
    """It registers its own alone: what the other file registers stays that file's."""
    (tmp_path / "mine.py").write_text("from baselines.plain import Plain\nfrom suite.registry import register\n\n\n@register('mine')\n"
                                      "class Mine(Plain):\n    pass\n")
    status, out, err = call(capsys, "list", "--plugin", tmp_path / "mine.py")
    names = [line.split()[0] for line in out[out.index("schemes") + 1:]]
    assert status == 0 and not err and names.count("plain") == names.count("mine") == 1
    status, out, err = call(capsys, "plan", "--protocol", "smoke", "--schemes", "mine,plain", "--plugin", tmp_path / "mine.py")
    assert status == 0 and len(out) == 5


def test_a_body_that_changes_nothing_is_let_through():
    import suite.sweep.execute  # noqa: F401  compilers replace parts of torch as they are imported

    with arithmetic.unchanged():
        torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
        torch.nn.functional.silu(torch.zeros(2))


def test_what_python_notes_in_a_class_is_blamed_on_no_scheme():
    """`copyreg` keeps the names of a class's slots there at the first copy or pickle of one of its objects."""
    if "__slotnames__" in vars(torch.Tensor):
        del torch.Tensor.__slotnames__
    with arithmetic.unchanged():
        pickle.dumps(torch.zeros(2))
    assert "__slotnames__" in vars(torch.Tensor)
    with pytest.raises(arithmetic.Altered, match="torch.Tensor.__add__"), arithmetic.unchanged():
        torch.Tensor.__add__ = torch.Tensor.__sub__
    del torch.Tensor.__add__


AT_FIRST = """
import torch
import suite.sweep.execute
from suite.isolation import arithmetic
with arithmetic.unchanged():
    model = torch.compile(torch.nn.Linear(2, 2), backend="eager")
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 2)).sum().backward()
    optimiser.step()
try:
    with arithmetic.unchanged():
        torch.nn.functional.silu = torch.compile(torch.relu)
except arithmetic.Altered as error:
    raise ValueError(f"the second: {error}")
"""


def test_what_torch_replaces_of_itself_is_blamed_on_no_scheme():
    """In a process of its own: torch does so at the first compilation."""
    with pytest.raises(ValueError, match="^the second: replaces torch.nn.functional.silu$"):
        forks.once(exec, AT_FIRST, {})


def test_the_planning_process_has_no_torch_and_no_scheme(run, tmp_path):
    for verb in ("plan", "run"):
        done = run(tmp_path, "--schemes", "plain", verb=verb)
        assert done.returncode == 0 and "suite.sweep.plan" in done.modules, done.stderr
        assert not [name for name in done.modules if name.partition(".")[0] in ("torch", "accelerate") or name.startswith("baselines.")]


@pytest.mark.parametrize("name", ["null", "nan", "none", "na", "true", "t", "off", "inf", "mar1", "sept_2", "NA", "True"])
def test_names_that_readers_take_for_something_else(name):
    with pytest.raises(registry.RegistryError, match=f"scheme name {name!r}: "):
        registry.register(name)
