"""The paper's claims on the collapse itself: when it comes, how it looks in the loss, and whether it goes away."""

from __future__ import annotations

from functools import reduce
from operator import add

import pandas as pd

from suite.evidence.claim import Claim, Part
from suite.evidence.claims_tables import LOW, Tables
from suite.evidence.edges import judged
from suite.evidence.hazard import CUT, HEALTHY, PER, Piece, Risk, hazard_ratio, risks
from suite.evidence.hypotheses import EQUAL
from suite.evidence.stats import ratio
from suite.evidence.verdicts import Rule, Seen, share
from suite.protocol import KNOWN, rate
from suite.verdict.outcome import DEAD, HALF_WAY
from suite.verdict.signature import SIGNATURE_EARLY

MOST = Rule(0.8, 0.5, why="most: four in five or more; not even half: fewer than one in two")
DOUBLE = 5  # points of the lattice of rates, 1.15 apart: a factor of 2.01
OCTAVES = 2  # from the best rate on: what counts as a high one
RUNS = ("*/runs.csv",)
LONG = ("anatomy/runs.csv", "anatomy64/runs.csv")


def claims(tables: Tables) -> list[Claim]:
    return [_finite(tables), _high_rates(tables), _healthy(tables), _half(tables), _equal(tables), _constant(tables), _steps(tables),
            _permanent(tables), _clipping(tables), _unforeseen(tables)]  # fmt: skip


def plain_deaths(tables: Tables) -> pd.DataFrame:
    runs = tables.runs
    return runs[(runs["scheme"] == "plain") & runs["outcome"].isin(DEAD)]


def _finite(tables: Tables) -> Claim:
    dead = plain_deaths(tables)
    return Claim(
        "The collapse is finite", "The loss jumps to a finite level; no NaN and no Inf gives the failure away.", "section 4",
        "two crashed baselines, none of them with a value that is not finite",
        (Part("deaths of plain networks without a value that is not finite",
              share((dead["outcome"] != "nonfinite").sum(), len(dead), "deaths"), MOST),), RUNS,
    )  # fmt: skip


def _high_rates(tables: Tables) -> Claim:
    parts, plain = [], {depth: one for (scheme, depth), one in tables.measures.items() if scheme == "plain"}
    if plain:
        deepest, runs = max(plain), tables.frontier
        at = runs[(runs["scheme"] == "plain") & (runs["depth"] == deepest)]
        high = at[at["lr"] >= 2**OCTAVES * plain[deepest].valley.value]
        parts.append(Part(f"runs of {deepest} plain blocks that died, at four times their best rate or hotter",
                          share(high["outcome"].isin(DEAD).sum(), len(high), "runs"), MOST))  # fmt: skip
        first, last = (judged(runs[(runs["scheme"] == "plain") & (runs["depth"] == depth)]) for depth in (min(plain), deepest))
        found = ratio(last, first)
        seen = Seen(found.ratio, found.low, found.high, f"n = {len(last[0])} and {len(first[0])} runs") if found.ratio else Seen()
        parts.append(Part(f"LR50 at {deepest} blocks over LR50 at {min(plain)}", seen,
                          Rule(0.9, 1.0, 1.1, "a tenth is less than one step of the lattice of rates, 15 %")))  # fmt: skip
    return Claim(
        "It hits deep plain networks at high rates",
        "Deep plain Post-Norm networks crash at learning rates that they first train well with.", "Fig. 2 and 3, section 6.1",
        "400 blocks crash at 1.56e-4 and at half of it: 2 of 2 runs", tuple(parts), ("frontier/runs.csv",),
        note="The paper has no sweep of rates and no sweep of depths; that an edge falls with depth is our reading of its claim.",
    )  # fmt: skip


def _long_risk(tables: Tables, name: str) -> Risk | None:
    known = [risk for risk in risks(tables.long) if risk.name == name]
    return reduce(add, known) if known else None


