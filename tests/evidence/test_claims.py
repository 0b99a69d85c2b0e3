"""Verdicts: every rule can give each of its verdicts, claims follow their tables, and the page is what the tables give."""

import re
from functools import cached_property

import numpy as np
import pandas as pd
import pytest
from test_measures import cell

from suite.controls import CONTROLS
from suite.environment import ROOT
from suite.evidence import claims, claims_collapse, claims_gradients, claims_others, claims_scale, claims_schemes, verdicts
from suite.evidence.cells import cells
from suite.evidence.claims_tables import BOTH, Tables
from suite.evidence.events import events
from suite.evidence.hazard import Piece
from suite.evidence.measures import measures
from suite.evidence.verdicts import IN_PART, INCONCLUSIVE, NOT, OPPOSITE, REPRODUCED, UNTESTED, Rule, Same, Seen
from suite.presets import PLAIN_DIES, PLAIN_LEARNS
from suite.records.store import RowsByRun

PAGE = ROOT / "REPRODUCTION.md"


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """All claims, put to no tables."""
    return [claim for chapter in claims.judged(Tables(tmp_path_factory.mktemp("none"))).values() for claim in chapter]


# ---- rules

@pytest.mark.parametrize("sign", [1, -1], ids=["at least", "at most"])
def test_a_rule_says_what_its_borders_say_of_every_interval(sign):
    """Against the borders read one by one, on intervals that end on, beside and beyond them; mirrored for a claim of "at most"."""
    rule, ends = Rule(sign * 3, sign * 2, sign * 1), np.arange(0, 4.5, 0.5)
    told = {}
    for low in ends:
        for high in ends[ends > low]:
            wanted = (REPRODUCED if low >= 3 else OPPOSITE if high <= 1 else NOT if high <= 2 else IN_PART if low >= 2 else INCONCLUSIVE)
            seen = Seen((low + high) / 2, low, high, "") if sign > 0 else Seen(-(low + high) / 2, -high, -low, "")
            told[low, high] = rule.verdict(seen)
            assert told[low, high] == wanted
    assert set(told.values()) == {REPRODUCED, IN_PART, NOT, OPPOSITE, INCONCLUSIVE}
    assert rule.verdict(Seen()) == UNTESTED and rule.verdict(Seen(sign * 9.0, on="n = 1 run")) == INCONCLUSIVE


def test_a_rule_of_likeness():
    rule = Same(0.05)
    known = {(-0.04, 0.04): REPRODUCED, (0.06, 0.2): NOT, (-0.2, -0.06): NOT, (0.0, 0.2): INCONCLUSIVE, (-0.2, 0.2): INCONCLUSIVE}
    assert {ends: rule.verdict(Seen(0.0, *ends)) for ends in known} == known
    assert rule.verdict(Seen()) == UNTESTED and rule.verdict(Seen(0.0)) == INCONCLUSIVE


def test_borders_out_of_order_are_no_rule():
    for borders in ((1.0, 1.0), (1.0, 2.0, 0.0), (2.0, 1.0, 3.0)):
        with pytest.raises(ValueError, match="out of order"):
            Rule(*borders)


def test_every_rule_of_a_claim_can_go_against_it(nothing):
    """Estimates far on either side, between the borders, and too wide, of each rule that stands in the page."""
    rules = [part.rule for claim in nothing for part in claim.parts]
    assert len(rules) > 35
    for rule in rules:
        if isinstance(rule, Same):
            continue
        sign, far = np.sign(rule.holds - rule.fails), 100 * (abs(rule.holds) + 1)
        between = (rule.holds + rule.fails) / 2
        spots = {REPRODUCED: rule.holds + sign * far, IN_PART: between,
                 NOT if rule.opposite is None else OPPOSITE: (rule.fails if rule.opposite is None else rule.opposite) - sign * far}
        for wanted, at in spots.items():
            assert rule.verdict(Seen(at, at - 1e-6, at + 1e-6)) == wanted
        assert rule.verdict(Seen(between, between - far, between + far)) == INCONCLUSIVE
        assert rule.why


@pytest.mark.parametrize(("parts", "wanted"), [
    ((), UNTESTED), ((NOT, NOT), NOT), ((OPPOSITE, OPPOSITE), OPPOSITE), ((REPRODUCED, NOT), IN_PART), ((REPRODUCED, UNTESTED), IN_PART),
    ((NOT, OPPOSITE), NOT), ((NOT, INCONCLUSIVE), INCONCLUSIVE), ((NOT, UNTESTED), NOT), ((OPPOSITE, UNTESTED), OPPOSITE),
    ((IN_PART, INCONCLUSIVE), IN_PART), ((INCONCLUSIVE, UNTESTED), INCONCLUSIVE),
])  # fmt: skip
def test_the_verdict_of_several_parts(parts, wanted):
    assert verdicts.together(parts) == verdicts.together(parts[::-1]) == wanted


