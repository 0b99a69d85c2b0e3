"""A plugin and the process that it shares with other schemes: what it sets is put back, what it replaces is refused."""

import os
import random
import sys

import numpy as np
import pytest
import torch
from commands import GOOD, HEAD, call, refused

from suite import globalstate, registry

INIT = HEAD + "@register('bad')\nclass Bad(Residual):\n    def __init__(self, site):\n        super().__init__(site)\n        "
MERGE = "    def merge(self, x, f, ctx): return "
SETS = {  # what a plugin may do: afterwards all is as before
    "dtype": "torch.set_default_dtype(torch.float64)",
    "device": "torch.set_default_device('meta')",
    "threads": "torch.set_num_threads(3)",
    "gradients": "torch.set_grad_enabled(False)",
    "deterministic": "torch.use_deterministic_algorithms(True, warn_only=True)",
    "precision": "torch.set_float32_matmul_precision('medium')",
    "tf32": "torch.backends.cuda.matmul.allow_tf32 = True",
    "denormals": "torch.set_flush_denormal(True)",
    "autocast": "torch.set_autocast_enabled('cpu', True)",
    "anomaly": "torch.autograd.set_detect_anomaly(True)",
    "mkldnn": "torch.backends.mkldnn.enabled = False",
    "cudnn": "torch.backends.cudnn.benchmark = True",
    "inductor": "import torch._inductor.config as c; c.max_autotune = True",
    "hooks": "torch.nn.modules.module.register_module_forward_hook(lambda m, a, o: 2 * o)",
    "seeds": "import random, numpy; torch.manual_seed(1); random.seed(1); numpy.random.seed(1)",
    "environment": "import os; os.environ.clear(); os.environ['ACCELERATE_GRADIENT_ACCUMULATION_STEPS'] = '4'",
    "folder": "import os; os.chdir('/'); os.umask(0)",
    "path": "import sys; sys.path.insert(0, '/'); sys.meta_path = sys.meta_path[::-1]",
    "streams": "import sys; sys.stdout = sys.stderr = None",
    "signals": "import signal as s; s.signal(s.SIGINT, s.SIG_DFL if s.getsignal(s.SIGINT) is s.SIG_IGN else s.SIG_IGN)",  # nohup: ignored
    "warnings": "import warnings; warnings.simplefilter('error')",
    "numpy": "import numpy; numpy.seterr(all='raise')",
    "accelerate": "from accelerate import Accelerator; Accelerator(gradient_accumulation_steps=4)",
}
REPLACES = {
    "suite": ("import suite.residual; suite.residual.EPS = 1e-2", "replaces suite.residual.EPS"),
    "default": ("from suite.residual import rms_norm; rms_norm.__defaults__ = (1e-2,)", "replaces suite."),
    "contents": ("from suite.protocol import PROTOCOLS; PROTOCOLS.clear()", "replaces suite.protocol.PROTOCOLS"),
    "scheme": ("from baselines.plain import Plain; Plain.merge = lambda s, x, f, c: x", "replaces baselines.plain.Plain.merge"),
    "added": ("Residual.__call__ = lambda *a: a[1]", "replaces suite.residual.Residual.__call__"),
    "training": ("import suite.training.optim as o; o.FlatParameters.clip = None", "replaces suite.training.optim.FlatParameters.clip"),
    "torch": ("torch.nn.functional.silu = torch.relu", "replaces torch.nn.functional.silu"),
    "kernel": ("lib = torch.library.Library('aten', 'IMPL'); lib.impl('erfinv', lambda x: x, 'CPU')", "replaces torch's kernel aten/"),
    "module": ("import sys, types; sys.modules['math'] = types.ModuleType('math')", "replaces math"),
    "registry": ("from suite import registry; registry._entries.clear()", "replaces scheme"),
    "thread": ("import threading, time; threading.Thread(target=time.sleep, args=(1,), daemon=True).start()", "starts a thread"),
}
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
}


def state():
    return {name: get() for name, (get, _) in globalstate._settings().items()}


@pytest.mark.parametrize("kind", SETS)
def test_what_a_plugin_sets_is_put_back(capsys, tmp_path, kind):
    globalstate.import_all()
    (tmp_path / "mine.py").write_text(HEAD + SETS[kind] + "\n" + GOOD.removeprefix(HEAD))
    before = state()
    registry.load_plugin(tmp_path / "mine.py")
    after = state()
    assert [name for name in before if not globalstate._same(before[name], after[name])] == []
    assert "halved" in registry.names()


@pytest.mark.parametrize("kind", SETS)
def test_every_one_of_these_is_seen(kind):
    """Else the test above would pass for want of a look at it."""
    globalstate.import_all()
    with globalstate.kept():
        before = state()
        exec(HEAD + SETS[kind])
        assert [name for name, old in before.items() if not globalstate._same(globalstate._settings()[name][0](), old)]


@pytest.mark.parametrize("kind", REPLACES)
def test_what_a_plugin_replaces_is_refused(capsys, tmp_path, kind):
    text, words = REPLACES[kind]
    (tmp_path / "mine.py").write_text(HEAD + text + "\n" + GOOD.removeprefix(HEAD))
    message = refused(capsys, "plan", "--protocol", "smoke", "--plugin", tmp_path / "mine.py")
    assert f"--plugin mine.py: {words}" in message
    assert "halved" not in registry.names()
    assert call(capsys, "plan", "--protocol", "smoke")[0] == 0  # nothing of it stays
    if kind == "kernel":
        torch.library._impls.discard("aten/erfinv/CPU")


@pytest.mark.parametrize("kind", DRAWS)
def test_a_scheme_that_gives_not_the_same_twice_is_refused(capsys, tmp_path, kind):
    text, words = DRAWS[kind]
    (tmp_path / "mine.py").write_text(text)
    silu = torch.nn.functional.silu
    message = refused(capsys, "run", "--protocol", "smoke", "--plugin", tmp_path / "mine.py", "--schemes", "bad")
    assert "scheme bad (controlled): " in message and words in message
    assert torch.nn.functional.silu is silu


def test_a_mode_that_is_left_on_is_refused(tmp_path):
    with pytest.raises(globalstate.GlobalStateError, match="inference mode, which cannot be put back"), globalstate.kept():
        mode = torch.inference_mode()
        mode.__enter__()
    mode.__exit__(None, None, None)


@pytest.mark.parametrize("name", ["null", "nan", "none", "na", "true", "t", "off", "inf", "mar1", "sept_2", "NA", "True"])
def test_names_that_readers_take_for_something_else(capsys, tmp_path, name):
    (tmp_path / "mine.py").write_text(GOOD.replace("halved", name))
    assert f"scheme name {name!r}: " in refused(capsys, "list", "--plugin", tmp_path / "mine.py")


def test_no_setting_of_a_look_stays(tmp_path):
    """`kept` itself: random states, and a list that was replaced."""
    states, path = (random.getstate(), np.random.get_state()[1].tobytes()), sys.path
    with globalstate.kept():
        random.random()
        np.random.random()
        sys.path = ["/"]
        os.environ["SCREAMBENCH_NO_SUCH"] = "1"
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == states
    assert sys.path is path and "SCREAMBENCH_NO_SUCH" not in os.environ
