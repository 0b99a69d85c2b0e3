"""`python -m suite` with protocol `paper` cut to what a test can train: width, depth, batch and length; the rest is Table 3's."""

from dataclasses import replace

from suite.presets import PROTOCOLS

CUT = {"width": 32, "ffn": 96, "batch": 8, "depths": (4,), "horizon": 40, "window": 6, "heldout_every": 10, "checkpoint_every": 5}
PAPER = replace(PROTOCOLS["paper"], **CUT, fid_samples=0, quality_at=())

if __name__ == "__main__":
    PROTOCOLS["paper"] = PAPER
    from suite.__main__ import program

    program()
