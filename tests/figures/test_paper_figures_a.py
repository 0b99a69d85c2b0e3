"""Figures 2, 3, 4, 6 and 7 on invented tables: what is drawn and printed must be what the tables say."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axis import Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from paper_figures import audit as rows
from paper_figures import style
from paper_figures.fading import fading
from paper_figures.fig02_loss_and_rho import loss_and_rho
from paper_figures.fig03_anatomy import anatomy
from paper_figures.fig04_amplification import amplification, through_origin
from paper_figures.fig06_gradient_modes import band, gradient_modes, one_run_each
from paper_figures.fig07_stdinit import standard_init
from paper_figures.figure import NotDrawn
from paper_figures.runs import load_runs
from suite.protocol import evenly
from suite.records.checks import check_folder
from suite.records.store import Store, read

ANATOMY = [loss_and_rho, anatomy, amplification, gradient_modes]
DEPTH, CRASH, EVERY, TOKENS = 8, 100, 25, 20


def audit(steps, layers, crash, seed, window=False, scheme="plain"):
    """Audit rows that rise at the crash and go out after it."""
    rng, out = np.random.default_rng([seed, len(scheme), window, len(layers)]), []
    for step in steps:
        for layer in layers:
            for site in ("attn", "ffn"):
                dead, spike = crash is not None and step >= crash, crash is not None and step == crash + 1
                scale = np.exp(rng.normal(0, 0.3)) * (step > 1)  # the first gradient is exactly 0
                kappa = rng.uniform(0.1, 0.3) + 0.5 * spike
                out.append({
                    "step": step, "layer": layer, "site": site, "segment": "all", "window": window,
                    "g_mean": scale * (0.5 if spike else 1e-4 if dead else 1e-2) * (scheme != "mvsplit" or step > 60),
                    "g_ctr": scale * (2e-2 if spike or not dead else 0.0),
                    "amplification": 1 + 19 * kappa * (0.9 if spike else 0.1) + rng.normal(0, 0.05), "kappa_hat": kappa,
                    "rho": (1e5 if dead else 0.5) * scale + 0.1, "r_tr": 0.2 + 0.1 * dead, "var_gain": 0.1 + layer / 50,
                    "tcs": 0.99 if dead else 0.2 + 0.7 * layer / DEPTH,
                } | ({"mu_eff": 0.9 - 0.4 * dead, "row_div": 0.5, "retention": 0.6 - layer / 30, "leakage": 0.1,
                      "q_grad": scale * (1e-8 if dead else 1e-3), "k_grad": scale * (2e-8 if dead else 1e-3),
                      "wo_grad": scale * 1e-2} if site == "attn" else {"w2_grad": scale * 1e-2}))  # fmt: skip
    return out


def record(scheme, *, seed=0, crash=None, lr=3.5e-3, window=True, audited=True, protocol="anatomy", every=EVERY, **run):
    """One invented run: anchors at the stride, all layers at every fourth stride and around the crash."""
    steps, anchors = 300, [0, 2, 5, 7]
    stride = [1, *range(every, steps + 1, every)]
    dense = range(crash - 30, crash + 31) if crash and window else ()
    entries = audit(dense, range(DEPTH), crash, seed, window=True)
    for layers, full in ((anchors, False), (range(DEPTH), True)):
        steps_there = [s for s in stride if s not in dense and (s % (4 * every) == 0) == full]
        entries += audit(steps_there, layers, crash, seed, scheme=scheme)
    noise = np.random.default_rng(seed).normal(0, 0.05, steps)
    loss = np.where(np.arange(1, steps + 1) >= (crash or steps + 1), 2.0, 0.8) + noise
    row = {
        "run_id": f"{scheme}{seed}{lr}{run.get('params', '')}".replace("=", "_"), "protocol": protocol, "protocol_version": 1,
        "scheme": scheme, "arm": "controlled", "params": "", "writers": "zero", "depth": DEPTH, "lr": lr, "seed": seed,
        "data": "digits", "image_tokens": TOKENS - 4, "caption_tokens": 4, "horizon": 250, "window": 50,
        "status": "done", "outcome": "collapsed" if crash else "survived", "crash_step": crash, "constant_loss": 2.0,
        "compiled": True, "commit": "0123456789abcdef",
    } | run  # fmt: skip
    curve = [{"step": i + 1, "loss": x, "grad_norm": 1.0 + abs(x)} for i, x in enumerate(loss.tolist())]
    return {"run": row, "curve": curve} | ({"audit": entries} if audited else {})


def store(folder, *records):
    into = Store(folder)
    for item in records:
        into.add(item)
    assert not check_folder(folder)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    store(folder / "anatomy", record("plain", seed=1, crash=CRASH), record("plain", seed=0, crash=CRASH, lr=4e-3),
          record("plain", seed=0), record("mvsplit", seed=1, params="sites=both"),
          record("mvsplit", seed=0, params="sites=both"), record("mvsplit", seed=1, params="sites=attn"),
          record("layerscale", seed=2))  # fmt: skip
    store(folder / "stdinit", *(record(scheme, writers="std", protocol="stdinit", every=10, outcome="untrained")
                                for scheme in ("plain", "mvsplit")))
    return folder


def texts(figure):
    found = figure.findobj(lambda artist: hasattr(artist, "get_text") and artist.get_visible() and artist.get_text())
    return [text.get_text() for text in found]


def window_of(folder, site):
    """Dense rows of the run to dissect (plain, seed 1, the lower learning rate), read without the figures' helper."""
    table = read(folder, "audit", "plain")
    return table[table["window"] & (table["site"] == site) & (table["run_id"] == "plain10.0035")]


