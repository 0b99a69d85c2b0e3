"""What is added later leaves run ids as they were, at the value of the old behaviour: a parameter, a setting, a factor, a member."""

import ast
import dataclasses
import re

import pytest

from suite import registry
from suite.environment import ROOT
from suite.identity import codedigest
from suite.identity.specialise import specialised
from suite.presets import PROTOCOLS
from suite.protocol import Protocol, Run, later
from suite.registry import RegistryError, format_params, parse_params
from suite.residual import Residual

HEAD = '''from suite.registry import register
from suite.residual import Residual, token_mean


@register("mine")
class Mine(Residual):
    """Z = X + gain * F."""

    def __init__(self, site, gain: float = 0.5{argument}):
        super().__init__(site)
        self.gain = gain{kept}

    def merge(self, x_BTD, f_BTD, ctx):
        {first}return x_BTD + self.gain * f_BTD


@register("mine", arm="native")
class Native(Residual):
    def merge(self, x_BTD, f_BTD, ctx):
        return x_BTD - f_BTD
'''


def source(argument="", kept="", first=""):
    return HEAD.format(argument=argument, kept=kept, first=first)


OLD = source()
LATER = {  # ways to add a parameter whose default is the old behaviour
    "unused": source(", leak: bool = True"),
    "keyword": source(", *, leak: bool = True", "\n        self.leak = leak", "if not self.leak:\n            return x_BTD\n        "),
    "in a branch": source(", leak: float = 0.0", "\n        self.leak = leak",
                          "if self.leak != 0:\n            return x_BTD + self.leak * token_mean(f_BTD, ctx.segments)\n        "),
    "checked": source(', means: str = "none"',
                      '\n        if means not in ("none", "segment"):\n            raise ValueError(means)\n        self.means = means',
                      'if self.means == "segment" and self.gain:\n            return x_BTD\n        '),
    "with an else": source(", leak: bool = True", "\n        if not leak:\n            self.gain = 2 * gain"),
}  # fmt: skip
OTHERWISE = {  # what must not be taken for the old code
    "another formula": source(", leak: bool = True", "\n        self.leak = leak", "if self.leak:\n            return x_BTD\n        "),
    "another default": source().replace("0.5", "0.25"),
    "a value that counts": source(", leak: float = 0.1", "\n        self.leak = leak").replace("self.gain *", "(self.gain + self.leak) *"),
    "read by another": source(", leak: bool = True", "\n        self.leak = leak").replace("self.gain *", "getattr(self, 'leak') *"),
    "set again": source(", leak: bool = True", "\n        leak = site.block > 0\n        self.leak = leak",
                        "if not self.leak:\n            return x_BTD\n        "),
    "kept twice": source(", leak: bool = True", "\n        self.leak = leak\n        self.leak = site.block > 0",
                         "if not self.leak:\n            return x_BTD\n        "),
    "a member of the class": source(", leak: bool = True", "\n        self.leak = leak",
                                    "if not self.leak:\n            return x_BTD\n        ").replace(
                                        "    def __init__", "    leak = False\n\n    def __init__"),
}  # fmt: skip


@pytest.fixture
def digests(tmp_path, monkeypatch):
    """The code digests (of one arm, at some values) of a scheme file with this text."""
    def of(text, arm="controlled", **values):
        monkeypatch.setattr(registry, "_entries", {})
        monkeypatch.setattr(registry, "_discovered", True)
        (tmp_path / "mine.py").write_text(text)
        import importlib.util
        import sys

        spec = importlib.util.spec_from_file_location("mine_of_a_test", tmp_path / "mine.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mine_of_a_test", module)
        spec.loader.exec_module(module)
        return registry._entries["mine", arm].code_digest(values)

    return of


@pytest.mark.parametrize("how", LATER)
def test_a_parameter_that_came_later_moves_no_digest(digests, how):
    key, value = ("means", "segment") if "means" in LATER[how] else ("leak", 0.5 if "leak: float" in LATER[how] else False)
    assert digests(LATER[how]) == digests(OLD) and digests(LATER[how], gain=2.0) == digests(OLD, gain=2.0)
    assert digests(LATER[how], **{key: value}) != digests(OLD)
    assert digests(LATER[how], "native") == digests(OLD, "native")


@pytest.mark.parametrize("how", OTHERWISE)
def test_what_is_other_code_has_another_digest(digests, how):
    assert digests(OTHERWISE[how]) != digests(OLD)


