"""`--plugin FILE`: what such a file may get wrong, and how it is told."""

import pytest
from commands import GOOD, HEAD, call, refused

from suite import registry

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
    "no tensor": ("    def forward(self, x, branch, ctx): branch(x)\n", "came back as NoneType"),
    "no branch": ("    def forward(self, x, branch, ctx): return x\n", "calls its branch 0 times"),
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
    registry.load(tmp_path / "p.py")
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