def test_the_run_to_dissect(results, tmp_path):
    runs = load_runs(results / "anatomy")
    run, window, _, event = rows.dissected(results / "anatomy", runs)
    assert (run.lr, run.seed, len(window)) == (3.5e-3, 1, 61 * DEPTH * 2)
    assert event == CRASH + 1
    folder = store(tmp_path / "anatomy", record("plain", crash=CRASH, window=False), record("mvsplit", crash=CRASH))
    with pytest.raises(NotDrawn, match="every step around its crash"):
        rows.dissected(folder, load_runs(folder))


def test_the_run_to_dissect_stands_where_the_others_do(tmp_path):
    """Figure 6 shows its depth and learning rate: a colder run without company would empty it."""
    lonely, shared = record("plain", crash=CRASH, lr=2e-3), record("plain", crash=CRASH)
    folder = store(tmp_path / "anatomy", lonely, shared, record("mvsplit"))
    assert rows.dissected(folder, load_runs(folder)).run.lr == 3.5e-3
    folder = store(tmp_path / "alone", lonely, record("plain"), record("mvsplit"))
    assert rows.dissected(folder, load_runs(folder)).run.lr == 2e-3


def test_uniform_rows_have_the_same_layers_everywhere(results):
    table = read(results / "anatomy", "audit", "plain")
    kept = rows.uniform(table[table["run_id"] == "plain10.0035"])
    assert set(kept["step"]) == {1, *range(25, 301, 25)} and set(kept["layer"]) == {0, 2, 5, 7}
    assert rows.uniform(table.head(0)).empty


def test_small_helpers():
    assert evenly(range(100), 5) == [0, 25, 50, 74, 99] and evenly([3], 5) == [3]
    assert list(rows.edges([0, 2, 6])) == [-1, 1, 4, 8] and list(rows.edges([4])) == [3.5, 4.5]
    assert rows.power(-12, 0) == "10⁻¹²" and rows.power(-8.66) == "10^-8.7"
    assert list(rows.positive([0.0, 2.0]).isna()) == [True, False]


def test_factors_are_those_of_the_table(results):
    figure = anatomy.draw(results / "anatomy")
    drawn = texts(figure)
    for site, metric, name, paper in (("attn", "g_mean", "attention W_O", 155), ("ffn", "g_mean", "FFN W_2", 61),
                                      ("attn", "g_ctr", "attention W_O", 1), ("ffn", "g_ctr", "FFN W_2", 3)):
        deep = window_of(results / "anatomy", site)
        deep = deep[deep["layer"].isin([6, 7])].pivot(index="step", columns="layer", values=metric).median(axis=1)
        times = deep[CRASH + 1] / deep[deep.index < CRASH - 10].median()
        assert f"{metric} {name}: {times:.3g}x (paper {paper}x)" in drawn
    assert f"crash, step {CRASH}" in drawn and f"event, step {CRASH + 1}" in drawn
    deep = window_of(results / "anatomy", "attn")
    deep = deep[deep["layer"] >= 6].groupby("step")["q_grad"].median()
    fall = np.log10(deep[deep.index > CRASH + 10].median() / deep[deep.index < CRASH - 10].median())
    assert f"change by 10^{fall:.1f} and" in style.caption_of(figure)


