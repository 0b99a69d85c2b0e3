"""`enter`: what is refused, in one line; and the way of a scheme that is not, into the ranking and a folder."""

import csv
import shutil
from pathlib import Path

import pandas as pd
import pytest
from commands import HEAD, call, refused
from entries import slow_but

from suite.cli import entering
from suite.environment import ROOT
from suite.evidence.entered import among
from suite.isolation import catalogue
from suite.records.store import write_package

FRONTIER = ROOT / "results" / "frontier"
CLASS = HEAD + "@register('bad')\nclass Bad(Residual):\n"
MERGE = "    def merge(self, x, f, ctx): return "
BROKEN = {
    "nan": (CLASS + MERGE + "x + f / (0 * f)\n", "the merge of finite tensors holds nan or inf"),
    "shape": (CLASS + MERGE + "(x + f).mean(1)\n", "a trunk of (2, 6, 8) came back as (2, 8)"),
    "draws": (CLASS + MERGE + "x + torch.rand(()) * f\n", "it draws random numbers as it merges"),
    "patches": (HEAD + "torch.nn.functional.silu = torch.relu\n" + CLASS + MERGE + "x + f\n", "its file replaces torch.nn.functional.silu"),
    "batch": (CLASS + MERGE + "x + f - f.mean(0)\n", "it mixes the samples of a batch"),
    "float32": (CLASS + MERGE + "x.float() + f.float()\n", "it makes torch.float32 of a float64 trunk"),
    "two": (CLASS + MERGE + "x + f\n" + (CLASS + MERGE + "x + f\n").removeprefix(HEAD).replace("bad", "worse"),
            "an entry is one scheme, in one arm; this file registers bad, worse"),
    "none": (HEAD, "registers no scheme"),
}  # fmt: skip
KEEPS = CLASS + """    n = 0
    def merge(self, x, f, ctx):
        if x.shape[-1] > 8: self.n += 1
        return x + f / (1 + (self.n > 4))
"""


@pytest.fixture(autouse=True)
def searches(monkeypatch):
    """The searches that were begun; nothing is trained."""
    begun = []
    monkeypatch.setattr(entering, "searched", lambda args, selection, *_: begun.append(selection) or 0)
    return begun


@pytest.mark.parametrize("kind", slow_but(("nan", "batch", "two"), list(BROKEN)))
def test_a_broken_scheme_gets_one_line(kind, capsys, searches):
    text, words = BROKEN[kind]
    Path("bad.py").write_text(text)
    status, out, err = call(capsys, "enter", "bad.py")
    assert status == 2 and not out and words in err[-1] and err[-1].startswith("error: ") and "Traceback" not in "".join(err), err
    assert len([line for line in err if "with the contract" not in line]) == 1
    assert not Path("results").exists() and not searches


def test_a_scheme_that_keeps_something_from_step_to_step_is_found_by_stopping_it(capsys, monkeypatch):
    monkeypatch.setattr("suite.environment.compiler", lambda: "")
    Path("bad.py").write_text(KEEPS)
    status, _, err = call(capsys, "enter", "bad.py")
    assert status == 2 and "stopped and resumed it takes other steps" in err[-1]


ENDLESS = "while True: pass\n", CLASS + "    def merge(self, x, f, ctx):\n        while True: pass\n"


@pytest.mark.parametrize("text", slow_but(ENDLESS[:1], list(ENDLESS)))
def test_an_endless_one_is_waited_for_so_long_and_no_longer(text, capsys, monkeypatch):
    catalogue.read()
    monkeypatch.setattr(catalogue, "PATIENCE", 4.0)
    Path("bad.py").write_text(text)
    assert "does not come to an end (waited for 4 s)" in refused(capsys, "enter", "bad.py")


