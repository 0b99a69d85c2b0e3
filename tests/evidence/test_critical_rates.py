"""Critical rates by cell and the headline's rule, on tables whose truth is known."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from suite.evidence import decided, edges, report, stats
from suite.protocol import KNOWN, SCHEMES, rate
from suite.records.package import write_package
from suite.records.schema import TABLES
from suite.records.tables import write_rows
from suite.verdict.outcomes import UNUSABLE

DEPTHS = (25, 50, 100)
EDGE = {scheme: {25: 20 + i, 50: 17 + i, 100: 14 + i} for i, scheme in enumerate(SCHEMES)}  # the first point at which all die


def row(scheme, depth, k, seed, outcome, loss=0.7, **more):
    return {"run_id": f"r{scheme}{depth}-{k}-{seed}", "protocol": "frontier", "protocol_version": 3, "scheme": scheme,
            "arm": "controlled", "params": "-", "writers": "zero", "gate_lr": 1.0, "depth": depth, "lr": rate(k), "seed": seed,
            "data": "digits", "compiled": True, "horizon": 400, "status": "done", "outcome": outcome, "constant_loss": 2.0,
            "final_loss": loss, "heldout_loss": loss} | more  # fmt: skip


def frontier(change=lambda scheme, depth, k, seed: None, seeds=8, ks=range(10, 30, 2)):
    """A frontier in which everything lives below EDGE and dies from it on, unless `change` says otherwise."""
    out = []
    for scheme, depth, k, seed in product(SCHEMES, DEPTHS, ks, range(seeds)):
        outcome = change(scheme, depth, k, seed) or ("collapsed" if k >= EDGE[scheme][depth] else "survived")
        out.append(row(scheme, depth, k, seed, outcome, 1.5 if outcome == "stuck" else 0.7))
    return pd.DataFrame(out)


def edges_of(rows, *bound):
    return edges.edges(pd.DataFrame(rows), *bound)


def test_every_cell_has_its_bracket_in_the_projects_order():
    found = edges_of(frontier())
    assert [(edge.cell.scheme, edge.cell.depth) for edge in found] == [(scheme, depth) for scheme in SCHEMES for depth in DEPTHS]
    for edge in found:
        at = EDGE[edge.cell.scheme][edge.cell.depth]
        low, high = (rate(k) for k in (max(k for k in range(10, 30, 2) if k < at), min(k for k in range(10, 30, 2) if k >= at)))
        assert (edge.lr50.kind, edge.horizon) == ("fit", 400) and edge.lr50.rate == pytest.approx((low * high) ** 0.5, rel=0.02)
        assert edge.lr50u == edge.lr50 and edges.describe(edge.lr50) == f"{edge.lr50} (n = 80)"


def test_the_dead_and_the_useless_are_counted_apart():
    rows = frontier(lambda scheme, depth, k, seed: "stuck" if (scheme, depth) == ("mvsplit", 100) and 14 <= k < 18 else None)
    (edge,) = [edge for edge in edges_of(rows) if (edge.cell.scheme, edge.cell.depth) == ("mvsplit", 100)]
    assert rate(16) < edge.lr50.rate < rate(18) and rate(12) < edge.lr50u.rate < rate(14)


def test_another_bound_on_stuck_moves_lr50u_alone():
    """Losses of 1.1 and 1.3 with c = 2: stuck at 0.5 only, and at 0.6 but not at 0.7."""
    levels = {12: 1.1, 14: 1.3}
    rows = [row("plain", 100, k, seed, "collapsed" if k > 14 else "stuck" if k == 14 else "survived", levels.get(k, 0.7))
            for k in (10, 12, 14, 16) for seed in range(8)]  # fmt: skip
    for bound, high in ((0.5, 12), (0.6, 14), (0.7, 16)):
        (edge,) = edges_of(rows, bound)
        assert rate(14) < edge.lr50.rate < rate(16) and rate(high - 2) < edge.lr50u.rate < rate(high) or bound == 0.5, bound
        assert bound != 0.5 or edge.lr50u.rate is None or edge.lr50u.rate < rate(12)


def test_rows_that_must_not_be_mixed():
    rows = [row("plain", 25, k, seed, "survived") for k in (10, 12) for seed in range(5)]
    old = [row("plain", 25, 8, 0, "collapsed", protocol_version=2)]
    broken = [row("plain", 25, 8, 1, "", status="oom"), row("plain", 25, 8, 2, "too_short")]
    assert edges_of(rows + old + broken) == edges_of(rows)
    native = [row("plain", 25, 8, seed, "collapsed", arm="native") for seed in range(5)]
    assert [edge.cell.label for edge in edges_of(rows + native)] == ["plain", "plain native"]
    with pytest.raises(ValueError, match="horizons"):
        edges_of([*rows, row("plain", 25, 10, 9, "survived", horizon=800)])


def test_what_is_open_and_what_is_not_monotone_is_said():
    rows = [row("plain", 25, k, seed, "survived") for k in (10, 12) for seed in range(3)]
    assert "(n = 6: 0 of 3 lost at the hottest rate)" in edges.describe(edges_of(rows)[0].lr50)
    falls = [row("plain", 25, k, s, "collapsed" if k == 10 else "survived") for k in (8, 10, 12) for s in range(5)]
    assert f"not monotone at {rate(12):.2e}" in edges.describe(edges_of(falls)[0].lr50)


def test_the_primary_comparison_is_mvsplit_over_plain_and_the_rest_unadjusted():
    rows = frontier()
    found = edges.ratios(rows)
    assert {(one.scheme, one.primary) for one in found} == {
        ("mvsplit", True), ("layerscale", False), ("rezero", False), ("deepnorm", False)}  # fmt: skip
    (one,) = [one for one in found if (one.scheme, one.depth) == ("mvsplit", 100)]
    assert one.low < one.ratio < one.high and one.ratio == pytest.approx(rate(17) / rate(13), rel=0.01) and one.p < 1e-3
    rng = np.random.default_rng(0)

    def coin(scheme, depth, k, seed):
        """A soft edge, so that both sides have fits."""
        return "collapsed" if rng.random() < 1 / (1 + np.exp(-1.2 * (k - EDGE[scheme][depth]))) else "survived"

    rows = frontier(coin, seeds=4).query("depth == 100 and scheme in ('plain', 'mvsplit')")
    (found,) = edges.ratios(rows, UNUSABLE)
    sides = [stats.upward(*edges.judged(rows[rows["scheme"] == name], UNUSABLE)) for name in ("mvsplit", "plain")]
    assert (found.ratio, found.low, found.high, found.p) == stats.ratio(*sides)
    assert found.ratio is not None and found.n == tuple(len(side[0]) for side in sides)


# ---- the headline


NEAR = range(10, 20, 2)  # the points that a search looks at, but for the schemes whose edge lies hotter


def test_the_rule_takes_the_rates_at_which_all_live_and_at_which_most_are_uniform():
    """Plain at 100 blocks is dead at 14, 16 and 18, and has a dead neighbour at the last two. At 18 eleven cells agree with their
    neighbour towards the edge, at 16 nine."""
    assert decided.rates(frontier(ks=NEAR)) == (rate(12), rate(18))


def test_of_rates_with_as_many_uniform_cells_the_rule_takes_the_coldest():
    def change(scheme, depth, k, seed):
        return "survived" if scheme in ("layerscale", "rezero") and depth == 100 and k == 18 and seed == 1 else None

    assert decided.rates(frontier(change, ks=NEAR)) == (rate(12), rate(16))


def test_a_run_that_is_stuck_does_not_live_at_the_cool_rate():
    def change(scheme, depth, k, seed):
        return "stuck" if (scheme, depth, k, seed) == ("mvsplit", 25, 12, 2) else None

    cool, _ = decided.rates(frontier(change))
    assert cool == rate(10)


def test_no_rate_fits():
    with pytest.raises(ValueError, match="lives"):
        decided.rates(frontier(lambda scheme, depth, k, seed: "collapsed" if scheme == "deepnorm" else None))
    with pytest.raises(ValueError, match="plain at 100"):
        decided.rates(frontier(lambda scheme, depth, k, seed: "survived" if (scheme, depth) == ("plain", 100) else None))


def test_decided_needs_sixteen_runs_and_eight_at_the_neighbour():
    lr, ks = rate(16), range(10, 30)
    whole = frontier(seeds=16, ks=ks)
    found = decided.standing(whole, lr)
    assert {key: cell.decided for key, cell in found.items()} == {
        (scheme, depth): "dead" if EDGE[scheme][depth] < 16 else "" if EDGE[scheme][depth] < 18 else "live"
        for scheme in SCHEMES for depth in DEPTHS}  # fmt: skip
    assert decided.missing(whole, lr) == []
    one = (whole["scheme"] == "rezero") & (whole["depth"] == 25) & (whole["seed"] == 12) & (whole["lr"] == lr)
    thin = whole[~one]
    assert decided.missing(thin, lr) == [("rezero", 25, lr, 12)] and decided.standing(thin, lr)["rezero", 25].decided is None
    coin = whole.assign(outcome=whole["outcome"].mask(one, "collapsed"))
    assert decided.standing(coin, lr)["rezero", 25] == decided.Standing({"live": 15, "dead": 1}, "")
    assert KNOWN[lr] == 16


@pytest.mark.parametrize(("counts", "known", "words"), [
    ({"live": 15, "dead": 1}, "", "coin: 1 of 16 dead, 15 of 16 live"),
    ({"dead": 7, "unusable": 1}, "", "none lives: 7 of 8 dead, 1 of 8 unusable"),
    ({"dead": 16}, "", "at its edge: 16 of 16 dead"),
    ({"dead": 16}, "dead", "decided: 16 of 16 dead"),
    ({"live": 3}, None, "3 of 3 live"),
])
def test_a_standing_in_words(counts, known, words):
    assert str(decided.Standing(counts, known)) == words
    assert (known == "") == words.startswith(decided.UNSURE)


def test_a_cell_that_is_half_run_is_held_against_the_neighbour_that_will_be_asked_for():
    """Three of sixteen seeds live at 16 and have lived at 17; that one died at 15, the colder side, says nothing of their edge."""
    rows = pd.DataFrame([row("plain", 25, k, seed, "collapsed" if (k, seed) == (15, 0) else "survived")
                         for k in (15, 16, 17) for seed in range(3)])  # fmt: skip
    assert decided.standing(rows, rate(16))["plain", 25].decided is None
    assert {lr for _, _, lr, _ in decided.missing(rows, rate(16))} == {rate(16), rate(17)}


def test_a_rate_of_ones_own_has_no_standing():
    """`./run_all.sh --lrs 3e-3` is compared with the committed frontier, which has no such rate."""
    assert decided.standing(frontier(), 3e-3) == {}


def test_the_readmes_block_says_what_the_tables_hold(tmp_path):
    columns = {column.name: None for column in TABLES["runs"].columns}
    folder = tmp_path / "frontier"
    rows = [columns | r for r in frontier().to_dict("records")]
    folder.mkdir()
    write_rows(folder / "runs.csv", TABLES["runs"], rows)
    write_package(folder)
    text = report.edge_tables(folder)
    assert text.count("(n = 80)") == 30  # 15 cells, both tables
    assert "the same in all 15 cells" in text and "| mvsplit | 25 |" in text and "primary" in text
    assert edges.edges_beside(folder, tmp_path / "nowhere").count("yours") == 15
    assert edges.edges_beside(folder, folder).count("committed") == 0
