"""Protocol `scale` in words and as a picture: which family and scale a cell is of, and what is not measured yet."""

import pandas as pd
import pytest
from scipy.stats import ttest_1samp, ttest_rel
from test_hypotheses import folder, runs

from paper_figures.branch_scale import branch_scale as drawn
from suite.environment import ROOT
from suite.evidence.branch_scale import branch_scale, missing
from suite.evidence.cells import Cell, label
from suite.evidence.families import family, start
from suite.evidence.hypotheses import judge
from suite.presets import PROTOCOLS
from suite.verdict.outcome import DEAD


def cell(scheme, params, writers="zero"):
    return Cell(scheme, "controlled", params, writers, 1.0, "digits", True, 100)


@pytest.mark.parametrize(("scheme", "params", "of", "scale"), [
    ("plain", "-", "fixed gain", 1.0), ("gain", "g=0.03", "fixed gain", 0.03), ("layerscale", "init=0.01", "LayerScale", 0.01),
    ("mvsplit", "alpha=0,beta=0.1,sites=both", "MV-Split", 0.1), ("mvsplit", "alpha=0,beta=0.1,sites=attn", "", 0.1),
    ("split", "alpha=0,beta=0.1,learn=none,mean=none,trunk=whole,over=segment", "fixed gain, centered", 0.1),
    ("split", "alpha=0,beta=1,learn=none,mean=none,trunk=centered,over=segment", "", 1.0), ("deepnorm", "alpha=0,beta=0", "", 0.265915),
    ("rezero", "-", "", 0.0), ("rezero_start", "start=0.03", "", 0.03), ("mine", "beta=2", "", None),
])  # fmt: skip
def test_the_family_and_the_scale_of_a_cell(scheme, params, of, scale):
    assert family(cell(scheme, params)) == of
    found = start(cell(scheme, params))
    assert found is None if scale is None else found == pytest.approx(scale, rel=1e-5)
    assert family(cell(scheme, params, "std")) == ""


def test_every_family_is_asked_for_at_every_scale():
    """As the first of the plan's cells, or in the frontier."""
    asked = {(one.scheme, start(cell(one.scheme, one.params))) for one in PROTOCOLS["scale"].cells if one.writers != "std"}
    asked |= {("gain", 1.0), ("mvsplit", 1.0), ("layerscale", 0.01)}
    assert asked >= {(scheme, scale) for scheme in ("gain", "split", "layerscale", "mvsplit") for scale in (1.0, 0.3, 0.1, 0.03, 0.01)}


def test_what_is_not_measured_is_listed_with_its_cost():
    all_of_it = missing(set())
    assert "fixed gain g=0.1" in all_of_it and "MV-Split std writers" in all_of_it and "at 50 blocks" in all_of_it
    less = missing({("gain g=0.1", 100)})
    assert less.count(" fixed gain g=0.1,") == all_of_it.count(" fixed gain g=0.1,") - 1
    everything = {(label(one.scheme, one.params, one.writers, one.arm), depth) for one in PROTOCOLS["scale"].cells for depth in (50, 100)}
    assert missing(everything) == "" != missing({(one.scheme, depth) for one in PROTOCOLS["scale"].cells for depth in (50, 100)})


def test_the_words_and_the_picture(tmp_path):
    frames = {
        "frontier": runs("frontier", scheme="plain", floor=0.78),
        "scale": pd.concat([runs("scale", f"g={g}", scheme="gain", floor=0.74 + g / 10) for g in (0.1, 0.3)]),
    }
    hypothesis = {"quantity": "best_loss", "claim": "lower", "scheme": "gain g=0.1", "over": "plain"}
    text = branch_scale(folder(tmp_path, frames, [hypothesis]))
    first = [line.split(" | ")[0] for line in text.splitlines()[2:5]]
    assert first == ["| fixed gain g=0.1", "| fixed gain g=0.3", "| plain"] and "| holds |" in text and "Not measured yet" in text
    page = drawn.draw(tmp_path / "scale")
    panels = [ax for ax in page.axes if ax.get_title()]
    assert len(panels) == 3
    assert max(len(line.get_xdata()) for line in panels[0].lines) == 3  # plain, g = .3, g = .1: one family


CENTERED = "alpha=0,beta={},learn=none,mean=none,trunk=whole,over=segment"
SPLIT = "alpha=0,beta={},sites=both"
SMALL = ("0.3", "0.1", "0.03", "0.01")
MORE = ("0.1", "0.03", "0.01")  # at which MV-Split's best loss is told from LayerScale's


