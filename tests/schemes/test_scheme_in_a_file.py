"""A scheme in a file of its own, through the command line, and what such a file may get wrong."""

import csv
import gzip

import forked
import pytest

from suite import registry
from suite.cli import main
from suite.identity.codedigest import file_digest

PLUGIN = """
from suite.registry import register
from suite.residual import Residual

@register({name!r}, paper="mine")
class Mine(Residual):
    def __init__(self, site, gain: float = 0.5):
        super().__init__(site)
        self.gain = gain

    def merge(self, x_BTD, f_BTD, ctx):
        return {z}
"""
SELECT = ["--protocol", "smoke", "--depths", "2"]


def test_a_scheme_in_a_file_of_its_own_gets_rows(tmp_path):
    plugin, results = tmp_path / "my_scheme.py", tmp_path / "results"
    plugin.write_text(PLUGIN.format(name="mine", z="x_BTD + self.gain * f_BTD"))
    flags = [*SELECT, "--schemes", "mine", "--plugin", str(plugin), "--results", str(results), "--params", "gain=0.25"]
    assert main(["run", *flags, "--workers", "1"]) == 0
    (row,) = csv.DictReader((results / "smoke" / "runs.csv").open())
    assert (row["scheme"], row["params"], row["depth"], row["status"]) == ("mine", "gain=0.25", "2", "done")
    assert row["writers"] == "zero" and row["outcome"]
    curve = list(csv.DictReader(gzip.open(results / "smoke" / "curves" / "mine-L2" / f"{row['run_id']}.csv.gz", "rt")))
    assert [int(r["step"]) for r in curve] == list(range(1, 15)) and {r["run_id"] for r in curve} == {row["run_id"]}
    assert (results / "smoke" / "evals.csv").read_text().count(row["run_id"]) >= 3


BAD = {  # file -> what the line must name
    "duplicate": (PLUGIN.format(name="plain", z="x_BTD + f_BTD"), "plain", ["f.py", "plain", "already registered"]),
    "malformed": (PLUGIN.format(name="My-Scheme", z="x_BTD + f_BTD"), "plain", ["f.py", "'My-Scheme'"]),
    "syntax": ("x = 1\ndef f(:\n    pass\n", "plain", ["f.py", "line 2", "SyntaxError"]),
    "import": ("import no_such_module_at_all\n", "plain", ["f.py", "no_such_module_at_all"]),
    "late": (PLUGIN.format(name="mine", z="x_BTD") + "\n1 / 0\n", "plain", ["f.py", "ZeroDivisionError"]),
    "no scheme": ("x = 1\n", "plain", ["f.py", "no scheme"]),
    "no default": (
        PLUGIN.format(name="mine", z="x_BTD").replace(": float = 0.5", ""),
        "mine",
        ["f.py", "mine", "gain"],
    ),
    "shape": (PLUGIN.format(name="mine", z="x_BTD[:, :1] + f_BTD[:, :1]"), "mine", ["mine", "(2, 6, 8)", "(2, 1, 8)"]),
    "type": (PLUGIN.format(name="mine", z="None"), "mine", ["mine"]),
    "nan": (PLUGIN.format(name="mine", z="x_BTD + f_BTD / 0"), "mine", ["mine", "nan"]),
    "raises": (PLUGIN.format(name="mine", z="x_BTD @ f_BTD"), "mine", ["mine", "RuntimeError"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_plugin_is_one_line_and_status_2_and_nothing_is_written(case, tmp_path, capsys, scratch_registry):
    text, scheme, needles = BAD[case]
    (tmp_path / "f.py").write_text(text)
    results, known = tmp_path / "results", dict(registry._entries)
    flags = [*SELECT, "--schemes", scheme, "--plugin", str(tmp_path / "f.py"), "--results", str(results)]
    assert main(["run", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1, err
    for needle in needles:
        assert needle in err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["f.py"]
    for key, entry in known.items():
        assert registry._entries[key] is entry  # the built-in schemes are as they were
    if scheme == "plain":
        assert registry._entries.keys() == known.keys()  # and a file that fails half-way leaves nothing behind


def test_the_exit_status_of_a_broken_plugin_reaches_the_shell(tmp_path):
    (tmp_path / "f.py").write_text(BAD["shape"][0])
    words = ["run", *SELECT, "--schemes", "mine", "--plugin", tmp_path / "f.py", "--results", tmp_path / "r"]
    with open(tmp_path / "err", "w") as err:
        assert forked.status_of(forked.suite(*words, streams={2: err.fileno()})) == 2
    (line,) = (tmp_path / "err").read_text().splitlines()
    assert "mine" in line and not (tmp_path / "r").exists()


def test_a_missing_plugin_and_an_unknown_scheme_are_named(tmp_path, capsys):
    assert main(["run", *SELECT, "--plugin", str(tmp_path / "gone.py"), "--results", str(tmp_path / "r")]) == 2
    assert "gone.py: no such file" in capsys.readouterr().err
    for typo, near in (("mvsplt", "mvsplit"), ("layer_scale", "layerscale"), ("re_zero", "rezero")):
        assert main(["run", *SELECT, "--schemes", typo, "--results", str(tmp_path / "r")]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1 and repr(typo) in err and f"did you mean {near}" in err
    assert main(["run", *SELECT, "--schemes", "zzzzzzzz", "--results", str(tmp_path / "r")]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and all(name in err for name in registry.names())
    assert main(["run", *SELECT, "--schemes", "plain", "--arms", "native", "--results", str(tmp_path / "r")]) == 2
    assert "plain has no native arm; it has controlled" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_plugin_digest_follows_the_code_not_its_comments(tmp_path):
    text = PLUGIN.format(name="mine", z="x_BTD + f_BTD")
    variants = {
        "base": text,
        "comment": "# hello\n" + text,
        "doc": text.replace("class Mine(Residual):", 'class Mine(Residual):\n    """Doc."""\n'),
        "layout": text.replace("x_BTD + f_BTD", "(x_BTD +\n            f_BTD)"),
        "code": text.replace("x_BTD + f", "x_BTD - f"),
    }
    digests = {}
    for key, source in variants.items():
        (tmp_path / f"{key}.py").write_text(source)
        digests[key] = file_digest(tmp_path / f"{key}.py")
    assert digests["base"] == digests["comment"] == digests["doc"] == digests["layout"] != digests["code"]