def _healthy(tables: Tables) -> Claim:
    risk, parts = _long_risk(tables, "plain"), []
    if risk:
        late = risk.pieces[1]
        seen = Seen(*late.hazard, f"{late.deaths} deaths in {late.steps:,} healthy steps") if late.steps else Seen()
        parts.append(Part(f"deaths of healthy plain runs below their edge, in {PER} healthy steps after step {CUT}", seen,
                          Rule(0.05, 0.01, why="a twentieth of the runs in a thousand steps; a hundredth is rarer than these tables "
                                               "can see")))  # fmt: skip
    return Claim(
        "It can strike a long-healthy run", "A network that has trained well for thousands of steps collapses, and nothing was changed.",
        "Fig. 3, Fig. 9", "step 26,423 of 400 blocks at half the rate, from a loss of .79", tuple(parts), (*LONG, "anatomy/evals.csv"),
        note=f"Healthy: the held-out loss last measured before the event is below {HEALTHY:g} c. Ours are steps 1,000 to 3,000 at rates "
             "just below the edge, not steps 3,400 to 26,000.",
    )  # fmt: skip


def _half(tables: Tables) -> Claim:
    halves, doubles, died, runs = [], [], 0, 0
    long = tables.long[(tables.long["scheme"] == "plain") & (tables.long["protocol"] == "anatomy")]
    frontier = tables.frontier[tables.frontier["scheme"] == "plain"]
    for (depth, lr), half in long.groupby(["depth", "lr"]):
        twice = frontier[(frontier["depth"] == depth) & (frontier["lr"] == rate(KNOWN[lr] + DOUBLE))] if lr in KNOWN else frontier[:0]
        if len(twice):
            halves.append(half)
            doubles.append(twice)
            died, runs = died + half["outcome"].isin(DEAD).sum(), runs + len(half)
    parts = ()
    if halves:
        hot, cool = (_piece(pd.concat(side)) for side in (doubles, halves))
        found = hazard_ratio(hot, cool)
        seen = Seen(*found, f"{hot.deaths} deaths in {hot.steps:,} steps and {cool.deaths} in {cool.steps:,}") if found else Seen()
        parts = (
            Part("how much rarer a death is in a step at half the rate", seen,
                 Rule(2.0, 1.0, 0.5, "half as many deaths; no fewer; twice as many")),
            Part("plain runs that die at half the rate all the same, by step 3,000", share(died, runs, "runs"),
                 Rule(0.05, 0.01, why="one run in twenty says that it is not removed; a hundredth is rarer than these tables can see")),
        )  # fmt: skip
    return Claim(
        "Half the rate delays it", "Halving the learning rate delays the crash and does not remove it.", "section 6.1, Fig. 9",
        "from step 3,400 to 26,423: 7.8 times later (n = 1 each)", parts, ("anatomy/runs.csv", "frontier/runs.csv"),
        note="Each rate below the edge beside the one of twice it (2.01 times, five points of the lattice) at the same depth. The interval "
             "takes a death to be as likely in each step.",
    )  # fmt: skip


def _piece(runs: pd.DataFrame) -> Piece:
    dead = runs["outcome"].isin(DEAD)
    return Piece(int(dead.sum()), int(runs["crash_step"].where(dead, runs["horizon"]).astype(float).sum()))


def _equal(tables: Tables) -> Claim:
    dead = plain_deaths(tables)
    return Claim(
        "All tokens become equal", "After the crash every token is the same vector: token cosine similarity (TCS) goes to 1.", "Fig. 3f",
        "TCS from .1 to 1.000 within 20 steps, for good", (
            Part("deaths of plain networks with equal tokens at the end (TCS above .9 in the deeper half)",
                 share((dead["state"] == EQUAL).sum(), len(dead), "deaths"), MOST),
        ), RUNS,
    )  # fmt: skip


