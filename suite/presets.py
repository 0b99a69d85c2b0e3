"""The protocols that the suite comes with: data only. What their fields mean is in suite/protocol.py, why a value was chosen beside it."""

from __future__ import annotations

from dataclasses import replace

from suite.controls import CONTROLS
from suite.protocol import Cell, Protocol

NEWCOMERS = (  # most asked for first
    "prenorm", "prenorm_scaled", "completep", "peri_ln", "keel", "lns", "ihc", "mhc", "siamese", "attn_residuals", "deepscalelm",
    "subln", "skipinit", "admin", "adaln", "lambdas",
)  # fmt: skip
PLAIN_DIES, PLAIN_LEARNS = 7.08e-3, 2.01e-3  # at 100 blocks, results/frontier: eight of eight, none
MVSPLIT_DIES = 9.36e-3  # there: eight of eight
HARD = "alpha=1,beta=1,learn=none,mean=branch,trunk=centered,over=segment"  # of `split`: P X + F, the paper's hard centering (App. F)
CENTERED = "learn=none,mean=none"  # of `split`: X + beta P F, beta fixed


def _four(s: str) -> list[Cell]:
    """A fixed gain, the same centered, MV-Split and LayerScale, all at one scale; but those that `frontier` has, of the same settings."""
    cells = [Cell("gain", params=f"g={s}"), Cell("split", params=f"beta={s},{CENTERED}"), Cell("mvsplit", params=f"beta={s}"),
             Cell("layerscale", params=f"init={s}")]  # fmt: skip
    return [cell for cell in cells if cell.params not in ("g=1", "beta=1", "init=0.01")]


def _scale() -> list[Cell]:
    """The cells of `scale`, the most telling first."""
    cells = [cell for s in ("0.1", "0.01", "0.3", "0.03", "1") for cell in _four(s)]
    for s in ("1", "0.03"):
        parts = ("mean=branch", "learn=alpha", "learn=beta,mean=none", "trunk=centered,mean=branch", "over=all", "mean=leak")
        cells += [Cell("split", params=f"beta={s},{part}") for part in parts]
    cells += [Cell("featscale"), Cell("desimilar"), Cell("rezero_start", params="start=0.03")]
    cells += [Cell("gain", params="g=0.03", writers="std"), Cell("layerscale", params="init=0.03", writers="std"),
              Cell("mvsplit", params="beta=0.03", writers="std"), Cell("mvsplit", params="beta=1", writers="std")]  # fmt: skip
    return cells + [replace(cell, depths=(50,)) for s in ("0.1", "0.01", "1") for cell in _four(s)]


def _remedies() -> list[Cell]:
    """Plain under each control, and with hard centering (P X + F), where it dies and learns; MV-Split where it dies."""
    centered = Cell("split", params=HARD)
    plain = [*(Cell("plain", control=control) for control in ("", *CONTROLS)), centered]
    mvsplit = [Cell("mvsplit", control=control) for control in ("", *CONTROLS)]
    at = ((plain, PLAIN_DIES, 8), (plain, PLAIN_LEARNS, 2), (mvsplit, MVSPLIT_DIES, 4))
    return [replace(cell, lrs=(lr,), seeds=tuple(range(n))) for cells, lr, n in at for cell in cells]