def test_what_the_page_says_of_the_cells_that_are_measured():
    """In words above its block: of edges, best losses and deaths, against the tables."""
    rates = pd.read_csv(ROOT / "results" / "critical_rates.csv").query("depth == 100")
    rates = rates.set_index(["protocol", "scheme", "params"]).sort_index()
    gains = {g: rates.loc[("scale", "gain", f"g={g}")] for g in SMALL} | {"1": rates.loc[("frontier", "plain", "-")]}
    centered = {g: rates.loc[("scale", "split", CENTERED.format(g))] for g in gains}
    assert all(gains[a]["lr50_low"] > gains[b]["lr50_high"] for a, b in zip([*SMALL], ["1", *SMALL]))
    assert all(centered[g]["lr50_high"] < gains[g]["lr50_low"] for g in SMALL) and centered["1"]["lr50"] < gains["1"]["lr50_high"]
    found = {(one.row.quantity, one.row.scheme, one.row.over): one.verdict for one in judge(ROOT / "results", "scale")}
    assert all(found["best_loss", "gain (best)", over] == "holds" for over in ("layerscale", "rezero", "deepnorm"))
    places = pd.read_csv(ROOT / "results" / "ranking.csv").query("protocol == 'scale' and scheme == 'mvsplit'").set_index("params")
    assert set(places.index) == {SPLIT.format(g) for g in SMALL}
    layerscale = {g: rates.loc[("frontier" if g == "0.01" else "scale", "layerscale", f"init={g}")] for g in SMALL}
    split = {g: rates.loc[("scale", "mvsplit", SPLIT.format(g))] for g in SMALL}
    split["1"] = rates.loc[("frontier", "mvsplit", SPLIT.format("1"))]
    assert all(one["fresh"] == 8 for cells in (gains, centered, layerscale, split) for one in cells.values())
    for g in gains:
        assert centered[g]["best_loss"] < gains[g]["best_loss"]
        assert split[g]["best_loss"] < min(at[g]["best_loss"] for at in (gains, centered, layerscale) if g in at)
    for g in SMALL:
        assert split[g]["lr50"] / split["1"]["lr50"] == pytest.approx(2, abs=0.35) and split[g]["lr50_low"] > split["1"]["lr50_high"]
        assert split[g]["margin_low"] < split["1"]["margin_high"]
    edges = [at[g]["lr50"] for g in SMALL for at in (split, layerscale)]
    assert max(edges) / min(edges) < 1.25


def fresh(protocol, scheme, params, step=400):
    """Held-out loss at a step by seed, of the runs behind a best loss."""
    runs, evals = (pd.read_csv(ROOT / "results" / protocol / f"{name}.csv") for name in ("runs", "evals"))
    mine = runs[(runs["scheme"] == scheme) & (runs["params"].fillna("-") == params) & (runs["depth"] == 100) & (runs["writers"] == "zero")]
    mine = mine[mine["seed"] >= 1000].merge(evals[evals["step"] == step], on="run_id", suffixes=("", "_then"))
    assert len(mine) == 8
    return mine.set_index("seed")["heldout_loss_then"].sort_index()


def test_what_the_page_says_of_pairs_of_seeds():
    plain, one = fresh("frontier", "plain", "-"), fresh("frontier", "mvsplit", SPLIT.format("1"))
    layerscale = {g: fresh("frontier" if g == "0.01" else "scale", "layerscale", f"init={g}") for g in SMALL}
    gains = {"1": plain} | {g: fresh("scale", "gain", f"g={g}") for g in SMALL}
    better = sum(fresh("scale", "split", CENTERED.format(g)) / gain - 1 for g, gain in gains.items())
    assert better.mean() < 0 and ttest_1samp(better, 0).pvalue < 0.05
    for g in SMALL:
        split = fresh("scale", "mvsplit", SPLIT.format(g))
        assert ttest_rel(split, one).pvalue > 0.05
        if g in MORE:
            assert ttest_rel(split, layerscale[g]).pvalue < 0.01


def test_at_equal_time_the_lead_is_gone():
    """Held-out losses are of every fiftieth step; by the bench a step of MV-Split takes longer by an eighth."""
    bench = pd.read_csv(ROOT / "results" / "bench" / "bench.csv").query("phase == 'step' and device == 'cpu' and over_plain.notna()")
    cost = bench.set_index(["scheme", "depth"])["over_plain"]["mvsplit", 100]
    step = int(400 / cost) // 50 * 50
    assert step == 350
    for split, other in ((fresh("frontier", "mvsplit", SPLIT.format("1"), step), fresh("frontier", "plain", "-")),
                         (fresh("scale", "mvsplit", SPLIT.format("0.1"), step), fresh("scale", "gain", "g=0.1"))):  # fmt: skip
        assert split.mean() > other.mean() and ttest_rel(split, other).pvalue > 0.05


def test_how_the_cells_die_is_as_the_page_says():
    folders = [pd.read_csv(ROOT / "results" / name / "runs.csv").query("depth == 100") for name in ("scale", "frontier")]
    runs = pd.concat(folders)
    dead = runs[runs["outcome"].isin(DEAD) & (runs["arm"] == "controlled")]
    equal = (dead["state"] == "mean_dominated").groupby([dead["scheme"], dead["params"]]).agg(["sum", "size"])
    for g in ("1", *SMALL):
        deaths = equal.loc[("split", CENTERED.format(g))]
        assert deaths["sum"] == 0 and deaths["size"] >= 5
    small = pd.DataFrame([equal.loc[("mvsplit", SPLIT.format(g))] for g in SMALL]).sum()
    assert small["size"] - small["sum"] == 1 and small["size"] > 20
    assert equal.loc[("mvsplit", SPLIT.format("1")), "sum"] == 0
    others = equal[equal.index.get_level_values("scheme").isin(["plain", "gain", "layerscale", "rezero"])]
    assert len(others) >= 6 and others["size"].sum() - others["sum"].sum() == 1
