"""The digest of a scheme's code: the same under every Python version, blind to comments, changed by every change of code."""

import ast
import os
import py_compile
import re
import subprocess
import sys
from pathlib import Path

import pytest

from suite import registry
from suite.environment import ROOT
from suite.identity import codedigest
from suite.residual import Residual

SOURCE = '''"""A scheme."""

from suite.residual import Residual


class Mine(Residual):
    """Z."""

    def __init__(self, site, gain: float = 0.5, *, unit=None):
        """Start."""
        super().__init__(site)
        self.gain, self.name = gain, f"{site:{gain}}"

    async def wait(self):
        """Wait."""

    def merge(self, x_BTD, f_BTD, ctx):
        parts = {**{}, "u": u"\\u00e9\\U0001fae8"}
        return x_BTD + self.gain * f_BTD[..., 0] if parts else call("", None)
'''


def digest(tmp_path, source: str) -> str:
    (tmp_path / "scheme.py").write_text(source, encoding="utf-8")
    return codedigest.file_digest(tmp_path / "scheme.py")


def test_the_digest_is_the_one_other_versions_gave(tmp_path):
    """Made with Python 3.10, 3.11, 3.12 and 3.13, which agreed; run ids made under one version must hold under the next."""
    assert digest(tmp_path, SOURCE) == "dc3937ccfcfb868b"


def test_fields_that_versions_add_or_leave_out_do_not_count():
    tree = ast.parse(SOURCE)
    known = codedigest._canonical(tree)
    assert "None" in known and "type_params" not in known
    for node in ast.walk(tree):  # as Python 3.12 has it: new fields, empty
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            node._fields = (*type(node)._fields, "type_params", "later")
            node.type_params, node.later = [], None
    assert codedigest._canonical(tree) == known
    for node in ast.walk(tree):  # as a later version may: nothing that is empty is there at all, and fields come in another order
        if not isinstance(node, ast.Constant):
            node._fields = tuple(name for name in reversed(node._fields) if getattr(node, name, None) not in (None, []))
    assert codedigest._canonical(tree) == known
    tree.body[-1]._fields += ("later",)
    tree.body[-1].later = [ast.Name("new", ast.Load())]
    assert codedigest._canonical(tree) != known  # a new field that says something counts


def test_an_empty_end_of_an_f_string_does_not_count(tmp_path, monkeypatch):
    known, parse = digest(tmp_path, SOURCE), ast.parse

    def parse_as_3_12(*args, **kwargs):
        tree = parse(*args, **kwargs)
        for node in ast.walk(tree):
            if isinstance(node, ast.FormattedValue) and node.format_spec:
                node.format_spec.values.append(ast.Constant(""))
        return tree

    monkeypatch.setattr(ast, "parse", parse_as_3_12)
    assert digest(tmp_path, SOURCE) == known


@pytest.mark.parametrize("old, new", [
    ('"""A scheme."""', ""), ('"""Z."""', '"""Other."""'), ('"""Start."""', ""), ('"""Wait."""', "pass"),
    ("return x", "# why\n        return x"), (': u"', ': "'), ("\n\n\n", "\n"), ("self.gain *", "(self.gain) *"),
    ('"""A scheme."""', '\ufeff"""A scheme."""'), ("\n", "\r\n"),
])
def test_words_and_layout_do_not_count(tmp_path, old, new):
    assert old in SOURCE
    assert digest(tmp_path, SOURCE.replace(old, new)) == digest(tmp_path, SOURCE)


@pytest.mark.parametrize("old, new", [
    ("0.5", "0.25"), ("0.5", "None"), ("unit=None", "unit"), (": float", ""), ("x_BTD +", "x_BTD -"), ("...", "None"), ("**{}, ", ""),
    ('call("", None)', "call(None)"), ('call("", None)', 'call("")'), ('call("", None)', 'call(b"", None)'), (", 0]", ", 0.0]"),
    (", 0]", ", False]"), (", 0]", ", -0]"), (", *, unit", ", unit"), ("async ", ""), ("site:", "gain:"), ("{gain}}", "{gain}x}"),
    ("(Residual)", ""), ("from suite", "from .suite"), ("\\u00e9", "e"), ("merge", "merge_"),
    ("self.gain, self.name", "self.name, self.gain"),
])
def test_every_change_of_code_counts(tmp_path, old, new):
    assert old in SOURCE
    assert digest(tmp_path, SOURCE.replace(old, new)) != digest(tmp_path, SOURCE)


PLUGIN = """
from suite.registry import register
from {base} import Base

@register("made")
class Made(Base):
    def merge(self, x, f, ctx):
        from deep.er import factor
        return super().merge(x, f, ctx) + factor() * f
"""
FILES = {  # what a plugin may be made of besides its own file
    "base_of_mine.py": "import importlib\nfrom suite.residual import Residual\ngain = importlib.import_module('gain_of_mine')\n"
                       "class Base(Residual):\n    def merge(self, x, f, ctx):\n        return x + gain.GAIN * f\n",
    "gain_of_mine.py": "GAIN = 0.5\n",
    "deep/__init__.py": "SCALE = 1.0\n",
    "deep/er.py": "from . import SCALE\nfrom .est import LAST\ndef factor(): return SCALE * LAST\n",
    "deep/est.py": "LAST = 2.0\n",
}


