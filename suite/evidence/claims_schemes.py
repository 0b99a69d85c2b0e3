"""The paper's claims on schemes: what MV-Split prevents, what it costs, what it is better than, and what does not help."""

from __future__ import annotations

import pandas as pd

from suite.evidence.claim import Claim, Part
from suite.evidence.claims_collapse import LONG, MOST, RUNS, plain_deaths
from suite.evidence.claims_tables import BOTH, Tables
from suite.evidence.edges import of_search
from suite.evidence.hazard import CUT, hazard_ratio, risks
from suite.evidence.hypotheses import EQUAL
from suite.evidence.ranking import paired
from suite.evidence.spikes import families, fatal, summary
from suite.evidence.verdicts import Rule, Same, Seen, geometric, mean, share
from suite.verdict.outcome import DEAD

FEW = Rule(0.1, 0.5, why="a tenth or fewer; half or more")
BETTER = Rule(0.01, 0.0, -0.01, "one in a hundred of the loss; no better; one in a hundred worse")


def claims(tables: Tables) -> list[Claim]:
    return [_prevents(tables), _moves(tables), _late(tables), _lives(tables), _tracks(tables), _early_quality(tables), _layerscale(tables),
            _layerscale_modes(tables), _mvsplit_modes(tables), _attention_only(tables)]  # fmt: skip


def of_mvsplit(runs: pd.DataFrame, small: bool = False) -> pd.Series:
    """Which runs are MV-Split at both merges with beta = 1 at the start, the paper's of 400 blocks; small: with a smaller one."""
    whole = (runs["scheme"] == "mvsplit") & runs["params"].str.endswith("sites=both")
    return whole & (runs["params"].str.endswith(BOTH) != small)


def _prevents(tables: Tables) -> Claim:
    gone = tables.runs[tables.runs["outcome"].isin(DEAD)]
    dead, small = gone[of_mvsplit(gone)], gone[of_mvsplit(gone, small=True)]
    plain = plain_deaths(tables)
    return Claim(
        "MV-Split prevents that collapse", "With MV-Split the tokens do not become equal.", "Fig. 2, section 5",
        "no collapse in 80,000 steps at 400 blocks (beta = 1) and 1000 blocks (beta = .03), one run each", (
            Part("deaths of MV-Split (beta = 1) that end with equal tokens",
                 share((dead["state"] == EQUAL).sum(), len(dead), "deaths"), FEW),
            Part("the same where beta starts smaller",
                 share((small["state"] == EQUAL).sum(), len(small), "deaths"), FEW),
        ), RUNS, needs="smaller betas at 400 blocks and more",
        note=f"It dies otherwise: {len(dead)} of our runs with beta = 1 died, their tokens apart. Of {len(plain)} deaths of plain "
             f"{(plain['state'] == EQUAL).sum()} end with equal tokens.",
    )  # fmt: skip


def _moves(tables: Tables) -> Claim:
    rule = Rule(2.0, 1.0, 1 / 1.15, "the paper's plain dies at half of the rate that MV-Split lives at; 1.15 is a step of the lattice")
    parts = [Part(f"LR50 of MV-Split over plain's, {one.depth} blocks",
                  Seen(one.ratio, one.low, one.high, f"n = {one.n[0]} and {one.n[1]} runs"), rule)
             for one in sorted(tables.ratios, key=lambda one: -one.depth) if one.scheme == "mvsplit" and one.ratio]  # fmt: skip
    return Claim(
        "MV-Split trains where plain crashes", "At rates at which plain networks crash, MV-Split trains.", "Fig. 2, Table 1",
        "plain crashes at 1.56e-4 and at half of it, MV-Split trains at 1.56e-4", tuple(parts), ("frontier/runs.csv", "hypotheses.csv"),
        note="At the start the branches of both are of one scale. The only comparison of edges that was fixed beforehand.",
    )  # fmt: skip


def _late(tables: Tables) -> Claim:
    long = tables.long[tables.long["protocol"] == "anatomy"]
    sides = []
    for mask in (long["scheme"] == "plain", of_mvsplit(long)):
        known = risks(long[mask])
        sides.append(sum(known[1:], known[0]).pieces[1] if known else None)
    found = hazard_ratio(*sides) if all(sides) else None
    counts = " and ".join(f"{side.deaths} deaths in {side.steps:,} healthy steps" for side in sides if side)
    seen = Seen(*found, counts) if found else Seen()
    return Claim(
        "MV-Split removes the late collapse", "The collapse of long-healthy runs does not happen with MV-Split.", "Fig. 2, Fig. 5",
        "no event in 80,000 steps (one run a depth)", (
            Part(f"hazard of healthy plain runs over that of MV-Split's after step {CUT}, each at its two rates below its own edge", seen,
                 Rule(2.0, 1.0, 0.5, "half as many deaths; no fewer; twice as many")),
        ), ("anatomy/runs.csv", "anatomy/evals.csv"),
        note=f"Step {CUT} was chosen as the border after the deaths were seen; before it MV-Split has more healthy deaths than plain.",
    )  # fmt: skip