def test_slopes_are_least_squares(results):
    drawn = "\n".join(texts(amplification.draw(results / "anatomy")))
    table = read(results / "anatomy", "audit", "plain")
    table = table[table["run_id"] == "plain10.0035"]
    for site, paper in (("attn", "0.961"), ("ffn", "0.985")):
        mine = table[table["site"] == site]
        before, event = mine[mine["step"] < CRASH - 10], mine[mine["step"] == CRASH + 1]
        for name, cloud in (("before", before), ("active at t*", event[event["amplification"] > 1.5])):
            x, y = (TOKENS - 1) * cloud["kappa_hat"].to_numpy(), cloud["amplification"].to_numpy() - 1
            slope, residual, *_ = np.linalg.lstsq(x[:, None], y, rcond=None)
            fit = 1 - residual[0] / ((y - y.mean()) ** 2).sum()
            assert f"{name} (n={len(x)}): slope {slope[0]:.3f}, R2 {fit:.3f}" in drawn
        assert f"paper: slope {paper}" in drawn
    assert "unlike" not in amplification.draw(results / "anatomy").subfigs[0].get_suptitle()  # A - 1 nears its envelope
    assert np.isnan(through_origin([1.0], [1.0])[0])
    assert through_origin([1, 2], [2, 4]) == (2.0, 1.0)


def test_two_points_are_no_line_and_a_picture_unlike_the_papers_says_so(tmp_path):
    item = record("plain", crash=CRASH)
    for row in item["audit"]:
        if row["step"] == CRASH + 1:
            row["amplification"] = 2.0 if row["layer"] < 2 else 1.0
            row["kappa_hat"] = 0.5
    figure = amplification.draw(store(tmp_path / "anatomy", item))
    assert texts(figure).count("") == 0 and "\n".join(texts(figure)).count("active at t* (n=2): too few for a line") == 2
    title = " ".join(figure.subfigs[0].get_suptitle().split())  # 1 of 19 x .5
    assert title == "Figure 4, unlike the paper's: at the event A - 1 stays below 11 % of its envelope in every block"


def test_one_run_stands_for_each_scheme(results):
    folder = results / "anatomy"
    runs = load_runs(folder)
    shown = one_run_each(runs, rows.dissected(folder, runs).run)
    assert list(zip(shown["label"], shown["seed"], shown["lr"], strict=True)) == [
        (label, seed, 3.5e-3) for label, seed in (
            ("plain", 1), ("LayerScale", 2), ("MV-Split", 1), ("MV-Split on attention alone", 1))]
    assert set(one_run_each(runs, None)["seed"]) == {0, 2, 1}


def test_bands_are_quartiles_and_lines_do_not_cross_the_crash(results):
    table = read(results / "anatomy", "audit", "plain")
    mine = table[(table["run_id"] == "plain10.0035") & (table["site"] == "attn")]
    found = band(mine, "g_mean")
    uniform = mine[mine["step"].isin([25, 50, 75]) & mine["layer"].isin([0, 2, 5, 7])].groupby("step")["g_mean"]
    assert 1 not in found.index  # the first gradient is exactly 0
    assert found.loc[50, 0.75] == pytest.approx(uniform.quantile(0.75)[50])
    figure = gradient_modes.draw(results / "anatomy")
    lines = [line.get_xdata() for line in figure.subfigs[0].axes[0].lines if len(line.get_xdata()) > 2]
    assert sorted(map(list, lines))[:2] == [[25, 50, 75], list(range(25, 301, 25))] and [100, *range(125, 301, 25)] in map(list, lines)
    assert min(min(line.get_ydata()) for ax in figure.subfigs[0].axes for line in ax.lines if len(line.get_xdata()) > 2) >= 1e-6
    assert figure.subfigs[0].get_suptitle().startswith("Figure 6: MV-Split's mean part is ")


def test_medians_over_checkpoints(results):
    figure = standard_init.draw(results / "stdinit")
    table = read(results / "stdinit", "audit", "plain")
    table = table[table["step"].between(10, 690) & (table["site"] == "attn") & table["layer"].isin([0, 2, 5, 7])]
    panel = next(ax for ax in figure.subfigs[0].axes if ax.get_title("left").startswith("(b)"))
    line = next(line for line in panel.lines if line.get_label() == "retention")
    assert list(line.get_ydata()) == pytest.approx(list(table.groupby("layer")["retention"].median()))
    modes = next(ax for ax in figure.subfigs[0].axes if ax.get_title("left").startswith("(c)"))
    assert len(modes.lines) == 4 and modes.get_yscale() == "log"
    title = " ".join(figure.subfigs[0].get_suptitle().split())  # .2 + .7 x 6.5 / 8: between layers 5 and 7 of 8, the deep one is 7
    assert title == "Figure 7, unlike the paper's: with standard writer init the tokens stay apart (deep TCS at most 0.81)"
    assert sum(ax.get_title("left").startswith("(a)") for ax in figure.subfigs[0].axes) == 2


