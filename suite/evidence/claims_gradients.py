"""The paper's claims on what happens inside: gradients, alignment, contraction, and where it begins. Of plain runs that were healthy."""

from __future__ import annotations

import numpy as np
import pandas as pd

from suite.evidence.claim import Claim, Part
from suite.evidence.claims_tables import Tables
from suite.evidence.spikes import families, fatal, summary
from suite.evidence.verdicts import Rule, Seen, geometric, mean, share
from suite.verdict.signature import SIGNATURE_FALL, SIGNATURE_SPIKE

AUDIT = ("anatomy/audit", "anatomy64/audit")
SITES = {"attn": "attention W_O", "ffn": "FFN W_2"}
SPIKE = Rule(SIGNATURE_SPIKE, 2.0, why="the suite's line for a spike; twice is hardly a rise")


def claims(tables: Tables) -> list[Claim]:
    found = tables.events
    healthy = found[(found["scheme"] == "plain") & found["died_healthy"]] if len(found) else found
    return [_spike(healthy), _selective(healthy), _queries(healthy), _alignment(healthy), _amplification(healthy), _opening(healthy),
            _contraction(healthy), _cause(healthy), _mean_mode(healthy), _shallow(tables)]  # fmt: skip


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    return rows[name] if name in rows else pd.Series(dtype=float)


def _spike(rows: pd.DataFrame) -> Claim:
    return Claim(
        "The mean part of the writers' gradients spikes", "At the crash the part of a writer's gradient that all tokens share jumps.",
        "Fig. 3b, Eq. 5", "155 times in attention's W_O, 61 times in the FFN's W_2", tuple(
            Part(f"rise of g_mean of {words}, deep blocks", geometric(_column(rows, f"g_mean_{site}"), "runs"), SPIKE)
            for site, words in SITES.items()
        ), AUDIT, note="With 20 or 68 tokens for the paper's 256 a sum over tokens has less room.",
    )  # fmt: skip


def _selective(rows: pd.DataFrame) -> Claim:
    rule = Rule(SIGNATURE_SPIKE, 2 * SIGNATURE_SPIKE, why="below the line that counts as a spike; the paper's FFN has 3")
    apart = Rule(SIGNATURE_SPIKE, 2.0, 0.5, why="as the spike itself; twice is hardly selective; half")
    return Claim(
        "The centered part does not spike", "The part in which the tokens differ stays where it was.", "Fig. 3b",
        "g_ctr 1 time in attention's W_O, 3 times in the FFN's W_2", (
            *(Part(f"rise of g_ctr of {words}, deep blocks", geometric(_column(rows, f"g_ctr_{site}"), "runs"), rule)
              for site, words in SITES.items()),
            *(Part(f"rise of g_mean over rise of g_ctr, {words}",
                   geometric(_column(rows, f"g_mean_{site}") / _column(rows, f"g_ctr_{site}"), "runs"), apart)
              for site, words in SITES.items()),
        ), AUDIT,
    )  # fmt: skip


def _queries(rows: pd.DataFrame) -> Claim:
    rule = Rule(1e3, SIGNATURE_FALL, why="three decades, one fewer than the paper says; two are the suite's line for an extinction")
    return Claim(
        "Query and key gradients die", "The gradients of queries and keys then lose about four orders of magnitude.", "Fig. 3c, Lemma 1",
        "four orders of magnitude", tuple(
            Part(f"fall of the gradient of W_{name.upper()}, deep blocks", geometric(_column(rows, f"{name}_grad_attn"), "runs"), rule)
            for name in ("q", "k")
        ), AUDIT, note="In single precision they fall further, to what rounding leaves.",
    )  # fmt: skip


def _alignment(rows: pd.DataFrame) -> Claim:
    rule = Rule(0.8, 0.5, 0.2, why="1 is full coherence; the paper's own slope before the event is below .2")
    return Claim(
        "The tokens' gradients line up", "At the event signed cancellation vanishes: A - 1 reaches its envelope (T - 1) kappa_hat.",
        "Fig. 4, Eq. 30 to 32", "slopes of the active blocks .961 (W_O) and .985 (W_2), before .169 and .126 (one run)", tuple(
            Part(f"slope of the active blocks at the event, {words}", mean(_column(rows, f"slope_{site}"), "runs with active blocks"), rule)
            for site, words in SITES.items()
        ), AUDIT, needs="more tokens, 256 as in the paper: ours have 20 and 68",
        note="A block is active where A - 1 > .5, as in the paper; a run with fewer than two has no slope. Ours are through the origin.",
    )  # fmt: skip