def part(folder: Path, scheme: str, depth: str, /, **changed: str) -> None:
    """The committed runs of one cell as a folder of its own, with other words in some columns of runs.csv."""
    runs = pd.read_csv(FRONTIER / "runs.csv", dtype=str, keep_default_na=False).query("scheme == @scheme and depth == @depth")
    kept = set(runs["run_id"])
    folder.mkdir(parents=True)
    for table in ("runs", "evals", "gates", "throughput"):
        with open(FRONTIER / f"{table}.csv", newline="") as source, open(folder / f"{table}.csv", "w", newline="") as target:
            rows = csv.DictReader(source)
            writer = csv.DictWriter(target, rows.fieldnames, lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | (changed if table == "runs" else {}) for row in rows if row["run_id"] in kept)
    shutil.copytree(FRONTIER / "curves" / f"{scheme}-L{depth}", folder / "curves" / f"{scheme}-L{depth}")
    write_package(folder)


@pytest.mark.slow
def test_a_scheme_goes_through_the_contract_into_the_ranking_and_a_folder_that_verifies(capsys, searches):
    """Plain, whose runs are there already."""
    part(Path("out/plain/frontier"), "plain", "100")
    status, out, err = call(capsys, "enter", ROOT / "baselines" / "plain.py", "--results", "out")
    assert status == 0, err
    assert [line for line in out if line.startswith("passed: ")] == out[:5]
    assert [(s.protocol, s.schemes, s.depths) for s in searches] == [("frontier", ("plain",), (100,))]
    assert [line for line in out if "plain <- yours" in line]
    assert sorted(p.name for p in Path("out/plain").iterdir() if p.name != ".work") == [
        "critical_rates.csv", "datapackage.json", "frontier", "plain.py", "ranking.csv"]  # fmt: skip
    status, out, err = call(capsys, "verify", "--results", "out/plain")
    assert status == 0 and out[-1].endswith("0 problems"), err
    Path("out/plain/plain.py").write_text("")
    assert "another version" in call(capsys, "enter", ROOT / "baselines" / "plain.py", "--results", "out")[2][-1]


def test_files_that_are_no_entry_are_refused(capsys):
    assert "this file registers deepnorm, deepnorm" in refused(capsys, "enter", ROOT / "baselines" / "deepnorm.py")
    shutil.copyfile(ROOT / "baselines" / "gain.py", "gain.py")
    assert "already registered by baselines/gain.py" in refused(capsys, "enter", "gain.py")


@pytest.mark.parametrize("better", [1.0, 0.9])
def test_its_row_stands_where_pairs_of_seeds_put_it(better, tmp_path):
    part(tmp_path / "frontier", "layerscale", "100", scheme="mine")
    runs = pd.read_csv(tmp_path / "frontier" / "runs.csv", dtype=str, keep_default_na=False)
    usable = runs["outcome"] == "survived"
    runs.loc[usable, "heldout_loss"] = (runs.loc[usable, "heldout_loss"].astype(float) * better).map("{:.6g}".format)
    runs["run_id"] = "r" + runs["run_id"].str[1:].map(lambda digits: f"{int(digits, 16) ^ 1:011x}")
    runs.to_csv(tmp_path / "frontier" / "runs.csv", index=False, lineterminator="\n")
    lines = among(tmp_path / "frontier", ROOT / "results", 100).splitlines()
    mine = next(line for line in lines if "mine <- yours" in line)
    assert sum("yours" in line for line in lines) == 1
    assert {"plain", "MV-Split", "DeepNorm", "LayerScale", "ReZero", "g=0.1"} <= set(" ".join(lines).split())
    if better == 1.0:  # shares LayerScale's place
        other = next(line for line in lines if "LayerScale" in line)
        assert mine.replace("mine <- yours", "").split() == other.replace("LayerScale", "").replace("0.01 ", "- ", 1).split()
    else:  # a tenth below LayerScale's loss is first of all
        assert lines[1] == mine and mine.split()[0] == "1"


@pytest.mark.parametrize("folder", sorted((ROOT / "results" / "entries").iterdir()), ids=lambda folder: folder.name)
def test_a_committed_entry_holds(folder, capsys):
    status, out, err = call(capsys, "verify", "--results", folder)
    assert status == 0 and out[-1].endswith("0 problems"), err
    runs = pd.read_csv(folder / "frontier" / "runs.csv")
    assert (runs["scheme"] == folder.name).all() and not runs["commit"].str.contains("dirty").any() and runs["code_digest"].nunique() == 1