def _presets() -> dict[str, Protocol]:
    laptop = Protocol(
        "laptop",
        3,
        "the five schemes at a cool learning rate, where all live, and a hot one: who dies, in minutes",
        lrs=(4.05e-3, 9.36e-3),  # cool and hot, by the rule in suite/evidence/decided.py from results/frontier
        unscored=(9.36e-3,),
        fid_samples=256,
    )
    anatomy = Protocol(
        "anatomy",
        4,
        "plain and MV-Split below their edges for 3,000 steps: how often healthy runs die, and how, with the audit",
        horizon=3000,
        after_crash=500,
        audit_every=100,
        audit_full=("plain", "mvsplit"),
        quality_at=(1000, 2000, 3000),
        fid_samples=256,
        probe=True,
        depths=(100,),
        lrs=(5.35e-3,),
        unscored=(4.65e-3, 6.15e-3, 7.08e-3, 8.14e-3, 9.36e-3),  # FID where plain and MV-Split meet
        seeds=tuple(range(8)),
        cells=(  # rates: the two of the lattice below each edge, by the rule in suite/evidence/hazard.py
            Cell("plain", lrs=(5.35e-3, 4.65e-3)),
            Cell("mvsplit", lrs=(6.15e-3, 5.35e-3)),
            Cell("plain", depths=(50,), lrs=(7.08e-3, 6.15e-3)),
            Cell("mvsplit", depths=(50,), lrs=(9.36e-3, 8.14e-3)),
            Cell("mvsplit", params="sites=attn", seeds=(0, 1, 2)),
        ),
    )
    return {
        p.name: p
        for p in (
            Protocol(
                "smoke", 3, "tests: a few eager steps of everything", horizon=8, window=6, warmup=4, heldout_every=4,
                checkpoint_every=4, fid_samples=64, nfe=2, compiled=False, depths=(2, 3), lrs=(1e-3,), batch=8,
            ),
            laptop,
            replace(
                laptop, name="frontier", purpose="the five schemes on a lattice of learning rates: where half of the runs die",
                search=True, fid_samples=0, lrs=(), unscored=(), seeds=(),
            ),
            replace(
                laptop, name="frontier64", purpose="plain and MV-Split with 64 image tokens: their edges", patch=1, depths=(50,),
                search=True, fid_samples=0, lrs=(), unscored=(), seeds=(), cells=(Cell("plain"), Cell("mvsplit")),
            ),
            replace(
                laptop, name="scale", purpose="plain, fixed and learned gains, with and without the split, at equal scales of the branch",
                search=True, fid_samples=0, lrs=(), unscored=(), seeds=(), depths=(100,), cells=tuple(_scale()),
            ),
            replace(
                laptop, name="controls", purpose="schemes that practitioners use today: where each learns best, and its edge",
                search=True, fid_samples=0, lrs=(), unscored=(), seeds=(), depths=(100,), cells=tuple(map(Cell, NEWCOMERS)),
            ),
            replace(
                laptop, name="remedies", version=1, fid_samples=0,
                purpose="remedies that are no schemes: plain and MV-Split where they die, plain where it learns",
                depths=(100,), lrs=(), unscored=(), seeds=(),
                cells=tuple(_remedies()),
            ),
            anatomy,
            replace(
                anatomy, name="anatomy64", purpose="the same with 64 image tokens, which leave more room for amplification",
                patch=1, quality_at=(), probe=False, fid_samples=0, audit_full=(), audit_layers=8, depths=(50,), unscored=(),
                lrs=(6.15e-3,), seeds=(0, 1),  # rates by the same rule, from frontier64
                cells=(Cell("plain", lrs=(6.15e-3, 5.35e-3)), Cell("mvsplit", lrs=(7.08e-3, 6.15e-3))),
            ),
            replace(
                laptop, name="autopsy", version=1, purpose="plain, MV-Split and parts of it, dead for 500 steps and alive: what they use",
                horizon=750, after_crash=500, heldout_every=400, fid_samples=0, unscored=(), depths=(50,), lrs=(), cells=(
                    # hot: seeds that died in results/frontier by step 250, and more where MV-Split dies first; cool: where each learns best
                    Cell("plain", lrs=(9.36e-3,), seeds=tuple(range(8))), Cell("plain", lrs=(2.01e-3,), seeds=(0, 1)),
                    Cell("mvsplit", lrs=(1.08e-2,), seeds=(0, 1, 4, 6)), Cell("mvsplit", lrs=(1.24e-2,), seeds=(3, 6, 7)),
                    Cell("mvsplit", lrs=(1.64e-2,), seeds=tuple(range(8))), Cell("mvsplit", lrs=(2.66e-3,), seeds=(0, 1)),
                    # a tenth of that scale, learned and fixed: at 100 blocks all of either die at this rate
                    Cell("mvsplit", params="beta=0.1", lrs=(2.49e-2,), seeds=tuple(range(4))),
                    Cell("split", params=f"beta=0.1,{CENTERED}", lrs=(2.49e-2,), seeds=tuple(range(4))),
                ),
            ),
            Protocol(
                "deep", 3, "400 and 1000 blocks, the paper's own depths, at a small width", horizon=600, depths=(400,),
                lrs=(1.52e-3, 3.06e-3, 4.05e-3), seeds=(0, 1, 2), at_depth=((1000, "horizon", 300), (1000, "fid_samples", 80)),
                cells=(
                    *(Cell(scheme) for scheme in ("plain", "mvsplit", "layerscale")),
                    *(Cell(scheme, params=params, depths=(1000,), lrs=(3.06e-3,), seeds=(0,))
                      for scheme, params in (("plain", ""), ("mvsplit", "beta=1"), ("layerscale", ""), ("mvsplit", "beta=0.03"))),
                    *(Cell(scheme) for scheme in ("rezero", "deepnorm")),
                ),
            ),
            Protocol(
                "stdinit", 3, "App. B: 128 blocks, standard init, no gates: there collapsed from the start, as a front over depth",
                final="std", horizon=690, after_crash=690, audit_every=10, audit_layers=16, lrs=(1e-3,), depths=(128,),
                cells=(Cell("plain", writers="std"), Cell("mvsplit", writers="std")),
            ),
            Protocol(  # no run of it exists: what is not Table 3's is chosen, not measured
                "quarter", 1, "Table 3's 400 blocks at a quarter of its width, 28 x 28 digits: one H100, a rate in about ten minutes, "
                "in slices that resume; no run of it exists yet",
                width=256, heads=2, ffn=768,  # heads of 128 and an FFN of 3 x width, as Table 3
                batch=64,  # 12,800 tokens of 14 x 14 + 4 fill an H100; Table 3's 1024 would see all 4,174 images in four steps
                horizon=600, heldout_every=100,  # `deep`'s horizon and warm-up, by which its hot runs of 400 blocks had died
                checkpoint_every=200,  # 4 GB each
                fid_samples=512,  # twice the 256 of the CPU protocols: 25,600 forwards of an image, as many as 100 training steps take
                dtype="bf16", checkpoint_blocks=True,  # without it MV-Split's blocks would keep 88 GiB
                group_blocks=0,  # a run alone: it fills the GPU, and a slice of ten minutes is then a few runs, not a part of many
                depths=(400,),
                # The paper's rule (App. G) is 1e-3 / (0.2 sqrt(width)): 3.125e-4 here. `deep` found plain's edge at width 32 to be 3.5
                # times the rule's rate, and a horizon of 600 steps asks for hotter than one of 100,000: so once, twice and four times.
                lrs=(3.125e-4, 6.25e-4, 1.25e-3), data="mnist",
                cells=(Cell("plain"), Cell("mvsplit", params="beta=1"), Cell("layerscale", writers="std")),  # as `paper`
            ),
            Protocol(
                "paper", 4, "Table 3 of arXiv:2605.06169 exactly, for 8 to 16 H100", width=1024, heads=8, ffn=3072,
                patch=1, caption_tokens=256, batch=1024, warmup=1000, horizon=100_000, window=1000, heldout_every=5000,
                checkpoint_every=1000, dtype="bf16", checkpoint_blocks=True, group_blocks=0, depths=(400, 1000), lrs=(1.5625e-4,),
                fid_samples=50_000, quality_at=(10_000, 20_000, 30_000, 40_000, 50_000),  # Table 1
                data="latents:latents",  # 256 tokens are the most a caption may have; the folder says how many its have
                cells=(Cell("plain"), Cell("layerscale", writers="std"), Cell("mvsplit", params="beta=1"),
                       Cell("mvsplit", params="beta=0.03")),
            ),
        )
    }  # fmt: skip


PROTOCOLS = _presets()
