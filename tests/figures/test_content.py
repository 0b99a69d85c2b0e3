"""What the figures of every protocol show of invented runs, and when they show nothing."""

from itertools import product

import numpy as np
import pytest
from invented import CONSTANT, atlas, laptop, picture, record
from matplotlib.axes import Axes
from matplotlib.text import Text

from paper_figures import outcomes, style
from paper_figures.heldout import heldout
from paper_figures.losses import headline, loss_curves
from paper_figures.runs import load_runs
from paper_figures.samples import _trimmed, samples
from suite.records.store import Store


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder with both, made once."""
    folder = tmp_path_factory.mktemp("results")
    laptop(folder / "laptop")
    atlas(folder / "atlas")
    return folder


def test_held_out_losses_need_two_schemes_at_two_depths(tmp_path, capsys):
    """A panel of scattered points says no more than the table."""
    folder = tmp_path / "laptop"
    for scheme, depth in (("plain", 25), ("mvsplit", 25), ("plain", 100)):
        Store(folder).add(record(scheme, depth))
    assert heldout.draw(folder) is None and "two depths" in capsys.readouterr().err
    Store(folder).add(record("mvsplit", 100))
    assert heldout.draw(folder) is not None


def test_a_mean_is_only_of_cells_that_lost_no_run(results):
    """Of plain one seed of three lives at 100 blocks: it has a marker and no mean."""
    figure = heldout.draw(results / "atlas")
    panel = next(ax for ax in figure.subfigs[0].axes if ax.child_axes[0].get_title() == "held-out loss, rate 0.004")
    markers, line = [each for each in panel.lines if each.get_color() == style.PROJECT["plain"][0]]
    assert len(markers.get_ydata()) == 4 and np.isnan(line.get_ydata()).tolist() == [False, True]


def test_two_runs_that_survived_make_no_grid(tmp_path, capsys):
    folder = tmp_path / "laptop"
    for scheme in ("plain", "mvsplit"):
        Store(folder).add(record(scheme, 25))
    assert outcomes.outcomes.draw(folder) is None and "every run survived" in capsys.readouterr().err


def test_samples_of_one_depth_and_of_the_dead(results, tmp_path):
    """The deepest networks, each scheme's living run and then its dead; where none died, one of the protocol whose runs do."""
    figure = samples.draw(results / "laptop")
    titles = [(ax.texts[0].get_text(), ax.get_title()) for ax in figure.subfigs[0].axes]
    assert titles == [("plain", "collapsed at step 151"), ("LayerScale", "survived"), ("ReZero", "nonfinite at step 222"),
                      ("DeepNorm", "survived"), ("MV-Split", "survived")]
    for name, runs in (("laptop", [record("plain", 100)]), ("anatomy", [record("plain", 50, outcome="collapsed", at=99, protocol="anatomy"),
                                                                         record("plain", 50, seed=1, protocol="anatomy")])):
        for one in runs:
            Store(tmp_path / name).add(one)
            picture(tmp_path / name, one["run"])
    figure = samples.draw(tmp_path / "laptop")
    assert [ax.get_title() for ax in figure.subfigs[0].axes] == ["survived", "collapsed at step 99"]
    assert "The last grid is of protocol anatomy" in style.caption_of(figure)
    assert [ax.get_title() for ax in samples.draw(tmp_path / "anatomy").subfigs[0].axes] == ["survived", "collapsed at step 99"]