def test_estimates():
    """A share against the closed form for all of n, (alpha / 2)^(1 / n); means against Student's t of two values, 12.706 sd / root 2."""
    assert verdicts.share(16, 16, "runs").low == pytest.approx(0.025 ** (1 / 16))
    seen = verdicts.mean([1.0, 3.0, np.nan], "runs")
    assert (seen.value, seen.high - 2) == (2.0, pytest.approx(12.7062)) and seen.on == "n = 2 runs"
    assert verdicts.geometric([1.0, 100.0], "runs").value == pytest.approx(10)
    assert verdicts.mean([5.0], "runs that died").on == "n = 1 run that died" and not verdicts.mean([], "runs")
    assert [verdicts.number(value) for value in (0.123456, 12345.0, 2.8e8, np.inf, 0)] == ["0.123", "12345", "2.8e+08", "inf", "0"]


# ---- claims, put to tables that were made up

NONE = {name: getattr(Tables(ROOT / "nowhere"), name) for name, item in vars(Tables).items() if isinstance(item, cached_property)}


def tables(**made):
    """Tables of which some are given, and the others are empty."""
    out = Tables(ROOT / "nowhere")
    vars(out).update(NONE | made)
    return out


def runs(scheme, outcomes, **more):
    """Finished runs of one scheme, a seed each."""
    params = f"alpha=0,{BOTH}" if scheme == "mvsplit" else "-"
    return pd.DataFrame([{"run_id": f"{scheme}{i}", "scheme": scheme, "params": params, "protocol": "anatomy", "depth": 100, "lr": 5.35e-3,
                          "seed": i, "outcome": outcome, "state": "mean_dominated", "horizon": 400,
                          "crash_step": np.nan if outcome == "survived" else 100.0}
                         | {name: values[i] if isinstance(values, list) else values for name, values in more.items()}
                         for i, outcome in enumerate(outcomes)])  # fmt: skip


def verdict(chapter, title, **made):
    (found,) = [claim for claim in chapter.claims(tables(**made)) if claim.title == title]
    return found.verdict


@pytest.mark.parametrize(("equal", "of", "wanted"), [
    (30, 30, REPRODUCED), (24, 30, IN_PART), (2, 30, NOT), (3, 5, INCONCLUSIVE), (0, 0, UNTESTED),
])  # fmt: skip
def test_equal_tokens_follow_the_states(equal, of, wanted):
    made = runs("plain", ["collapsed"] * of + ["survived"], state=["mean_dominated"] * equal + ["other"] * (of - equal) + [""])
    assert verdict(claims_collapse, "All tokens become equal", runs=made) == wanted


@pytest.mark.parametrize(("outcome", "wanted"), [("collapsed", REPRODUCED), ("degraded", NOT)])
def test_the_constant_predictors_loss_follows_the_outcomes(outcome, wanted):
    assert verdict(claims_collapse, "The loss becomes the constant predictor's", runs=runs("plain", [outcome] * 20)) == wanted


@pytest.mark.parametrize(("lowest", "wanted"), [(0.9, REPRODUCED), (0.1, NOT)])
def test_permanence_follows_the_loss_behind_the_crash(lowest, wanted):
    made = runs("plain", ["collapsed"] * 20, jump=3.0, seen=450, lowest=lowest, top_norm=5.0)
    assert verdict(claims_collapse, "It is permanent", aftermath=made, runs=made) == wanted
    assert verdict(claims_collapse, "It is permanent", aftermath=made.assign(seen=100), runs=made) == UNTESTED


@pytest.mark.parametrize(("whole", "small", "wanted"), [
    ("other", "other", REPRODUCED), ("other", "mean_dominated", IN_PART), ("mean_dominated", "mean_dominated", NOT),
])  # fmt: skip
def test_what_mvsplit_prevents_follows_the_states(whole, small, wanted):
    made = [runs("mvsplit", ["degraded"] * 40, state=whole),
            runs("mvsplit", ["collapsed"] * 40, state=small, params="alpha=0,beta=0.1,sites=both")]  # fmt: skip
    assert verdict(claims_schemes, "MV-Split prevents that collapse", runs=pd.concat(made, ignore_index=True)) == wanted


def remedied(dead):
    """Eight runs of plain under each remedy at the rate at which plain dies, so many of them dead, and two where it learns."""
    names = ("none", "centering", *CONTROLS)
    hot = [runs("plain", ["collapsed"] * dead + ["survived"] * (8 - dead), remedy=name, on="plain", lr=PLAIN_DIES) for name in names]
    cool = [runs("plain", ["survived"] * 2, remedy=name, on="plain", lr=PLAIN_LEARNS, heldout_loss=[0.8, 0.81]) for name in names]
    return pd.concat(hot + cool, ignore_index=True)