def test_a_line_for_each_figure_that_cannot_be_drawn(tmp_path, capsys):
    folder = store(tmp_path / "anatomy", record("plain", audited=False), record("mvsplit", audited=False))
    assert [recipe.draw(folder) for recipe in [*ANATOMY, standard_init]] == [None] * 5
    assert capsys.readouterr().err.count("not drawn: ") == 5
    folder = store(tmp_path / "more" / "anatomy", record("plain"), record("mvsplit"))
    drawn = [recipe.draw(folder) is not None for recipe in ANATOMY]
    assert drawn == [True, False, False, True]  # nothing collapsed: the loss and the modes still show


def test_vanished_gradients(tmp_path):
    """Rows that are 0, infinite or missing after the crash neither break a figure nor its log axes."""
    item = record("plain", crash=CRASH)
    for row in item["audit"]:
        if row["step"] > CRASH + 5:
            row |= {"g_mean": 0.0, "g_ctr": 0.0, "amplification": np.nan, "rho": np.inf}
            row |= {"q_grad": 0.0, "k_grad": 0.0} if row["site"] == "attn" else {}
    folder = store(tmp_path / "anatomy64", item)
    drawn = [recipe.draw(folder) for recipe in ANATOMY]
    assert "exactly 0" in style.caption_of(drawn[1])
    FigureCanvasAgg(drawn[1]).draw()


@pytest.mark.parametrize("recipe", [*ANATOMY, fading, standard_init], ids=lambda recipe: recipe.name)
def test_on_the_page_and_large_enough(results, recipe):
    figure = recipe.draw(results / recipe.protocols[0])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, page, body = canvas.get_renderer(), figure.bbox, figure.subfigs[0].get_tightbbox(canvas.get_renderer())
    ticks = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}  # some are out of range
    for text in figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible() and artist.get_text()):
        box = text.get_window_extent(renderer)
        inside = page.x0 <= box.x0 + 1 and box.x1 <= page.x1 + 1 and page.y0 <= box.y0 + 1 and box.y1 <= page.y1 + 1
        assert inside or text in ticks, f"{text.get_text()!r} runs off the page"
        assert text.get_fontsize() >= 7 and "$" not in text.get_text()
    foot = figure.subfigs[-1].texts[0].get_window_extent(renderer)
    assert foot.y1 <= body.y0 + 1 and page.x0 <= body.x0 and body.x1 <= page.x1


def test_same_tables_same_bytes(results, tmp_path):
    with style.context():
        one, two = (style.save(amplification.draw(results / "anatomy"), tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_fading_is_the_first_quarter_over_the_last(tmp_path):
    """Of a run whose gradient falls by ten a layer from the top; a crashed run is not shown."""
    items = [record("mvsplit", seed=seed) for seed in range(4)]
    for entry in (entry for item in items for entry in item["audit"] if entry["site"] == "attn"):
        entry["wo_grad"] = 10.0 ** (entry["layer"] - DEPTH)
    folder = store(tmp_path / "anatomy", *items, record("plain", crash=CRASH))
    figure = fading.draw(folder)
    by_block, by_step, by_loss = figure.subfigs[0].axes
    (profile,), (course,), (end,) = by_block.lines, by_step.lines, by_loss.lines
    assert profile.get_ydata() == pytest.approx([1e-8, 1e-6, 1e-3, 1e-1])  # the anchors: layers 0, 2, 5, 7 of 8
    assert profile.get_xdata() == pytest.approx([0.5 / 8, 2.5 / 8, 5.5 / 8, 7.5 / 8])
    assert course.get_ydata() == pytest.approx(1e-7) and end.get_xdata() == pytest.approx([1e-7] * 4)  # layer 0 over layer 7
    assert len(by_block.collections) == len(by_step.collections) == 1 and "MV-Split: 4 runs" in texts(figure)  # a band of quartiles
    assert fading.draw(store(tmp_path / "few" / "anatomy", *items[:3])) is None
    folder = store(tmp_path / "crashed" / "anatomy", record("plain", crash=CRASH))
    assert fading.draw(folder) is None


def test_cached_rows_follow_the_file(tmp_path):
    folder = store(tmp_path / "anatomy", record("plain"))
    everything = pd.DataFrame({"run_id": ["plain00.0035", "plain10.0035"]})
    assert set(rows.audit_of(folder, everything)["run_id"]) == {"plain00.0035"}
    store(folder, record("plain", seed=1))
    assert len(set(rows.audit_of(folder, everything)["run_id"])) == 2