@pytest.fixture
def made(tmp_path, monkeypatch, scratch_registry):
    """made(folder, **changes): the digest of a scheme whose parts lie in a folder of this name, with some texts replaced."""

    def make(folder: str, changes: dict[str, tuple[str, str]] | None = None, base: str = "base_of_mine") -> str:
        place = tmp_path / folder
        for name, text in FILES.items() | {("mine.py", PLUGIN.format(base=base))}:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            old, new = (changes or {}).get(name, ("", ""))
            assert old in text
            (place / name).write_text(text.replace(old, new) if old else text)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(place))
            registry.load(place / "mine.py")
            digest = registry.get("made").code_digest({})
        del registry._entries["made", "controlled"]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("deep", "base_of_mine", "gain_of_mine")]:
            del sys.modules[name]
        return digest

    return make


def test_the_digest_covers_bases_and_imports_and_no_place(made):
    known = made("a")
    assert made("elsewhere") == known and re.fullmatch("d[0-9a-f]{15}", known)
    changes = {"base_of_mine.py": ("x + ", "x - "), "gain_of_mine.py": ("0.5", "25"), "deep/__init__.py": ("1.0", "3.0"),
               "deep/er.py": ("SCALE * ", "SCALE + "), "deep/est.py": ("2.0", "4.0"), "mine.py": ("+ factor", "- factor")}
    digests = {made(f"b{i}", {name: change}) for i, (name, change) in enumerate(changes.items())}
    assert len(digests | {known}) == 7
    words = {"gain_of_mine.py": ("GAIN", "# why\nGAIN"), "deep/est.py": ("LAST", '"""What."""\nLAST')}
    assert made("c", words) == known


def test_a_built_in_base_counts(tmp_path, monkeypatch, scratch_registry):
    """Another LayerScale: the scheme that derives from it is another one."""
    (tmp_path / "mine.py").write_text(PLUGIN.format(base="baselines.layerscale").replace("import Base", "import LayerScale as Base"))
    registry.load(tmp_path / "mine.py")
    known, read = registry.get("made").code_digest({}), codedigest._bytes

    def changed(path, name):
        return read(path, name).replace(b"x_BTD + self.gate_lambda * f_BTD", b"x_BTD + 50 * self.gate_lambda * f_BTD")

    monkeypatch.setattr(codedigest, "_bytes", changed)
    assert registry.get("made").code_digest({}) != known
    monkeypatch.setattr(codedigest, "_bytes", lambda path, name: read(path, name) + b"\n# a comment\n")
    assert registry.get("made").code_digest({}) == known


def test_the_suite_and_installed_packages_do_not_count():
    sources = codedigest._sources(registry.get("layerscale").cls)
    assert set(sources) == {""}
    assert codedigest._installed(Path(pytest.__file__)) and codedigest._installed(Path(ast.__file__))


def test_a_class_of_no_file_is_refused(scratch_registry):
    registry.register("nowhere")(type("Nowhere", (Residual,), {"__module__": "no_such_module"}))
    with pytest.raises(registry.RegistryError, match="scheme nowhere: the class Nowhere stands in no file"):
        registry.get("nowhere").code_digest({})


def test_the_program_around_a_scheme_is_no_part_of_it(tmp_path):
    """`import __main__` names another file in a sweep's worker than in its parent, which must come to the same digest."""
    file = tmp_path / "looks.py"
    file.write_text("import __main__\nfrom suite.registry import register\nfrom suite.residual import Residual\n\n\n@register('looks')\n"
                    "class Looks(Residual):\n    def merge(self, x_BTD, f_BTD, ctx):\n        return x_BTD + f_BTD\n")
    digest = f"from suite import registry; registry.load({str(file)!r}); print(registry.get('looks').code_digest({{}}))"
    (tmp_path / "program.py").write_text(digest)
    env, said = os.environ | {"PYTHONPATH": str(ROOT)}, []
    for words in (["-c", digest], [str(tmp_path / "program.py")]):
        said.append(subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=env).stdout)
    assert said[0] == said[1] and said[0].startswith("d")


def test_what_runs_is_what_stands_in_the_file(tmp_path, scratch_registry):
    """Python takes old bytecode for a file whose size and time of writing are the old ones."""
    file = tmp_path / "mine.py"
    head = ("from suite.registry import register\nfrom suite.residual import Residual\n\n\n"
            "@register('mine')\nclass Mine(Residual):\n    gain = ")
    file.write_text(head + "1\n")
    before = file.stat()
    py_compile.compile(str(file))
    file.write_text(head + "2\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    registry.load(file)
    assert file.stat().st_size == before.st_size and registry.get("mine").cls.gain == 2