def _amplification(rows: pd.DataFrame) -> Claim:
    rule = Rule(0.5, 0.25, why="half of what the number of tokens allows; a quarter")
    return Claim(
        "The amplification nears the number of tokens", "The largest A at the event is of the order of the number of tokens T.", "Fig. 4",
        "A - 1 = 167 of 255 possible: a share of .65", tuple(
            Part(f"largest A - 1 of any audited block at the event over T - 1, {words}", mean(_column(rows, f"top_{site}"), "runs"), rule)
            for site, words in SITES.items()
        ), AUDIT, needs="a sweep over the number of tokens",
    )  # fmt: skip


def _opening(rows: pd.DataFrame) -> Claim:
    return Claim(
        "The residual branches open", "The branches rapidly grow against the trunk.", "Fig. 3d, definition of MMS (ii)",
        "r_TR of block 384 from .006 to .86, of block 224 from .054 to .28: 5 to 140 times", (
            Part("rise of r_TR at the attention merges, deep blocks", geometric(_column(rows, "r_tr_attn"), "runs"),
                 Rule(3.0, 1.5, why="three times; half as much again")),
        ), AUDIT,
    )  # fmt: skip


def _contraction(rows: pd.DataFrame) -> Claim:
    border = Rule(0.95, 1.0, 1.05, "1 is the border of contraction (Prop. 2); a twentieth on either side")
    return Claim(
        "Attention contracts what differs", "Attention shrinks the differences between tokens throughout: mu_eff is below 1.",
        "Prop. 2, Fig. 3e", "the caption says that it remains contractive; the published trace has 1.06 to 1.16 before, .26 to .54 after",
        tuple(Part(f"mu_eff {words} the event, deep blocks", mean(_column(rows, f"mu_eff_{when}"), "runs"), border)
              for words, when in (("before", "before"), ("behind", "after"))), AUDIT,
    )  # fmt: skip


def _cause(rows: pd.DataFrame) -> Claim:
    before, after, mu, g_mean = (_column(rows, name) for name in ("mu_eff_before", "mu_eff_after", "mu_eff_left", "g_mean_left"))
    known = mu.notna() & g_mean.notna()
    first = (mu[known] < g_mean[known] - 1).sum()
    return Claim(
        "Contraction follows the shock", "The gradients' shock comes first; attention contracts more after it.", "section 4, Fig. 3",
        "the order of the figure's panels; no number", (
            Part("mu_eff behind the event over mu_eff before, deep blocks", geometric(after / before, "runs"),
                 Rule(0.8, 0.95, 1.05, "a fifth less; a twentieth is no change")),
            Part("deaths in which mu_eff left its calm range two steps or more before g_mean did",
                 share(first, int(known.sum()), "runs in which both left"),
                 Rule(0.25, 0.5, why="in most runs it does not lead; half or more would make it as good a cause")),
        ), AUDIT, note="An order of events is no proof of a cause. Attention contracts before the event too, while the runs are "
                       "healthy ([above](#attention-contracts-what-differs)): contraction alone does not kill.",
    )  # fmt: skip


def _mean_mode(rows: pd.DataFrame) -> Claim:
    growth = _column(rows, "rho_after") / _column(rows, "rho_before")
    return Claim(
        "The mean outgrows the rest", "The mean of the tokens grows to thousands of times what they differ by.", "Fig. 2, Fig. 3d",
        "rho from .64 to about 2,000, at most 20,000", (
            Part("rise of rho, deep blocks", geometric(growth, "runs"),
                 Rule(100.0, 10.0, why="two decades; one is what a half collapse would show")),
        ), AUDIT, note="Ours falls to what rounding leaves of the differences.",
    )  # fmt: skip


def _shallow(tables: Tables) -> Claim:
    shares, runs = [], tables.long
    for row in runs[(runs["scheme"] == "plain") & (runs["protocol"] == "anatomy")].itertuples() if len(runs) else ():
        if steps := fatal(tables.spikes, row):
            shares.append(summary(families(tables.spikes, row.run_id, steps[-1]))["shallow_share"])
    led = np.array(shares) > 0.5
    return Claim(
        "It begins in the shallow blocks", "The gradient spike at the onset sits in the first blocks and the embedding.", "Fig. 9, App. F",
        "15 of the 15 largest gradients are of blocks 0 to 2 or the embedding (one run)", (
            Part("deaths of plain networks whose last gradient spike lies there (more than half of its square)",
                 share(led.sum(), len(led), "deaths") if len(led) else Seen(),
                 Rule(0.8, 0.5, why="most runs; not even half")),
        ), ("anatomy/spikes.csv", "anatomy/runs.csv"),
    )  # fmt: skip