def _constant(tables: Tables) -> Claim:
    dead = plain_deaths(tables)
    return Claim(
        "The loss becomes the constant predictor's", "The loss returns to where it began: what a predictor gets that ignores its input.",
        "Fig. 2, Fig. 3a", "from .79 to 1.94, flat; the variance of the target is about 2", (
            Part("deaths of plain networks that end within a tenth of the way from c (outcome collapsed)",
                 share((dead["outcome"] == "collapsed").sum(), len(dead), "deaths"), MOST),
        ), RUNS,
    )  # fmt: skip


def _after(tables: Tables) -> pd.DataFrame:
    rows = tables.aftermath
    return rows[rows["scheme"] == "plain"] if len(rows) else rows


def _steps(tables: Tables) -> Claim:
    rows = _after(tables)
    known = rows["jump"].dropna() if len(rows) else pd.Series(dtype=float)
    return Claim(
        "It takes about ten steps", "The whole transition takes a few steps.", "Fig. 3, Fig. 10",
        "at most 10 steps at 400 blocks; .81 to 2.12 in 4 steps at 1000 blocks", (
            Part(f"deaths of plain networks whose loss goes from {LOW:g} to {1 - LOW:g} of the way to c in ten steps or fewer",
                 share((known <= 10).sum(), len(known), "deaths"), MOST),
        ), (*LONG, "anatomy/curves", "anatomy64/curves"),
        note=f"Median {known.median():g} steps. Of the five-point median of the loss, which adds up to two." if len(known) else "",
    )  # fmt: skip


def _permanent(tables: Tables) -> Claim:
    rows = _after(tables)
    rows = rows[rows["seen"] >= 400] if len(rows) else rows
    back = (rows["lowest"] < HALF_WAY).sum() if len(rows) else 0
    levels = f" Lowest they came: {rows['lowest'].min():.2f} of the way to c." if len(rows) else ""
    return Claim(
        "It is permanent", "The run never recovers.", "Fig. 2, Fig. 3", "3,500 steps watched behind one crash, flat at 1.94", (
            Part("deaths of plain networks after which the loss never came back half way, in the 400 or more steps that were watched",
                 share(len(rows) - back, len(rows), "deaths"), MOST),
        ), (*LONG, "anatomy/curves", "anatomy64/curves"), needs="longer runs behind the crash, of 3,500 steps as in the paper",
        note=f"The learning rate stays as it was, as in the paper.{levels}",
    )  # fmt: skip


def _clipping(tables: Tables) -> Claim:
    rows = _after(tables)
    clipped = (rows["top_norm"] > 1.0).sum() if len(rows) else 0
    return Claim(
        "Gradient clipping does not remove it", "Clipping the global gradient norm at 1.0 does not prevent the crash.", "App. J",
        "all runs are clipped; no number", (
            Part(f"deaths of plain networks whose gradient was clipped within {SIGNATURE_EARLY} steps of the crash",
                 share(clipped, len(rows), "deaths"), MOST),
        ), (*LONG, "anatomy/curves", "anatomy64/curves"), needs="runs without clipping beside them, to say whether it helps at all",
        note="All our runs are clipped at 1.0 too. That clipping was at work and the run died says that it does not prevent; not that it "
             "does nothing.",
    )  # fmt: skip


def _unforeseen(tables: Tables) -> Claim:
    found = max(tables.warnings, key=lambda one: (one.early, one.warned), default=None)
    seen = share(found.early, found.dead, "deaths, the best of five signals") if found else Seen()
    return Claim(
        "Its onset cannot be foreseen", "The step of the crash is not predictable.", "App. L",
        "no number; the published trace is calm until ten steps before", (
            Part("deaths of healthy runs that loss or gradient norm warn of 25 steps ahead, by a line that no run that lived ever passed",
                 seen, Rule(0.25, 0.5, why="a warning that misses three deaths in four is of no use; one that foresees half of them is")),
        ), (*LONG, "anatomy/curves", "anatomy64/curves"),
        note="Five signals were tried, made of loss and gradient norm; another may do better. All schemes together.",
    )  # fmt: skip


