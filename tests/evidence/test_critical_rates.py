"""Critical rates by cell and the headline's rule, on tables whose truth is known."""

from itertools import product

import pandas as pd
import pytest

from suite.evidence import critical_rates, decided, edges, report, stats
from suite.protocol import KNOWN, SCHEMES, rate
from suite.records.package import write_package
from suite.records.schema import TABLES
from suite.records.store import write_rows

DEPTHS = (25, 50, 100)
EDGE = {scheme: {25: 20 + i, 50: 17 + i, 100: 14 + i} for i, scheme in enumerate(SCHEMES)}  # the first point at which all die


def row(scheme, depth, k, seed, outcome, loss=0.7, **more):
    return {"run_id": f"r{scheme}{depth}-{k}-{seed}", "protocol": "frontier", "protocol_version": 3, "scheme": scheme,
            "arm": "controlled", "params": "-", "writers": "zero", "gate_lr": 1.0, "control": "",
            "depth": depth, "lr": rate(k), "seed": seed,
            "data": "digits", "image_tokens": 16, "compiled": True,
            "horizon": 400, "status": "done", "outcome": outcome, "constant_loss": 2.0,
            "final_loss": loss, "heldout_loss": loss} | more  # fmt: skip


def frontier(change=lambda scheme, depth, k, seed: None, seeds=8, ks=range(10, 30, 2)):
    """A frontier in which everything lives below EDGE and dies from it on, unless `change` says otherwise."""
    out = []
    for scheme, depth, k, seed in product(SCHEMES, DEPTHS, ks, range(seeds)):
        outcome = change(scheme, depth, k, seed) or ("collapsed" if k >= EDGE[scheme][depth] else "survived")
        out.append(row(scheme, depth, k, seed, outcome, 1.5 if outcome == "stuck" else 0.7))
    return pd.DataFrame(out)


def edges_of(rows):
    return edges.edges(pd.DataFrame(rows))


def fixed(*rows):
    """Hypotheses as the table has them."""
    return pd.DataFrame([{"quantity": "lr50", "scheme": scheme, "over": over, "depth": depth} for scheme, over, depth in rows])


def test_every_cell_has_its_edge_in_the_projects_order():
    found = edges_of(frontier())
    assert [(edge.cell.scheme, edge.cell.depth) for edge in found] == [(scheme, depth) for scheme in SCHEMES for depth in DEPTHS]
    for edge in found:
        low, high = (rate(k) for k in (max(k for k in range(10, 30, 2) if k < EDGE[edge.cell.scheme][edge.cell.depth]),
                                       min(k for k in range(10, 30, 2) if k >= EDGE[edge.cell.scheme][edge.cell.depth])))
        assert low < edge.lr50.middle < high and edge.horizon == 400
        assert edge.lr50.low <= edge.lr50.middle <= edge.lr50.high and edge.lr10.middle < edge.lr50.middle
        assert edge.has_dead_edge and low < edge.first_dead < high and "(n = 80)" in edges.describe(edge.lr50)


def test_the_stuck_are_not_usable_and_set_aside_among_the_dead():
    rows = frontier(lambda scheme, depth, k, seed: "stuck" if (scheme, depth) == ("mvsplit", 100) and 14 <= k < 18 else None)
    (edge,) = [edge for edge in edges_of(rows) if (edge.cell.scheme, edge.cell.depth) == ("mvsplit", 100)]
    assert rate(12) < edge.lr50.middle < rate(14)
    assert edge.dead.n == 80 - 16 and rate(12) < edge.first_dead < rate(18)


def test_the_dead_of_a_cell_that_is_not_monotone_have_no_edge():
    """Hotter than 14 half are stuck and of the rest ever fewer die: there is a first crossing, and no edge."""
    def fate(scheme, depth, k, seed):
        return "stuck" if k > 14 and seed < 4 else "survived" if k > 16 else "collapsed" if k >= 14 else "survived"

    (edge,) = edges_of(frontier(fate).query("depth == 100 and scheme == 'mvsplit'"))
    assert not edge.has_dead_edge and edge.first_dead == rate(14)
    assert "no edge; half first at 7.08e-03" in report._dead(edge)


