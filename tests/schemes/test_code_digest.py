"""The digest of a scheme's code: the same under every Python version, blind to comments, changed by every change of code."""

import ast

import pytest

from suite import registry

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
    return registry.code_digest(tmp_path / "scheme.py")


def test_the_digest_is_the_one_other_versions_gave(tmp_path):
    """Made with Python 3.10, 3.11, 3.12 and 3.13, which agreed; run ids made under one version must hold under the next."""
    assert digest(tmp_path, SOURCE) == "c3937ccfcfb868be"


def test_fields_that_versions_add_or_leave_out_do_not_count():
    tree = ast.parse(SOURCE)
    known = registry._canonical(tree)
    assert "None" in known and "type_params" not in known
    for node in ast.walk(tree):  # as Python 3.12 has it: new fields, empty
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            node._fields = (*type(node)._fields, "type_params", "later")
            node.type_params, node.later = [], None
    assert registry._canonical(tree) == known
    for node in ast.walk(tree):  # as a later version may: nothing that is empty is there at all, and fields come in another order
        if not isinstance(node, ast.Constant):
            node._fields = tuple(name for name in reversed(node._fields) if getattr(node, name, None) not in (None, []))
    assert registry._canonical(tree) == known
    tree.body[-1]._fields += ("later",)
    tree.body[-1].later = [ast.Name("new", ast.Load())]
    assert registry._canonical(tree) != known  # a new field that says something counts


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
