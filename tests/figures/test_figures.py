"""The figures: drawn from the tables alone, the same bytes every time, captioned, and nothing off the page."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from entries import slow_but
from invented import atlas, broken, laptop, record
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from paper_figures import draw, outcomes, style
from paper_figures.digest import digest
from paper_figures.figure import Recipe
from paper_figures.heldout import heldout
from paper_figures.losses import headline, loss_curves
from paper_figures.runs import caption, load_runs
from paper_figures.samples import samples
from suite import cli
from suite.environment import ROOT
from suite.protocol import SCHEMES
from suite.records.checks import check_folder
from suite.records.packed import replace
from suite.records.schema import TABLES
from suite.records.store import Store, content

FIRST = [headline, heldout, loss_curves, outcomes.outcomes, samples]
find_figures = draw.figures


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder with both, made once."""
    folder = tmp_path_factory.mktemp("results")
    laptop(folder / "laptop")
    atlas(folder / "atlas", depths=(25, 100), seeds=(0, 1, 2))
    assert not [line for name in ("laptop", "atlas") for line in check_folder(folder / name)]
    return folder


@pytest.fixture(scope="module", autouse=True)
def first_figures():
    """Only the figures of this file are drawn; the paper's have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "figures", lambda: FIRST)
        yield


@pytest.fixture(scope="module")
def drawn(results, tmp_path_factory, first_figures):
    """The files of one drawing."""
    out = tmp_path_factory.mktemp("out")
    assert draw.draw_all(results, out).status == 0
    return out


def caption_of(recipe, folder):
    return style.caption_of(recipe.draw(folder))


def test_draws_every_figure_it_can(drawn):
    names = {path.name for path in drawn.iterdir()}
    stems = {f"laptop-{name}" for name in ("loss_curves", "outcomes", "heldout", "samples", "headline")}
    stems |= {f"atlas-{name}" for name in ("loss_curves", "outcomes", "heldout")}  # no pictures, no headline
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}


@pytest.mark.parametrize("names", slow_but(["outcomes samples"], ["outcomes samples", "headline heldout loss_curves"]))
def test_same_tables_same_bytes(results, drawn, tmp_path, names):
    """In another process, which never needed torch."""
    code = (
        "import sys; from dataclasses import replace; from paper_figures import draw; found = draw.figures(); "
        "draw.figures = lambda: [replace(one, protocols=('laptop',)) for one in found "  # of one folder, since it takes time
        f"if one.name in {names.split()}]; "
        "assert draw.draw_all(*sys.argv[1:]).status == 0 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(results), str(tmp_path)], check=True, cwd=ROOT)
    again = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(again) == 2 * len(names.split())
    assert again == {name: (drawn / name).read_bytes() for name in again}


def test_a_file_that_would_not_change_is_not_touched(results, drawn, tmp_path):
    for path in drawn.glob("laptop-outcomes.*"):
        shutil.copy(path, tmp_path)
    target = tmp_path / "laptop-outcomes.png"
    before = target.stat().st_mtime_ns
    figure = outcomes.outcomes.draw(results / "laptop")
    with style.context():
        style.save(figure, tmp_path / "laptop-outcomes")
    assert target.stat().st_mtime_ns == before


def test_no_dates_or_versions_in_the_files(drawn):
    for path in drawn.glob("laptop-*"):
        data = path.read_bytes()
        assert b"CreationDate" not in data and b"Matplotlib" not in data and b"matplotlib.org" not in data


def test_every_recipe_of_a_module_is_a_figure():
    found = find_figures()
    assert set(FIRST) <= set(found)
    for recipe in found:
        assert recipe.title and set(recipe.tables) <= set(TABLES)
        assert recipe.protocols is None or isinstance(recipe.protocols, tuple)


def test_table_of_figures_is_printed(results, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(draw, "figures", lambda: [dataclasses.replace(outcomes.outcomes, protocols=("laptop",))])
    assert draw.draw_all(results, tmp_path).status == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["figure", "file", "tables"]
    assert any("laptop-outcomes.png" in line and outcomes.outcomes.title in line and line.endswith("runs") for line in lines)


@pytest.fixture
def small(results, drawn, tmp_path, monkeypatch):
    """A results folder of its own and its pictures."""
    recipes = [outcomes.outcomes, heldout, loss_curves, samples]
    monkeypatch.setattr(draw, "figures", lambda: recipes)
    shutil.copytree(results / "laptop", tmp_path / "results" / "laptop")
    (tmp_path / "out").mkdir()
    for path in (path for recipe in recipes for path in drawn.glob(f"laptop-{recipe.name}.*")):
        shutil.copy(path, tmp_path / "out")
    return tmp_path / "results", tmp_path / "out"


@pytest.mark.slow
def test_pictures_that_tables_no_longer_give_are_found(small, capsys):
    """Every table behind a figure counts, to its sixth digit; a table that a figure does not read does not."""
    results, out = small
    folder = results / "laptop"
    capsys.readouterr()
    assert draw.stale(results, out) == []
    assert capsys.readouterr() == ("", "")

    def stems():
        problems = draw.stale(results, out)
        assert all("does not show" in problem and str(out) in problem for problem in problems)
        names = {Path(problem.partition(": ")[0]).stem for problem in problems}
        assert len(problems) == 2 * len(names)  # PNG and PDF
        return {name.removeprefix("laptop-") for name in names}

    for path, change, figures in (
        (folder / "runs.csv", lambda t: t.replace(",151,", ",152,", 1), {"outcomes", "loss_curves", "samples"}),
        (folder / "quality.csv", lambda t: "".join(_nudge(t.splitlines(keepends=True), "plain", folder)), {"heldout"}),
        (min((folder / "curves" / "plain-L25").iterdir()), _last_digit, {"loss_curves"}),
        (folder / "runs.csv", lambda t: t.replace(",0.004,", ",0.005,"), {"outcomes", "loss_curves", "samples", "heldout"}),
    ):
        before = content(path).decode()
        assert change(before) != before
        replace(path, change(before).encode())
        assert stems() == figures
        replace(path, before.encode())
    assert draw.stale(results, out) == []
    path = max((folder / "samples").glob("plain-L*.png"), key=lambda path: int(path.name.split("-")[1][1:]))  # the deepest is shown
    pixels = np.array(Image.open(path))
    pixels[5, 5] ^= 64
    Image.fromarray(pixels).save(path)
    assert stems() == {"samples"}


def test_a_picture_is_missing_another_or_broken(small, monkeypatch, capsys):
    results, out = small
    monkeypatch.setattr(draw, "figures", lambda: [outcomes.outcomes])
    for path in out.glob("*"):
        if "outcomes" not in path.name:
            path.unlink()
    png, pdf = out / "laptop-outcomes.png", out / "laptop-outcomes.pdf"
    assert draw.stale(results, out) == []
    check = ["figures", "--check", "--results", str(results), "--out", str(out)]
    assert cli.main(check) == 0 and capsys.readouterr().out == f"{out}: 0 problems\n"
    whole = {path: path.read_bytes() for path in (png, pdf)}
    for path, data, words in ((png, whole[png][:-200], "cannot be decoded"), (pdf, whole[pdf][:-20], "no whole PDF"),
                              (png, b"", "does not show"), (pdf, whole[png], "no whole PDF"), (png, None, "missing")):
        path.unlink() if data is None else path.write_bytes(data)
        (problem,) = draw.stale(results, out)
        assert str(path) in problem and words in problem
        assert cli.main(check) == 1 and problem in capsys.readouterr().out
        path.write_bytes(whole[path])


def _nudge(lines, scheme, folder):
    """The lines of quality.csv with the sixth digit of the fid of the scheme's shallow run changed."""
    run_id = next((folder / "samples").glob(f"{scheme}-L25-*.png")).stem.split("-")[-1]
    at = next(i for i, line in enumerate(lines) if line.startswith(run_id))
    cells = lines[at].split(",")
    cells[2] = f"{float(cells[2]) * (1 + 1e-5):.6g}"
    return [*lines[:at], ",".join(cells), *lines[at + 1:]]