def test_crashes_are_marked_half_way_up(results):
    """At the level that the crash rule asks for, in every picture of losses; nothing behind the horizon is drawn."""
    panel = next(ax for ax in headline.draw(results / "laptop").subfigs[0].axes if ax.get_title().startswith("training loss"))
    runs = load_runs(results / "laptop")
    (plain, rezero) = (runs[(runs["scheme"] == scheme) & (runs["depth"] == 100)].iloc[0] for scheme in ("plain", "rezero"))
    marks = sorted((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in panel.lines if line.get_marker() == "X")
    assert marks == [(run["crash_step"], pytest.approx((run["best_loss"] + CONSTANT) / 2)) for run in (plain, rezero)]
    assert max(max(line.get_xdata()) for line in panel.lines if len(line.get_xdata()) > 2) == 400


def test_outcome_cells(results):
    runs = load_runs(results / "atlas")
    plain = runs[(runs["scheme"] == "plain") & (runs["depth"] == 100)]
    assert outcomes.cell_text(plain[plain["lr"] == 0.004]) == ("1/3 survived", "2 died at 90–120")
    assert outcomes.cell_text(plain[plain["seed"] == 1].head(1)) == ("degraded", "step 90")
    assert outcomes.cell_text(plain[plain["crashed"] & (plain["lr"] == 0.01) & (plain["seed"] != 1)]) == ("2/2 collapsed", "steps 60–120")
    assert outcomes.cell_text(plain.head(0)) == ("not run", "")
    deep = runs[(runs["scheme"] == "deepnorm") & (runs["depth"] == 25) & (runs["lr"] == 0.004)]
    assert outcomes.cell_text(deep) == ("2/2 survived", "1 oom")
    scale = runs[(runs["scheme"] == "layerscale") & (runs["depth"] == 100) & (runs["lr"] == 0.01)]
    assert outcomes.cell_text(scale) == ("3/3 untrained", f"loss {scale['final_loss'].median():.2f}")


def test_sample_grids_lose_their_empty_part():
    page = np.zeros((20, 30, 3))
    page[2:10, 2:15] = 1
    assert _trimmed(page).shape == (12, 17, 3)
    assert _trimmed(page[..., 0]).shape == (12, 17)
    assert _trimmed(page * 0).shape == page.shape


def test_panels_only_for_what_was_run(tmp_path):
    """Three learning rates at one or two of three depths: no empty panel, no column of cells that nobody ran."""
    store = Store(tmp_path / "anatomy")
    for depth, lr in ((25, 0.004), (50, 0.004), (100, 0.002), (50, 0.001)):
        store.add(record("plain", depth, lr=lr, protocol="anatomy"))
    figure = loss_curves.draw(tmp_path / "anatomy")
    shown = [ax for ax in figure.findobj(Axes) if ax.axison]
    assert [ax.get_title() for ax in shown] == ["depth 50, learning rate 0.001", "depth 100, learning rate 0.002",
                                                "depth 25, learning rate 0.004", "depth 50, learning rate 0.004"]
    assert len({ax.get_xlim() for ax in shown}) == 1 and all(len(ax.lines) > 1 for ax in shown)
    figure = outcomes.outcomes.draw(tmp_path / "anatomy")
    columns = [(ax.get_title(), [t.get_text() for t in ax.get_xticklabels()]) for ax in figure.findobj(Axes)]
    assert columns == [("lr 0.001", ["50"]), ("lr 0.002", ["100"]), ("learning rate 0.004", ["25", "50"])]
    assert "not run" not in [text.get_text() for text in figure.findobj(Text)]
    assert outcomes.lines_of({lr: [25, 50, 100, 200, 400] for lr in (1, 2, 3)}) == [[1, 2], [3]]


def test_a_rate_without_scores_has_no_panel_for_them(tmp_path):
    folder = laptop(tmp_path / "laptop")
    for scheme, depth, lr in product(("plain", "mvsplit"), (25, 100), (0.01, 0.02)):
        Store(folder).add(record(scheme, depth, lr=lr, quality=False))
    figure = heldout.draw(folder)
    titles = [ax.child_axes[0].get_title() for ax in figure.subfigs[0].axes]
    assert titles == [f"held-out loss, rate {lr}" for lr in (0.004, 0.01, 0.02)] + ["FID of samples, rate 0.004"]
    assert "Samples are scored at one rate." in style.caption_of(figure)


def test_without_quality_only_the_held_out_panel(tmp_path):
    folder = laptop(tmp_path / "laptop", quality=False)
    figure = heldout.draw(folder)
    assert len(figure.subfigs[0].axes) == 1
    assert "FID" not in style.caption_of(figure)
