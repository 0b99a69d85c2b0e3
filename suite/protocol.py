"""Protocols and runs: what is fixed, what is swept, and the identity of a run. Standard library only."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace

SCHEMES = ("plain", "layerscale", "rezero", "deepnorm", "mvsplit")  # the five the project began with
NO_PARAMS = "-"  # in the column `params`: readers take an empty cell for a missing value, and pandas' groupby drops those

MEASURED = (  # settings by which two runs of the same numbers may differ: how far they go, and what is looked at on the way
    "name", "version", "horizon", "window", "after_crash", "heldout_every", "checkpoint_every", "audit_every", "audit_layers", "audit_full",
    "probe", "quality_at", "fid_samples", "nfe", "guidance",
)  # fmt: skip

COLDEST, STEP = 1e-3, 1.15  # of the lattice of learning rates: 1e-3 x 1.15^k
HOTTEST = 6e-2  # beyond it nothing is asked: LayerScale and ReZero were seen to live at 1.8e-2


def short_hash(letter: str, data: bytes, length: int) -> str:
    """A letter and the first hex digits of the SHA-256 of data, `length` characters in all.

    Without the letter one in a hundred reads as a number: 513216857062 as an integer, 27e897249259 as infinity.
    """
    return letter + hashlib.sha256(data).hexdigest()[: length - 1]


def evenly(items, most: int) -> list:
    """At most `most` of some items in order, evenly, the first and the last among them: anchor layers are chosen so."""
    items, n = sorted(items), min(len(items), most)
    return [items[i] for i in sorted({round(k * (len(items) - 1) / max(1, n - 1)) for k in range(n)})]


def rate(k: int) -> float:
    """The k-th rate of the lattice, to three digits, as the tables and `--lrs` write it."""
    return float(f"{COLDEST * STEP**k:.3g}")


FIRST = -10  # of the lattice: 2.47e-4, a quarter of the coldest rate at which a cell of results/frontier was seen to learn best
LAST = max(k for k in range(100) if rate(k) <= HOTTEST)
KNOWN = {rate(k): k for k in range(FIRST, LAST + 1)}


def later(default: object, old: object):
    """A dataclass field that came after runs had been made, and the value at which all is as it was before: run ids leave it out there."""
    return field(default=default, metadata={"old": old})


def _counted(thing) -> dict[str, object]:
    """The fields of a dataclass that say something: not those of `later` at their old value."""
    values = {f.name: (getattr(thing, f.name), f.metadata) for f in fields(thing)}
    return {name: value for name, (value, metadata) in values.items() if "old" not in metadata or value != metadata["old"]}


@dataclass(frozen=True)
class Cell:
    """One scheme of a protocol's plan. params as the registry parses them; writers "" = the scheme's legal default.

    gate_lr, control: as in `Run`. depths, lrs, seeds: its own; () = the protocol's.
    """

    scheme: str
    arm: str = "controlled"
    params: str = ""
    writers: str = ""
    gate_lr: float = 1.0
    control: str = ""
    depths: tuple[int, ...] = ()
    lrs: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """Everything that a run does not vary. Change a number and the version must go up; the run id hashes both."""

    name: str
    version: int
    purpose: str
    # model
    width: int = 32  # our CPU scale; Table 3 has 1024
    heads: int = 2  # head dimension 16; Table 3 has 8 heads of 128
    ffn: int = 96  # 3 x width, as Table 3's 3072
    patch: int = 2  # 16 tokens from 8 x 8 digits; the paper has 256 image tokens
    caption_tokens: int = 4  # not stated in the paper
    init: str = "0.02"  # std of every weight, Table 3 and App. B; "fan_in": 0.64/sqrt(fan_in), which is 0.02 at the paper's width
    final: str = "zero"  # output projection; App. B names N(0, 0.02^2) as its change, so zero elsewhere (inferred)
    mixing: str = later("A", old="A")  # what multiplies attention's values: backbone.MIXING
    gated: str = later("", old="")  # attention's output: backbone.GATED
    # optimisation, Table 3
    batch: int = 16  # Table 3 has 1024
    warmup: int = 50  # Table 3 has 1000; its shape is not stated, ours is linear
    beta1: float = 0.9  # Table 3
    beta2: float = 0.999  # Table 3
    adam_eps: float = 1e-8  # Table 3
    weight_decay: float = 0.1  # Table 3, on 2-D weights only
    clip: float = 1.0  # Table 3, global norm
    caption_drop: float = 0.1  # not stated in the paper; the usual value for guidance
    # length
    horizon: int = 400  # steps in which events count
    window: int = 50  # confirmation window of a crash, steps
    after_crash: int = 0  # steps to go on after a confirmed crash
    # measurement
    heldout_every: int = 50
    checkpoint_every: int = 50
    audit_every: int = 0  # steps between audit passes, 0 = none
    audit_layers: int = 12  # anchor layers at most
    audit_full: tuple[str, ...] = ()  # schemes audited at full depth (first seed)
    probe: bool = False  # ridge probe of t from token statistics at the end
    quality_at: tuple[int, ...] = ()  # further steps at which quality is measured
    fid_samples: int = 0  # 0 = no quality at all
    nfe: int = 25  # Table 1: Euler, 25 function evaluations
    guidance: float = 2.0  # Table 1
    # machine
    compiled: bool = True
    dtype: str = "fp32"  # not stated in the paper
    checkpoint_blocks: bool = False  # recompute activations in backward, by segments of about sqrt(depth) blocks
    group_blocks: int = 12_000  # blocks that a GPU trains as one model: of the probe on an H100, 120 runs of 100 blocks
    # plan
    cells: tuple[Cell, ...] = field(default=tuple(Cell(s) for s in SCHEMES))
    depths: tuple[int, ...] = (25, 50, 100)
    lrs: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    unscored: tuple[float, ...] = ()  # rates whose runs get no samples and no FID
    at_depth: tuple[tuple[int, str, int], ...] = ()  # (depth, setting, value) where a depth has another than the rest
    data: str = "digits"
    search: bool = False  # rates and seeds are looked for, round by round, until each cell's edge is known (suite/sweep/search.py)

    @property
    def length(self) -> int:
        """Steps of a run that nothing ends early: beyond the horizon, so that a crash just before it can be confirmed."""
        return self.horizon + self.window

    def at(self, depth: int, lr: float) -> Protocol:
        """This protocol for the runs of one depth and learning rate."""
        own = {name: value for at, name, value in self.at_depth if at == depth}
        return replace(self, **{"fid_samples": 0} if lr in self.unscored else {}, **own)

    def settings(self) -> dict[str, object]:
        """What goes into run ids: all but the plan and the prose."""
        plan = ("purpose", "group_blocks", "cells", "depths", "lrs", "seeds", "data", "search", "unscored", "at_depth")
        return {k: v for k, v in _counted(self).items() if k not in plan}

    def training(self) -> dict[str, object]:
        """The settings that change the numbers of a step."""
        return {k: v for k, v in self.settings().items() if k not in MEASURED}


@dataclass(frozen=True)
class Run:
    """One training run, fully resolved; a pure function of `run_id`."""

    protocol: Protocol
    scheme: str
    arm: str
    params: str  # canonical, every parameter of the scheme; NO_PARAMS where it has none
    writers: str
    depth: int
    lr: float
    seed: int
    data: str
    data_digest: str
    code_digest: str
    compiled: bool
    gate_lr: float = later(1.0, old=1.0)  # times the learning rate for the parameters that a scheme owns; 0 = they stay as they start
    control: str = later("", old="")  # the name of what its protocol was changed by (suite/controls.py); "" = nothing

    @property
    def run_id(self) -> str:
        """r and 11 hex digits over everything that changes the numbers: never paths, devices, workers or log cadence.

        The code's digest covers the scheme's parameters.
        """
        return self._hash("r", self.protocol.settings())

    @property
    def trajectory(self) -> str:
        """t and 11 hex digits over the same without length and measurement: runs that share it train alike as far as both go."""
        return self._hash("t", self.protocol.training())

    def _hash(self, letter: str, settings: dict[str, object]) -> str:
        identity = {name: value for name, value in _counted(self).items() if name not in ("protocol", "data", "params")}
        identity["protocol"] = settings | {"compiled": self.compiled}
        return short_hash(letter, json.dumps(identity, sort_keys=True).encode(), 12)

    def label(self) -> str:
        """Short human name for progress lines and messages."""
        params = "" if self.params == NO_PARAMS else f"({self.params})"
        arm = "" if self.arm == "controlled" else f" {self.arm}"
        gates = "" if self.gate_lr == 1 else f" gate_lr {self.gate_lr:g}"
        control = f" {self.control}" if self.control else ""
        return f"{self.scheme}{params}{arm} {self.writers}-writers{gates}{control} L{self.depth} lr {self.lr:g} seed {self.seed}"

    def to_json(self) -> str:
        return json.dumps({f.name: getattr(self, f.name) for f in fields(self)} | {"protocol": asdict(self.protocol)})

    @staticmethod
    def from_json(text: str) -> Run:
        raw = json.loads(text)
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in raw["protocol"].items()}
        tuples["cells"] = tuple(Cell(**{k: tuple(v) if isinstance(v, list) else v for k, v in c.items()}) for c in tuples["cells"])
        tuples["at_depth"] = tuple(map(tuple, tuples["at_depth"]))
        return Run(**raw | {"protocol": Protocol(**tuples)})