def test_colder_runs_that_were_only_too_slow_are_no_edge():
    rows = frontier(lambda scheme, depth, k, seed: "untrained" if k == 10 else None)
    for edge in edges_of(rows):
        assert edge.lr50.middle > rate(12)


def test_rows_that_must_not_be_mixed():
    rows = [row("plain", 25, k, seed, "survived") for k in (10, 12) for seed in range(5)]
    old = [row("plain", 25, 8, 0, "collapsed", protocol_version=2)]
    broken = [row("plain", 25, 8, 1, "", status="oom"), row("plain", 25, 8, 2, "too_short")]
    fresh = [row("plain", 25, 10, 1000, "survived")]  # a seed that chooses no rate
    assert edges_of(rows + old + broken + fresh) == edges_of(rows)
    native = [row("plain", 25, 8, seed, "collapsed", arm="native") for seed in range(5)]
    assert [edge.cell.label for edge in edges_of(rows + native)] == ["plain", "plain native"]
    with pytest.raises(ValueError, match="horizons"):
        edges_of([*rows, row("plain", 25, 10, 9, "survived", horizon=800)])


def test_what_was_fixed_beforehand_is_adjusted_for_its_number_and_the_rest_is_exploratory():
    found = edges.ratios(frontier(), fixed(("mvsplit", "plain", 50), ("mvsplit", "plain", 100)))
    asked = {(one.scheme, one.depth): one for one in found if one.adjusted is not None}
    assert set(asked) == {("mvsplit", 50), ("mvsplit", 100)} and len(found) == 12
    small, large = sorted(asked.values(), key=lambda one: one.p)
    assert small.adjusted == pytest.approx(min(1, 2 * small.p)) and large.adjusted == pytest.approx(max(small.adjusted, large.p))
    one = asked["mvsplit", 100]
    assert one.low <= rate(EDGE["mvsplit"][100]) / rate(EDGE["plain"][100]) <= one.high
    sides = [edges.judged(frontier().query(f"depth == 100 and scheme == '{name}'")) for name in ("mvsplit", "plain")]
    assert (one.ratio, one.low, one.high, one.p) == pytest.approx(stats.ratio(*sides)) and one.n == (80, 80)


def test_holms_procedure():
    """Against the definition: ordered, times the number of those that are left, never falling, at most 1."""
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0] and stats.holm([]) == []


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
    with pytest.raises(ValueError, match="survives"):
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


@pytest.mark.parametrize(("counts", "words"), [
    ({"live": 15, "dead": 1}, "1 of 16 dead [.002, .302], 15 of 16 survived [.698, .998]"),
    ({"dead": 16}, "16 of 16 dead [.794, 1]"),
    ({"live": 3}, "3 of 3 survived [.292, 1]"),
])
def test_a_standing_in_words_has_the_exact_interval_of_each_share(counts, words):
    """16 of 16 alike leave a share of .79 to 1 (.025 ** (1/16) = .794)."""
    assert str(decided.Standing(counts, None)) == words


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
    write_rows(tmp_path / "hypotheses.csv", TABLES["hypotheses"], [
        {"protocol": "frontier", "quantity": "lr50", "claim": "higher", "scheme": "mvsplit", "over": "plain", "depth": 100,
         "fixed": "before"}])  # fmt: skip
    text = report.edge_tables(folder)
    assert text.count("fixed beforehand, p = ") == 1 and text.count("exploratory") == 11
    assert text.count("| 25 blocks |") == 2 and text.count("of the search") == 15
    assert edges.edges_beside(folder, tmp_path / "nowhere").count("yours") == 15
    assert edges.edges_beside(folder, folder).count("committed") == 0
    critical_rates.write(tmp_path)
    assert critical_rates.differs(tmp_path) == []
    path = tmp_path / "critical_rates.csv"
    path.write_text(path.read_text().replace("0.7,", "0.6,", 1))
    assert len(critical_rates.differs(tmp_path)) == 1