@pytest.mark.parametrize(("dead", "each", "wanted"), [
    (8, REPRODUCED, IN_PART), (0, NOT, NOT), (4, INCONCLUSIVE, INCONCLUSIVE),
])  # fmt: skip
def test_remedies_follow_who_fails_under_them(dead, each, wanted):
    (claim,) = [one for one in claims_others.claims(tables(remedied=remedied(dead))) if one.title.startswith("Other remedies")]
    assert [part.verdict for part in claim.parts if " with attention" in part.says] == [each] * 5 and claim.verdict == wanted
    assert [part.verdict for part in claim.parts if "Muon" in part.says] == [UNTESTED]


@pytest.mark.parametrize(("floor", "edge", "verdicts"), [
    (0.70, 21.0, (REPRODUCED, REPRODUCED)), (0.78, 16.0, (OPPOSITE, OPPOSITE)), (0.74, 18.5, (INCONCLUSIVE, INCONCLUSIVE)),
])  # fmt: skip
def test_the_split_follows_losses_and_edges_at_one_scale(floor, edge, verdicts):
    """MV-Split beside LayerScale of a loss of .74 and an edge at 18.5 points of the lattice, both from .1."""
    made = [cell("mvsplit", floor=floor, edge=edge, noise=0.004).assign(params="alpha=0,beta=0.1,sites=both"),
            cell("layerscale", floor=0.74, edge=18.5, noise=0.004).assign(params="init=0.1")]  # fmt: skip
    both = pd.concat(made, ignore_index=True)
    found = claims_scale.claims(tables(scale=measures(both), scale_runs=cells(both)))
    parts = {part.says: part.verdict for part in found[0].parts}
    loss = next(verdict for says, verdict in parts.items() if says.startswith("best loss of LayerScale"))
    assert (loss, parts["LR50 of MV-Split over LayerScale's, both from 0.1"]) == verdicts


@pytest.mark.parametrize(("floor", "edge", "verdicts"), [
    (0.80, 20.0, (REPRODUCED, REPRODUCED)), (0.70, 15.0, (OPPOSITE, OPPOSITE)),
])  # fmt: skip
def test_a_small_gain_follows_its_loss_and_edge(floor, edge, verdicts):
    made = [cell("gain", floor=floor, edge=edge, noise=0.004).assign(params="g=0.1"), cell("plain", floor=0.74, edge=17.5, noise=0.004)]
    both = pd.concat(made, ignore_index=True)
    claim = claims_scale.claims(tables(scale=measures(both), scale_runs=cells(both)))[1]
    assert tuple(part.verdict for part in claim.parts) == verdicts and "% from plain's" in claim.note


def long(plain, split):
    """Runs of both with so many healthy deaths after step 1,000 in 20,000 healthy steps each."""
    parts = [runs(scheme, ["collapsed"] * n + ["survived"] * (20 - n), crash_step=[1500.0] * n + [np.nan] * (20 - n),
                  died_healthy=[True] * n + [False] * (20 - n), healthy_steps=2000, healthy_early=1000, status="done", protocol_version=4,
                  arm="controlled", writers="zero", gate_lr=1.0, control="", data="digits", compiled=True)
             for scheme, n in (("plain", plain), ("mvsplit", split))]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(("plain", "split", "wanted"), [(15, 0, REPRODUCED), (0, 15, OPPOSITE), (5, 5, INCONCLUSIVE), (0, 0, UNTESTED)])
def test_the_late_collapse_follows_the_hazards(plain, split, wanted):
    assert verdict(claims_schemes, "MV-Split removes the late collapse", long=long(plain, split)) == wanted


def inside(**columns):
    """Audited healthy deaths of plain, of which the columns are given."""
    noise = np.exp(np.random.default_rng(0).normal(0, 0.05, 12))
    return runs("plain", ["collapsed"] * 12, died_healthy=True).assign(**{name: value * noise for name, value in columns.items()})