def _last_digit(text):
    """The text of a curve with the last digit of one loss changed by one."""
    lines = text.splitlines(keepends=True)
    cells = lines[101].split(",")
    assert len(cells[2]) == 8  # 0.123456
    cells[2] = cells[2][:-1] + str((int(cells[2][-1]) + 1) % 10)
    return "".join([*lines[:101], ",".join(cells), *lines[102:]])


def test_pictures_missing_foreign_or_unmarked_are_found(small):
    results, out = small
    (out / "laptop-outcomes.pdf").unlink()
    (out / "laptop-gone.png").write_bytes((out / "laptop-outcomes.png").read_bytes())
    (out / "note.txt").write_text("of no interest")
    figure = loss_curves.draw(results / "laptop")
    figure.savefig(out / "laptop-loss_curves.png")  # drawn by hand, without the mark
    (results / "laptop" / "quality.csv").write_text("")
    lines = draw.stale(results, out)
    assert len(lines) == 4, lines
    found = {"outcomes.pdf": "missing", "gone.png": "no table", "loss_curves.png": "does not show", "heldout.png": "is empty"}
    for name, word in found.items():
        assert any(f"laptop-{name}" in line and word in line for line in lines), (name, lines)


def test_digest_is_of_data_not_of_rounding_or_looks():
    """Other platforms round the last bits otherwise; what counts is the sixth digit."""
    def of(*points, word="x", **looks):
        figure = style.Figure()
        ax = figure.subplots()
        ax.plot(range(len(points)), points, **looks)
        ax.text(0.5, 0.5, word)
        ax.set_xticks([0, 1], ["a", word])
        return digest(figure)

    base = of(1.0, 0.123456, 0.0, np.nan)
    assert base == of(1.0 - 1e-16, 0.123456 + 1e-16, 1e-17, -np.nan)
    assert base == of(1.0, 0.123456, -0.0, np.nan, color="red", linewidth=9)
    others = [of(1.0, 0.123457, 0.0, np.nan), of(1.0, 0.123456, 1e-6, np.nan), of(1.0, 0.123456, 0.0, np.inf),
              of(0.123456, 1.0, 0.0, np.nan), of(1.0, 0.123456, 0.0), of(1.0, 0.123456, 0.0, np.nan, word="y"),
              of(1.0, 0.123456, 0.0, np.nan, label="z")]
    assert len({base, *others}) == 1 + len(others)


