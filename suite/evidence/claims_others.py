"""The paper's claims on the start of training, on what the token mean carries, on depth, and those that no table here speaks to."""

from __future__ import annotations

import pandas as pd

from suite.controls import CONTROLS
from suite.evidence.claim import Claim, Part
from suite.evidence.claims_collapse import MOST
from suite.evidence.claims_schemes import of_mvsplit
from suite.evidence.claims_tables import Tables
from suite.evidence.remedies import CALLED, CENTERING, NONE, at
from suite.evidence.verdicts import Rule, Seen, mean, share
from suite.evidence.words import called
from suite.presets import PLAIN_DIES, PLAIN_LEARNS
from suite.verdict.outcome import GONE
from suite.verdict.signature import MEAN_DOMINATED

PAPERS = tuple(name for name, changes in CONTROLS.items() if changes.keys() & {"mixing", "gated"})  # remedies of App. J
UNPREVENTED = Rule(0.5, 0.4, why="more than half still fail; prevented: fewer than two in five, which none of eight shows")
DEGRADED = Rule(0.01, 0.0, -0.01, "one in a hundred of the loss; no worse; one in a hundred better")
ALIVE = Rule(0.8, 0.5, why=MOST.why)


def claims(tables: Tables) -> list[Claim]:
    return [_start(tables), _probe(tables), _beyond(tables), _captions(tables), _thousand(tables), _four_hundred(tables), _remedies(tables),
            *_untested()]  # fmt: skip


def _start(tables: Tables) -> Claim:
    runs = tables.start
    plain = runs[runs["scheme"] == "plain"] if len(runs) else runs
    return Claim(
        "Standard init is dead from the start", "With standard writers and no gates, a network of 128 blocks is collapsed from its first "
        "steps.", "App. B, Fig. 7", "128 blocks: TCS above .9 as a front over depth, loss on a high plateau within 690 steps (one run)", (
            Part("plain runs of 128 blocks with standard writers that never train, or die",
                 share(plain["outcome"].isin(GONE).sum(), len(plain), "runs") if len(plain) else Seen(), MOST),
            Part("TCS of the last quarter of the blocks at the end", mean(plain["tcs"], "runs") if len(plain) else Seen(),
                 Rule(MEAN_DOMINATED, 0.5, why=".9: the paper's contour; .5: half way")),
        ), ("stdinit/runs.csv", "stdinit/audit"), needs="five seeds or more, and the paper's width: at ours N(0, .02) is a smaller gain",
    )  # fmt: skip


def _best(tables: Tables, feature: str, column: str) -> Seen:
    """Of MV-Split's probed runs: the best layer's score at the last probed step."""
    rows = tables.probe
    if not len(rows):
        return Seen()
    rows = rows[(rows["feature"] == feature) & of_mvsplit(rows)]
    rows = rows[rows["step"] == rows.groupby("run_id")["step"].transform("max")]
    return mean(rows.groupby("run_id")[column].max(), "runs")


def _probe(tables: Tables) -> Claim:
    return Claim(
        "The token mean carries the timestep", "From the mean of the image tokens a linear probe reads the timestep t.", "App. H, Fig. 11",
        "near perfect R2; inputs' statistics alone .41", (
            Part("R2 of t from the image tokens' mean, best block, MV-Split", _best(tables, "image_mean", "r2"),
                 Rule(0.9, 0.5, why="nine tenths of the variance; half")),
            Part("R2 of a shuffled t, the control", _best(tables, "shuffled", "r2"), Rule(0.05, 0.1, why="nothing, but for noise")),
        ), ("anatomy/probe.csv",),
    )  # fmt: skip


def _beyond(tables: Tables) -> Claim:
    return Claim(
        "The mean knows more than the input's statistics", "What the mean tells of t goes far beyond statistics of the noisy input.",
        "App. H, Fig. 11b", ".998 and .70 of what these leave", (
            Part("share of the variance left by input statistics that the image mean removes, best block, MV-Split",
                 _best(tables, "image_mean", "residual_r2"), Rule(0.7, 0.3, why="the paper's lower number; less than a third")),
        ), ("anatomy/probe.csv",), note="Our input statistics alone explain next to nothing of t.",
    )  # fmt: skip


def _captions(tables: Tables) -> Claim:
    return Claim(
        "The caption tokens learn the timestep", "The mean of the text tokens, which start without it, acquires t within the network.",
        "App. H, Fig. 11", "after a few layers", (
            Part("R2 of t from the caption tokens' mean, best block, MV-Split", _best(tables, "caption_mean", "r2"),
                 Rule(0.8, 0.3, why="four fifths of the variance; less than a third")),
        ), ("anatomy/probe.csv",),
    )  # fmt: skip