@pytest.mark.parametrize(("title", "columns", "wanted"), [
    ("The mean part of the writers' gradients spikes", {"g_mean_attn": 155.0, "g_mean_ffn": 61.0}, REPRODUCED),
    ("The mean part of the writers' gradients spikes", {"g_mean_attn": 155.0, "g_mean_ffn": 1.0}, IN_PART),
    ("The mean part of the writers' gradients spikes", {"g_mean_attn": 1.0, "g_mean_ffn": 1.0}, NOT),
    ("The tokens' gradients line up", {"slope_attn": 0.961, "slope_ffn": 0.985}, REPRODUCED),
    ("The tokens' gradients line up", {"slope_attn": 0.6, "slope_ffn": 0.6}, IN_PART),
    ("The tokens' gradients line up", {"slope_attn": 0.35, "slope_ffn": 0.35}, NOT),
    ("The tokens' gradients line up", {"slope_attn": 0.1, "slope_ffn": 0.1}, OPPOSITE),
    ("The tokens' gradients line up", {}, UNTESTED),
    ("Query and key gradients die", {"q_grad_attn": 1e4, "k_grad_attn": 1e4}, REPRODUCED),
    ("Query and key gradients die", {"q_grad_attn": 2.0, "k_grad_attn": 2.0}, NOT),
    ("Attention contracts what differs", {"mu_eff_before": 1.1, "mu_eff_after": 1.2}, OPPOSITE),
    ("Attention contracts what differs", {"mu_eff_before": 1.1, "mu_eff_after": 0.4}, IN_PART),
])  # fmt: skip
def test_what_happens_inside_follows_the_audit(title, columns, wanted):
    assert verdict(claims_gradients, title, events=inside(**columns), long=runs("plain", [])) == wanted


@pytest.mark.parametrize(("k", "n", "wanted"), [
    (1, 1, INCONCLUSIVE), (30, 30, REPRODUCED), (3, 30, NOT), (21, 30, IN_PART), (0, 0, UNTESTED),
])  # fmt: skip
def test_a_thousand_blocks_follow_their_runs(k, n, wanted):
    made = runs("mvsplit", ["survived"] * k + ["untrained"] * (n - k), protocol="deep", depth=1000, params="alpha=0,beta=0.03,sites=both")
    assert verdict(claims_others, "A thousand blocks are trainable", runs=made if n else runs("plain", ["survived"])) == wanted


def test_the_hazard_of_a_rate_counts_every_step_that_was_watched():
    assert claims_collapse._piece(runs("plain", ["collapsed", "survived"])) == Piece(1, 100 + 400)


# ---- the numbers of an audited death

def test_an_event_against_its_rows(some_runs):
    """One committed death of MV-Split: the rise of g_mean and the share of T - 1, worked out from the rows of its audit."""
    folder = some_runs("anatomy") / "anatomy"
    (found,) = events([folder]).to_dict("records")
    rows, crash = RowsByRun(folder).frame("audit", found).query("window and segment == 'all'"), found["crash_step"]
    deep = rows[rows["layer"] >= 0.75 * found["depth"]]
    of_w2, of_wo = (deep[deep["site"] == site].groupby("step")["g_mean"].median() for site in ("ffn", "attn"))
    assert found["g_mean_ffn"] == pytest.approx(of_w2.loc[crash - 10 :].max() / of_w2.loc[: crash - 11].median())
    at = of_wo.loc[crash - 10 : crash + 10].idxmax()
    largest = rows.loc[(rows["step"] == at) & (rows["site"] == "ffn"), "amplification"].max()
    assert found["top_ffn"] == pytest.approx((largest - 1) / 19)


# ---- the page

def test_without_tables_nothing_is_judged(nothing):
    assert {claim.verdict for claim in nothing} == {UNTESTED}


def test_every_claim_says_what_it_is_and_has_a_place_of_its_own(nothing):
    assert len(nothing) >= 20 and len({claim.anchor for claim in nothing}) == len(nothing)
    assert set(claims.SHOWN) <= {claim.title for claim in nothing} and len(claims.SHOWN) == 8
    for claim in nothing:
        assert claim.says.endswith(".") and claim.place and claim.paper and (claim.tables or claim.needs)
    headings = re.findall(r"^### (.*)$", PAGE.read_text(encoding="utf-8"), re.M)
    assert headings == [claim.title for claim in nothing]


@pytest.mark.slow
def test_the_page_is_what_the_tables_give():
    assert claims.differs(ROOT / "results") == []
    text, titles = claims.headline(ROOT / "results"), re.findall(r"^### (.*)$", PAGE.read_text(encoding="utf-8"), re.M)
    assert text.count("](REPRODUCTION.md#") == 8 and f"All {len(titles)} claims" in text


def test_a_page_that_was_changed_is_a_problem(tmp_path, monkeypatch):
    some = runs("plain", ["survived"], image_tokens=16, caption_tokens=4, width=32)
    monkeypatch.setattr(claims, "of_folder", lambda results: ({"A": []}, some))
    claims.write(tmp_path)
    assert claims.differs(tmp_path) == []
    (tmp_path / "REPRODUCTION.md").write_text("other")
    assert len(claims.differs(tmp_path)) == 1