def test_no_results(tmp_path, capsys):
    assert draw.draw_all(tmp_path, tmp_path / "out").status == 2
    assert "no results" in capsys.readouterr().err


def test_a_broken_figure_does_not_cost_the_others(results, tmp_path, monkeypatch, capsys):
    def explode(folder, title):
        raise KeyError("x")

    bad = Recipe("bad", "", ("runs",), ("laptop",), explode)
    monkeypatch.setattr(draw, "figures", lambda: [bad, dataclasses.replace(outcomes.outcomes, protocols=("laptop",))])
    assert draw.draw_all(results, tmp_path).status == 1
    assert "laptop-bad: Traceback" in capsys.readouterr().err
    assert (tmp_path / "laptop-outcomes.png").exists()


def test_captions(results):
    text = caption_of(loss_curves, results / "laptop")
    for part in ("Protocol laptop v1", "10 runs", "seed 0", "data digits", "learning rate 0.004", "horizon 400 steps",
                 "commit 012345678-dirty", "1 error", "running median"):
        assert part in text
    assert text.endswith("1 error.")  # where the numbers come from stands last, and smaller
    words, source = loss_curves.draw(results / "laptop").subfigs[-1].texts
    assert source.get_text().startswith("Protocol") and source.get_fontsize() < words.get_fontsize()
    text = caption_of(heldout, results / "laptop")
    assert "FID is on a small digit classifier's 16 features with n=256 samples and is not Inception's FID" in text
    text = caption_of(outcomes.outcomes, results / "atlas")
    assert "seeds 0, 1, 2" in text and "learning rates 0.004, 0.01" in text and "4 oom" not in text and "2 oom" in text


@pytest.mark.parametrize("recipe", FIRST, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("protocol", ["laptop", "atlas"])
def test_all_text_is_on_the_page_and_large_enough(results, recipe, protocol):
    figure = recipe.draw(results / protocol)
    if figure is None:
        pytest.skip("not drawn for this folder")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # settles the layout
    renderer = canvas.get_renderer()
    assert all(text.get_fontsize() >= 7 for text in figure.findobj(Text) if text.get_text())
    (width, height), box = figure.get_size_inches(), figure.get_tightbbox(renderer)
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, "something runs off the page"
    foot = figure.subfigs[-1].texts[0].get_window_extent(renderer)
    body = figure.subfigs[0].get_tightbbox(renderer)
    assert foot.y1 <= body.y0 * figure.dpi + 1  # the caption is below everything else


def test_failures_alone_and_metrics_that_are_nan(tmp_path, capsys):
    folder = tmp_path / "laptop"
    Store(folder).add(broken("plain", 100))
    assert draw.draw_all(tmp_path, tmp_path / "out").status == 0
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"laptop-outcomes"}
    assert len([line for line in capsys.readouterr().err.splitlines() if ": not drawn: " in line]) == 4

    nothing = record("rezero", 25, outcome="nonfinite", at=0, steps=1, best_loss=np.nan, constant_loss=np.nan)
    nothing["curve"] = [{"step": 0, "loss": np.nan, "grad_norm": np.inf}]
    nothing["quality"] = [{"step": 0, "fid_status": "nonfinite"}]
    Store(folder).add(nothing)
    assert draw.draw_all(tmp_path, tmp_path / "out").status == 0
    assert (tmp_path / "out" / "laptop-loss_curves.png").exists()


def test_labels_of_variants(results, tmp_path):
    runs = load_runs(results / "atlas")
    assert list(runs["label"].drop_duplicates()) == [
        "plain", "LayerScale", "ReZero", "DeepNorm", "MV-Split beta=0.03", "MV-Split beta=1", "hyper-connections"]
    assert runs.groupby("label")["variant"].first()["MV-Split beta=1"] == 1
    store = Store(tmp_path)
    for change in ({}, {"arm": "native"}, {"writers": "std"}, {"protocol_version": 0}):
        store.add(record("plain", 2, steps=3, run_id="_".join(["r", *change]), **change))
    runs = load_runs(tmp_path)
    assert list(runs["label"]) == ["plain std writers", "plain zero writers", "plain native zero writers"]
    assert "1 run of older protocol versions left out" in caption(runs)


def test_looks_are_stable():
    looks = [style.scheme_look(scheme) for scheme in SCHEMES]
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 5
    assert style.scheme_look("hyper-connections") == style.scheme_look("hyper-connections")
    assert style.scheme_look("hyper-connections")[0] not in {colour for colour, _ in looks}


def test_wrap_cuts_what_has_no_spaces():
    lines = style.wrap("data parquet:" + "very/long/" * 40, 5, 8)
    assert len(lines) > 3 and all(style._width(line, 8) <= 5 for line in lines)