def _lives(tables: Tables) -> Claim:
    parts = []
    mine = tables.long[of_mvsplit(tables.long)]
    parts.append(Part("MV-Split's runs below its own edge that live to step 3,000",
                      share((mine["outcome"] == "survived").sum(), len(mine), "runs"),
                      Rule(0.9, 0.5, why="the paper saw no crash at all; nine in ten; fewer than half")))  # fmt: skip
    return Claim(
        "MV-Split does not crash", "No run with MV-Split diverges over the measured horizon.", "Fig. 2, Fig. 5, Table 3",
        "2 of 2 runs, to 80,000 steps and more", tuple(parts), LONG,
        needs="colder rates: these lie one and two steps of the lattice below its edge of 400 steps",
    )  # fmt: skip


def _tracks(tables: Tables) -> Claim:
    plain = {depth: one for (scheme, depth), one in tables.measures.items() if scheme == "plain"}
    near = {depth: one.edge.lr10.middle for depth, one in plain.items()}
    best = {depth: one.best_lr for depth, one in plain.items()}
    rule = Same(0.05, "5 %, what a window of good rates allows")
    return Claim(
        "MV-Split tracks plain before the crash", "Where plain still trains, MV-Split's loss follows it closely.", "Fig. 2",
        "curves that lie on each other; no number", tuple(
            Part(f"held-out loss of MV-Split over plain's less 1, same depth, rate and seed, at rates up to plain's {words}",
                 _gap(tables.frontier, limits), rule)
            for words, limits in (("LR10", near), ("best", best))
        ), ("frontier/runs.csv",), note="The second part was added after the first was seen. Near its edge it is plain that learns worse.",
    )  # fmt: skip


def _gap(runs: pd.DataFrame, limits: dict[int, float]) -> Seen:
    """Loss of MV-Split over plain's less 1 in pairs of the search's runs that both survived, up to a rate by depth; means by seed."""
    lived = runs[(runs["outcome"] == "survived") & runs["scheme"].isin(("plain", "mvsplit"))]
    lived = of_search(lived[lived["lr"] <= lived["depth"].map(limits)])
    wide = lived.pivot_table(index=["seed", "depth", "lr"], columns="scheme", values="heldout_loss").dropna()
    if not len(wide) or len(wide.columns) < 2:
        return Seen()
    return mean((wide["mvsplit"] / wide["plain"] - 1).groupby("seed").mean(), f"seeds, {len(wide)} pairs of runs")


def _scores(tables: Tables, protocol: str, step: int | None = None) -> pd.DataFrame:
    """FID of the runs of a protocol that were scored, at that step or the last."""
    rows = tables.quality
    rows = rows[(rows["protocol"] == protocol) & (rows["fid_status"] == "ok")] if len(rows) else rows
    if not len(rows):
        return rows
    rows = rows[rows["step"] == step] if step else rows.sort_values("step").drop_duplicates("run_id", keep="last")
    return rows[(rows["scheme"] != "mvsplit") | of_mvsplit(rows)]


def _fid_ratio(rows: pd.DataFrame, one: str, other: str, of: str) -> Seen:
    """FID of one scheme over another's, in pairs of the same depth, rate and seed."""
    if not len(rows):
        return Seen()
    wide = rows.pivot_table(index=["depth", "lr", "seed"], columns="scheme", values="fid")
    return geometric((wide[one] / wide[other]).dropna(), of) if {one, other} <= set(wide) else Seen()


def _early_quality(tables: Tables) -> Claim:
    return Claim(
        "Before its crash plain samples better", "While it lives, plain has the better FID.", "Table 1",
        "FID 5.92 against MV-Split's 7.23 at 10,000 steps, 3.22 against 3.64 at 20,000 (plain at half the rate)", (
            Part("FID of plain over MV-Split's at step 1,000, same rate and seed",
                 _fid_ratio(_scores(tables, "anatomy", 1000), "plain", "mvsplit", "pairs of runs"),
                 Rule(0.95, 1.0, 1.05, "a twentieth on either side")),
        ), ("anatomy/quality.csv",), note="256 samples of 8 x 8 digits, with features of a digit network.",
    )  # fmt: skip


