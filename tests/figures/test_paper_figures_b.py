"""Figures 5, 9, 10, 11, 12 and Table 1: what they draw is what the tables say."""

import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest
from matplotlib.text import Text
from on_page import assert_on_page

from paper_figures import draw, spikes, style
from paper_figures.fig10_attention_only import attention_alone
from paper_figures.fig11_probe import probe
from paper_figures.losses import full_loss
from paper_figures.quality import quality, scores_of
from paper_figures.runs import load_runs
from paper_figures.spikes import spike_trace
from paper_figures.table1_quality import table, table1
from suite.environment import ROOT
from suite.records.checks import check_folder
from suite.records.store import Store, read

RECIPES = (quality, spike_trace, attention_alone, probe, full_loss, table1)
LEVELS = {"plain": 0.62, "mvsplit": 0.61, "layerscale": 0.64, "rezero": 0.66, "deepnorm": 0.63}
ATTN = "alpha=0,beta=1,sites=attn"


def record(scheme, seed, *, params="", at=None, horizon=300, depth=100, alarms=2):
    """One invented run: it learns, spikes and comes back `alarms` times, and collapses at step `at` after a last spike."""
    rng = np.random.default_rng([len(scheme), len(params), seed])
    last = horizon + 50 if at is None else min(horizon + 50, at + horizon // 6)
    step = np.arange(1, last + 1)
    level = LEVELS[scheme] + 0.01 * rng.normal()
    loss = level + (2 - level) * np.exp(-step / (horizon / 12)) + rng.normal(0, 0.05, last)
    norm = 0.6 * np.exp(rng.normal(0, 0.25, last))
    spikes = [int(s) for s in horizon * np.linspace(0.2, 0.35, alarms)]
    if at is not None:
        loss = np.where(step >= at, 2.0 + rng.normal(0, 0.05, last), loss)
        norm = np.where(step >= at + 3, 0.05, norm)
        spikes.append(at - 4)
    for s in spikes:
        norm[s - 1] = 9.0
    row = {
        "run_id": f"{scheme}{seed}{'a' if params == ATTN else ''}", "protocol": "anatomy", "protocol_version": 1,
        "scheme": scheme, "arm": "controlled", "params": params, "writers": "std" if scheme == "rezero" else "zero",
        "depth": depth, "lr": 0.0035, "seed": seed, "data": "digits", "horizon": horizon, "window": 50, "status": "done",
        "outcome": "survived" if at is None else "collapsed", "crash_step": at, "confirmed": None if at is None else True,
        "last_step": last, "constant_loss": 2.0, "best_loss": level, "final_loss": loss[-1], "heldout_loss": loss[-1],
        "compiled": True, "commit": "0123456789abcdef",
    }  # fmt: skip
    shared = {"fid_features": "digits16", "fid_n": 256, "fid_status": "ok"}
    # as in a real run, a checkpoint just after a crash has a score: nobody knew yet
    quality = [{"step": s, "fid": level * 2 * horizon / s + seed / 100, "inception_score": 6 + 3 * s / horizon, **shared}
               for s in [horizon * k // 5 for k in range(1, 6)] + [horizon + 50] * (at is None) if s <= last]
    if at is not None:
        quality.append({"step": last, "fid_status": "crashed"})
    quality.append({"run_id": "real", "fid": 0.1, "inception_score": 9.4, **shared})
    families = [("L0 Q", 3.0), ("Embed", 2.0), ("L70 WO", 1.0)] + [(f"L{i} W2", 0.5) for i in range(20, 32)]
    if params == ATTN:
        families = [(f"L{i} W2", 1.0) for i in range(32, 46)] + [("Final", 0.9)]
    probe = []
    if at is None:
        probe = [{"step": last, "layer": layer, "feature": name, "r2": top * (0.8 + 0.2 * layer / depth), "mae": 0.25 - 0.2 * top,
                  "residual_r2": top - 0.1} for layer in range(0, depth, 9)
                 for name, top in (("image_mean", 0.99), ("centered_rms", 0.8), ("caption_mean", 0.9))]
        probe += [{"step": last, "layer": 0, "feature": "input_stats", "r2": 0.41, "mae": 0.17, "residual_r2": 0.0},
                  {"step": last, "layer": 99, "feature": "shuffled", "r2": -0.02, "mae": 0.25, "residual_r2": None}]
    return {
        "run": row, "quality": quality, "probe": probe,
        "curve": [{"step": int(s), "loss": x, "grad_norm": g} for s, x, g in zip(step, loss, norm)],
        "evals": [{"step": int(s), "heldout_loss": loss[s - 1]} for s in step[49::50]],
        "spikes": [{"step": s, "grad_norm": 9.0, "threshold": 2.4, "recovered": at is None or s < at - 50, "rank": rank,
                    "family": family, "family_grad_norm": norm} for s in spikes for rank, (family, norm) in enumerate(families, 1)],
    }  # fmt: skip


def anatomy(folder, horizon=300, attn_crashes=True, seeds=(0, 1, 2)):
    """The protocol in small: plain collapses in two seeds of three, and MV-Split on attention alone in one."""
    store = Store(folder)
    with store.lock():
        for seed in seeds:
            store.add(record("plain", seed, at={0: horizon * 55 // 100, 1: horizon * 78 // 100}.get(seed), horizon=horizon))
            store.add(record("mvsplit", seed, params="alpha=0,beta=1,sites=both", horizon=horizon, alarms=1))
            dies = attn_crashes and seed == 1
            store.add(record("mvsplit", seed, params=ATTN, horizon=horizon, at=horizon * 7 // 10 if dies else None))
            for scheme, params in (("layerscale", "init=0.01"), ("rezero", ""), ("deepnorm", "")):
                store.add(record(scheme, seed, params=params, horizon=horizon))
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder with one anatomy."""
    folder = anatomy(tmp_path_factory.mktemp("results") / "anatomy")
    assert not check_folder(folder)
    return folder.parent


@lru_cache
def figure_of(recipe, folder):
    return recipe.draw(folder)


def caption_of(figure):
    return style.caption_of(figure)


def axes_titled(figure, part):
    found = [ax for ax in figure.axes if part in ax.get_title()]
    assert len(found) == 1, [ax.get_title() for ax in figure.axes]
    return found[0]


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def run_named(folder, run_id):
    return next(row for row in load_runs(folder).itertuples() if row.run_id == run_id)


def test_same_tables_same_bytes(results, tmp_path):
    """In another process, where no figure needs torch."""
    code = ("import sys; from paper_figures import draw; found = draw.figures(); "
            "draw.figures = lambda: [recipe for recipe in found if recipe.name == 'fig05_quality']; "
            "assert draw.draw_all(*sys.argv[1:]).status == 0 and 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code, str(results), str(tmp_path)], check=True, cwd=ROOT, capture_output=True)
    figure = quality.draw(results / "anatomy")
    with style.context():
        files = style.save(figure, tmp_path / "again")
    for path in files:
        assert path.read_bytes() == (tmp_path / f"anatomy-fig05_quality{path.suffix}").read_bytes()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_all_is_on_the_page_and_large_enough(results, recipe):
    assert_on_page(figure_of(recipe, results / "anatomy"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_without_their_tables_they_say_why(recipe, tmp_path, capsys):
    folder = tmp_path / "anatomy"
    bare = record("mvsplit", 0, params="alpha=0,beta=1,sites=both")
    Store(folder).add({"run": bare["run"]})
    assert figure_of(recipe, folder) is None
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"anatomy-{recipe.name}: not drawn: ")


def test_all_of_them_are_figures_of_the_anatomy():
    assert all(recipe in draw.figures() and recipe.protocols == ("anatomy",) for recipe in RECIPES)


def test_scores_after_a_crash_are_left_out(results):
    folder = results / "anatomy"
    runs = load_runs(folder)
    scored, floor, features = scores_of(folder, runs)
    assert features == "digits16" and floor["fid"] == 0.1
    assert set(read(folder, "quality").query("run_id == 'plain0' and fid == fid")["step"]) == {60, 120, 180}  # crash at 165
    assert set(scored.query("run_id == 'plain0'")["step"]) == {60, 120}
    assert set(scored.query("run_id == 'plain2'")["step"]) == {60, 120, 180, 240, 300, 350}


def test_figure_5_draws_runs_floor_and_clipped_norms(results):
    figure = figure_of(quality, results / "anatomy")
    scored, floor, _ = scores_of(results / "anatomy", load_runs(results / "anatomy"))
    fid = next(ax for ax in figure.axes if ax.get_ylabel().startswith("FID"))
    for run_id in ("layerscale1", "plain0"):  # a line each, to the horizon or the crash: a mean would be of other runs at every step
        mine = scored[(scored["run_id"] == run_id) & (scored["step"] <= 300)]
        assert any(np.array_equal(line.get_xydata(), mine[["step", "fid"]]) for line in fid.lines)
    assert max(line.get_xdata()[-1] for line in fid.lines if len(line.get_xdata()) > 2) == 300
    assert any(np.allclose(line.get_ydata(), floor["fid"]) for line in fid.lines if len(line.get_ydata()) == 2)
    assert fid.get_yscale() == "log"
    plain = axes_titled(figure, "plain")
    assert max(np.nanmax(line.get_ydata()) for line in plain.lines) == 1.0  # the clip
    curve = read(results / "anatomy", "curves", "plain").query("run_id == 'plain2' and step <= 300")["grad_norm"].clip(upper=1.0)
    assert any(np.array_equal(line.get_ydata(), curve) for line in plain.lines)
    text = caption_of(figure)
    assert "Runs left at 60, 120, 180, 240, 300 steps: plain 3, 3, 2, 1, 1 of 3" in text
    assert "small digit classifier's 16 features with n=256 samples, not Inception's FID" in text and "FID 0.1" in text


def test_table_1(results):
    folder = results / "anatomy"
    runs = load_runs(folder)
    scored, _, _ = scores_of(folder, runs)
    cells = table(runs, scored, [60, 180, 240])
    fids = scored.query("scheme == 'plain' and step == 60")["fid"]
    fid, main, small = cells["plain"][60]
    assert fid == pytest.approx(fids.mean()) and main == f"{fids.mean():.2f} / 6.60"
    assert small == f"{fids.min():.2f}–{fids.max():.2f}"
    assert cells["plain"][180][2].endswith("; 1/3 lost") and cells["plain"][240][2] == "2/3 lost"
    assert cells["ReZero"]["n"] == 3 and "lost" not in cells["ReZero"][240][2]
    shown = texts(figure_of(table1, folder))
    assert main in shown and "5.92 / 108.6" in shown and "step 300" in shown and "step 350" not in shown


def test_table_1_of_runs_that_all_crashed(tmp_path):
    folder = tmp_path / "anatomy"
    for seed in (0, 1):
        Store(folder).add(record("plain", seed, at=100 + seed))
        Store(folder).add(record("deepnorm", seed))
    runs = load_runs(folder)
    cells = table(runs, scores_of(folder, runs)[0], [60, 120])
    assert cells["plain"][120] == (None, "—", "") and cells["plain"][60][0] is not None


def test_figure_9_shows_the_last_spike_before_the_crash(results):
    folder = results / "anatomy"
    table = read(folder, "spikes")
    row = run_named(folder, "plain0")
    assert spikes.fatal(table, row) == [161]
    assert list(spikes.until_crash(table, row)["back"]) == [True, True, False]
    assert spikes.fatal(table, run_named(folder, "plain2")) == []
    facts = spikes.summary(spikes.families(table, "plain0", 161))
    assert facts["shallow"] == 2 and facts["shallow_share"] == pytest.approx(13 / 17)
    assert facts["W2_share"] == pytest.approx(3 / 17) and facts["covered"] == pytest.approx(17 / 81)
    figure = figure_of(spike_trace, folder)
    bars = axes_titled(figure, "step 161")
    assert [bar.get_width() for bar in bars.patches] == [3, 2, 1] + [0.5] * 12
    assert [tick.get_text() for tick in bars.get_yticklabels()][:3] == ["L0 Q", "Embed", "L70 WO"]
    title = " ".join(figure.subfigs[0].get_suptitle().split())
    assert title.startswith("Figure 9, unlike the paper's: 2 of the last spike's 15 largest gradients lie in")
    text = caption_of(figure)
    for part in ("At step 161, 4 before the crash", "Spikes of seed 0 up to its crash: 3, false alarms: 2", "seed 1: step 230, crash 234",
                 "hold 21% of the squared", "have 76% (2 families), all W_O 6% (1), all W_2 18% (12)"):
        assert part in text
    axes_titled(figure, "spikes: 3, came back: 2 (67% false alarms)")
    parts = axes_titled(figure, "top 15 of each spike")
    assert sorted(bar.get_height() for bar in parts.patches) == pytest.approx([1 / 17, 3 / 17, 4 / 17, 9 / 17])
    assert [text.get_text() for text in parts.texts] == ["76"]


def test_figure_9_has_the_papers_fifteen():
    names, values = zip(*spikes.PAPER)
    assert len(set(names)) == 15 and list(values) == sorted(values, reverse=True)
    assert all(name == "Embed" or int(name.split()[0][1:]) <= 2 for name in names)


@pytest.mark.parametrize("crashes", [True, False])
def test_figure_10_tells_whether_it_crashed(tmp_path, results, crashes):
    folder = results / "anatomy" if crashes else anatomy(tmp_path / "anatomy", attn_crashes=False, seeds=(0, 1))
    figure = figure_of(attention_alone, folder)
    words = "1 of 3 attention-only runs crashed here: seed 1 collapsed at step 210" if crashes else (
        "None of our 2 attention-only runs crashed in 350 steps")
    assert words in caption_of(figure)
    title = figure.subfigs[0].get_suptitle()
    assert title.startswith("Figure 10: MV-Split on attention alone: ") and ("1 of 3 runs crashed; W_2 has" in title) == crashes
    bars = axes_titled(figure, "seed 1, step 206: before the crash" if crashes else "the largest; it came back")
    assert [tick.get_text() for tick in bars.get_yticklabels()].count("Final") == 1
    labels = {text.get_text() for ax in (figure.subfigs[0],) for text in ax.legends[0].get_texts()}
    assert {"plain", "MV-Split on attention alone", "MV-Split"} <= labels


def test_figure_10_without_a_spike_shows_the_losses(tmp_path):
    folder = tmp_path / "anatomy"
    for name, params in (("plain", ""), ("mvsplit", ATTN), ("mvsplit", "alpha=0,beta=1,sites=both")):
        Store(folder).add(record(name, 0, params=params, alarms=0))
    figure = figure_of(attention_alone, folder)
    assert len(figure.axes) == 1 and "never crossed the spike threshold" in caption_of(figure)
    assert len([line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]) == 6  # three runs, raw and median


def test_figure_11_draws_the_probe(results):
    figure = figure_of(probe, results / "anatomy")
    main = axes_titled(figure, "MV-Split: (a)")
    top = [line for line in main.lines if line.get_color() == style.PALETTE[0] and line.get_marker() == "o"][0]
    assert top.get_xdata()[0] == 0 and top.get_ydata()[-1] == pytest.approx(0.99 * 0.998)
    assert any(np.allclose(line.get_ydata(), 0.41) for line in main.lines)
    assert any(np.allclose(line.get_ydata(), -0.02) for line in main.lines)
    assert {ax.get_title() for ax in figure.axes} >= {"plain", "ReZero", "MV-Split on attention alone"}  # plain: the seed that lived
    text = caption_of(figure)
    assert "R² 0.41, error 0.17; shuffled t: |R²| at most 0.020" in text and ".998 and .70" in text and "image-token mean 0.988" in text


def test_figure_12_medians_do_not_cross_a_crash(results):
    folder = results / "anatomy"
    figure = figure_of(full_loss, folder)
    train = axes_titled(figure, "training loss")
    curve = read(folder, "curves", "plain").query("run_id == 'plain0'")
    lines = [line for line in train.lines if np.array_equal(line.get_xdata(), curve["step"])]
    assert any(np.array_equal(line.get_ydata(), curve["loss"]) for line in lines)  # raw
    median = next(line.get_ydata() for line in lines if not np.array_equal(line.get_ydata(), curve["loss"]))
    assert median[163] < 0.8 and median[164] > 1.8  # steps 164 and 165, the crash
    marks = [line for line in train.lines if line.get_marker() == "X"]
    assert sorted(float(np.ravel(mark.get_xdata())[0]) for mark in marks) == [165, 210, 234]
    assert "plain: seed 0 collapsed at step 165, seed 1 collapsed at step 234" in caption_of(figure)