def _usable(tables: Tables, depth: int, params: str) -> Seen:
    runs = tables.runs
    runs = runs[(runs["protocol"] == "deep") & (runs["depth"] == depth)]
    mine = runs[(runs["scheme"] == "mvsplit") & runs["params"].str.contains(params)]
    return share((mine["outcome"] == "survived").sum(), len(mine), "runs")


def _beside(tables: Tables, depth: int, but: str) -> str:
    """What the other cells of a depth came to, in words."""
    runs = tables.runs[(tables.runs["protocol"] == "deep") & (tables.runs["depth"] == depth)]
    others = runs[(runs["scheme"] != "mvsplit") | ~runs["params"].str.contains(but)]
    said = [f"{called(scheme)}{f' ({params})' * (scheme == 'mvsplit')} {(at['outcome'] == 'survived').sum()} of {len(at)}"
            for (scheme, params), at in others.groupby(["scheme", "params"])]  # fmt: skip
    return f"Usable beside it: {', '.join(said)}." if said else ""


def _thousand(tables: Tables) -> Claim:
    return Claim(
        "A thousand blocks are trainable", "With MV-Split and beta = .03 at the start a network of 1000 blocks trains.",
        "Fig. 2, Fig. 12, Table 1",
        "one run to 80,000 steps and more", (
            Part("runs of 1000 blocks with beta = .03 that are usable at step 300", _usable(tables, 1000, "beta=0.03,"), ALIVE),
        ), ("deep/runs.csv",), needs="five seeds or more, and more than 300 steps", note=_beside(tables, 1000, "beta=0.03,"),
    )  # fmt: skip


def _four_hundred(tables: Tables) -> Claim:
    return Claim(
        "Four hundred blocks train with beta at 1", "With MV-Split and beta = 1 at the start a network of 400 blocks trains.",
        "Fig. 2, Table 1", "one run to 80,000 steps", (
            Part("runs of 400 blocks with beta = 1 that are usable at step 600, three rates", _usable(tables, 400, "beta=1,"), ALIVE),
        ), ("deep/runs.csv",), needs="more seeds, at rates of its own", note=_beside(tables, 400, "beta=1,"),
    )  # fmt: skip


def _remedies(tables: Tables) -> Claim:
    runs = tables.remedied

    def part(remedy: str) -> Part:
        hot = at(runs, remedy, "plain", PLAIN_DIES)
        return Part(f"plain runs that are not usable where none of plain's is, with {CALLED[remedy]}",
                    share((hot["outcome"] != "survived").sum(), len(hot), "runs"), UNPREVENTED)

    def learnt(remedy: str) -> pd.Series:
        return at(runs, remedy, "plain", PLAIN_LEARNS).set_index("seed")["heldout_loss"]

    return Claim(
        "Other remedies do not prevent it", "Attention without its diagonal or mixed with it, gates on attention's output, and the Muon "
        "optimiser do not prevent the collapse; hard centering learns worse.", "App. F, App. J", "no number, no figure",
        (*map(part, PAPERS), Part("the same under Muon", Seen(), UNPREVENTED),
         Part("loss with hard centering over plain's where plain learns, less 1",
              mean(learnt(CENTERING) / learnt(NONE) - 1, "pairs of seeds"), DEGRADED)), ("remedies/runs.csv",),
        needs="Muon; the edge of each, since one rate does not tell who only fails at a higher one; more seeds of hard centering",
        note="A gate starts at a half, so the branch is half as large: a smaller branch alone bears a higher rate.",
    )  # fmt: skip


def _untested() -> list[Claim]:
    return [
        Claim("The leak and the learned gate on the mean matter", "The mean is moved by alpha J (F - X), which forgets; a gain "
              "only adds.", "Eq. 7 to 9", "no ablation",
              needs="protocol `scale`: MV-Split without its leak, with alpha frozen at 0, with the gain on the centered part alone"),
        Claim("Beta must shrink with depth", "At 1000 blocks beta starts at .03, about one over the root of the depth.", "Table 3",
              "one run with each", needs="protocol `scale`: a sweep of beta at one depth, and more than one run of 1000 blocks"),
        Claim("It is no outlier in the data", "The loss rises on all ranks alike, so no sample causes it.", "Fig. 9, Fig. 10",
              "standard deviation over 8 and 16 ranks .005 to .023", needs="per-sample losses around a crash; ours are of one process"),
        Claim("Quality at the paper's scale", "MV-Split samples ImageNet well at 400 and at 1000 blocks.",
              "Table 1, Tables 4 and 5", "FID-50K at 50,000 steps 2.60 and 2.77; GenEval .534",
              needs="protocol `paper`: 8 to 16 H100 for days, and the training data's captions, which are not published"),
    ]  # fmt: skip