def _layerscale(tables: Tables) -> Claim:
    parts, found = [], tables.measures
    for depth in sorted({depth for _, depth in found}, reverse=True):
        if ("mvsplit", depth) in found and ("layerscale", depth) in found:
            behind = paired(found["layerscale", depth], found["mvsplit", depth])
            parts.append(Part(f"loss of LayerScale over MV-Split's less 1, each at its best rate, {depth} blocks",
                              mean(behind, "pairs of seeds"), BETTER))  # fmt: skip
    rows = _scores(tables, "laptop")
    cool = rows[rows["lr"] == rows["lr"].min()] if len(rows) else rows
    parts.append(Part("FID of LayerScale over MV-Split's at one cool rate",
                      _fid_ratio(cool, "layerscale", "mvsplit", "depths, a seed each"),
                      Rule(1.05, 1.0, 0.95, "a twentieth on either side")))  # fmt: skip
    return Claim(
        "MV-Split learns better than LayerScale", "MV-Split reaches a better model than LayerScale in the same steps.", "Table 1, Fig. 5",
        "FID 7.23 against 14.08 at 10,000 steps, 2.60 against 2.90 at 50,000 (one run each)", tuple(parts),
        ("frontier/runs.csv", "laptop/quality.csv"),
        needs="LayerScale's starts other than .01, and FID of several seeds at each scheme's own best rate",
        note="Ours has zero writers for both; the paper's LayerScale has standard ones. Its gain starts at .01, MV-Split's at 1.",
    )  # fmt: skip


def _mode_ratio(tables: Tables, scheme: str, column: str) -> Seen:
    """A scheme's gradient part over plain's, in pairs of the same depth, rate and seed."""
    rows = tables.modes
    if not len(rows):
        return Seen()
    rows = rows[(rows["scheme"] != "mvsplit") | of_mvsplit(rows)]
    wide = rows.pivot_table(index=["protocol", "depth", "lr", "seed"], columns="scheme", values=column)
    return geometric((wide[scheme] / wide["plain"]).dropna(), "pairs of runs") if {scheme, "plain"} <= set(wide) else Seen()


def _layerscale_modes(tables: Tables) -> Claim:
    rule = Rule(0.5, 1.0, 2.0, "half of plain's; no smaller; twice")
    return Claim(
        "LayerScale shrinks both parts of the gradient",
        "LayerScale makes the mean and the centered part of the writers' gradients smaller alike.", "Fig. 6, Eq. 40 to 42",
        "a figure without numbers", tuple(
            Part(f"{name} of LayerScale over plain's, attention's W_O", _mode_ratio(tables, "layerscale", name), rule)
            for name in ("g_mean", "g_ctr")
        ), ("anatomy/audit", "anatomy64/audit"), needs="audited runs of LayerScale: protocol anatomy trains plain and MV-Split alone",
    )  # fmt: skip


def _mvsplit_modes(tables: Tables) -> Claim:
    return Claim(
        "MV-Split bounds the mean part and keeps the centered", "MV-Split holds the mean part of the gradient down and leaves the centered "
        "part its size.", "Fig. 6, Eq. 10", "a figure without numbers", (
            Part("g_mean of MV-Split over plain's, attention's W_O, healthy", _mode_ratio(tables, "mvsplit", "g_mean"),
                 Rule(0.5, 1.0, 2.0, "half of plain's; no smaller; twice")),
            Part("g_ctr of MV-Split over plain's, attention's W_O, healthy", _mode_ratio(tables, "mvsplit", "g_ctr"),
                 Rule(0.5, 0.2, why="half of plain's or more; a fifth")),
        ), ("anatomy/audit", "anatomy64/audit"), note="Medians over blocks and audited steps, up to a crash.",
    )  # fmt: skip


def _attention_only(tables: Tables) -> Claim:
    runs = tables.long
    alone = runs[(runs["scheme"] == "mvsplit") & runs["params"].str.endswith("sites=attn")] if len(runs) else runs
    shares = []
    for row in alone[alone["protocol"] == "anatomy"].itertuples():
        if steps := fatal(tables.spikes, row):
            shares.append(summary(families(tables.spikes, row.run_id, steps[-1]))["W2_share"])
    return Claim(
        "MV-Split on attention alone fails", "If only the attention merges are split, the network crashes through its FFN.",
        "Fig. 10, App. F",
        "1000 blocks at step 7,415; 14 of the 15 largest gradients, 93 % of their mass, are of W_2", (
            Part("runs with attention alone split that died by step 3,000",
                 share(alone["outcome"].isin(DEAD).sum(), len(alone), "runs"), Rule(0.5, 0.25, why="half or more; a quarter or fewer")),
            Part("share of W_2 in the 15 largest gradients' square at the last spike", mean(shares, "runs that died"),
                 Rule(0.8, 0.5, why=MOST.why)),
        ), ("anatomy/runs.csv", "anatomy/spikes.csv"), needs="more seeds",
    )  # fmt: skip