def test_every_value_has_a_digest_of_its_own(digests):
    found = [digests(OLD), digests(OLD, gain=0.5), digests(OLD, gain=0.25), digests(OLD, "native"), digests(LATER["unused"], leak=False)]
    assert found[0] == found[1] and len(set(found)) == 4


def test_the_column_params_shows_a_later_parameter_only_where_it_is_set():
    class Mine(Residual):
        def __init__(self, site, gain: float = 0.5, *, leak: bool = True):
            super().__init__(site)

    entry = registry.Entry("mine", "controlled", "", Mine, {"gain": 0.5, "leak": True}, frozenset({"leak"}))
    assert format_params(entry, {}) == "gain=0.5" == format_params(entry, {"leak": True})
    assert format_params(entry, {"leak": False}) == "gain=0.5,leak=false"
    assert parse_params(entry, "gain=0.5,leak=false") == {"gain": 0.5, "leak": False}


def test_a_parameter_cannot_hide_a_member_of_the_contract(monkeypatch):
    monkeypatch.setattr(registry, "_entries", {})
    with pytest.raises(RegistryError, match="shared is a member of"):
        @registry.register("mine")
        class Mine(Residual):
            def __init__(self, site, shared: bool = True):
                super().__init__(site)


def run_of(protocol, **fields):
    return Run(protocol, "plain", "controlled", "-", "zero", 4, 1e-3, 0, "digits", "d" * 16, "e" * 16, True, **fields)


def test_a_setting_that_came_later_moves_no_id():
    @dataclasses.dataclass(frozen=True)
    class Wider(Protocol):
        dummy: float = later(2.0, old=0.0)

    old = PROTOCOLS["smoke"]
    values = {f.name: getattr(old, f.name) for f in dataclasses.fields(old)}
    assert run_of(Wider(**values, dummy=0.0)).run_id == run_of(old).run_id
    assert len({run_of(p).run_id for p in (old, Wider(**values), Wider(**values, dummy=1.0))}) == 3
    assert run_of(dataclasses.replace(old, batch=9)).run_id != run_of(old).run_id


def test_a_factor_that_came_later_moves_no_id():
    @dataclasses.dataclass(frozen=True)
    class Factored(Run):
        dummy: str = later("old", old="old")

    fields = {f.name: getattr(run_of(PROTOCOLS["smoke"]), f.name) for f in dataclasses.fields(Run)}
    old = run_of(PROTOCOLS["smoke"]).run_id
    assert Factored(**fields).run_id == old != Factored(**fields, dummy="new").run_id
    assert run_of(PROTOCOLS["smoke"], gate_lr=1.0).run_id == old != run_of(PROTOCOLS["smoke"], gate_lr=0.0).run_id


def test_a_member_of_the_contract_moves_no_digest(monkeypatch):
    """The digest of every scheme here with a member more in the base class, and in what it is given."""
    registry.discover()
    before = {key: entry.code_digest({}) for key, entry in registry._entries.items()}
    path = ROOT / "suite" / "residual.py"
    longer = path.read_text() + "\n\nclass Dummy:\n    pass\n"
    tree = codedigest._tree
    monkeypatch.setattr(codedigest, "_tree", lambda p, name: ast.parse(longer) if p == path else tree(p, name))
    assert {key: entry.code_digest({}) for key, entry in registry._entries.items()} == before


@pytest.mark.parametrize("path", sorted((ROOT / "baselines").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_a_dummy_parameter_in_any_committed_scheme_moves_no_digest(path):
    """In the file itself: behind the parameters of every constructor."""
    text = path.read_text()
    for name in re.findall(r"^class (\w+)\(", text, re.M):
        cls = text[text.index(f"class {name}("):]
        cls = cls[: cls.find("\n@register")] if "\n@register" in cls else cls
        if "def __init__(self, site" not in cls:
            continue
        line = re.search(r"def __init__\(self, site(.*?)\):", cls, re.S)[0]
        more = text.replace(cls, cls.replace(line, line.replace("):", ", dummy: int = 3):"), 1))
        assert more != text
        defaults = _defaults(text, name)
        old = codedigest._without_words(specialised(ast.parse(text), name, defaults))
        assert codedigest._without_words(specialised(ast.parse(more), name, defaults | {"dummy": 3})) == old


def _defaults(text, name):
    cls = next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name)
    args = next(node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__").args
    return {arg.arg: ast.literal_eval(value) for arg, value in zip(args.args[2:], args.defaults, strict=True)}
