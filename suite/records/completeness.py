"""What a finished run must have left in the tables, by its protocol.

Not judged: `spikes.csv` and `gates.csv`, since a run may have had none, and `throughput.csv`, which says nothing of
the run itself.
"""

from __future__ import annotations

import math
from pathlib import Path

from suite.presets import PROTOCOLS
from suite.records.store import REAL, RUNS, RowsByRun, Store, picture_path
from suite.records.tableerror import TableError
from suite.verdict.outcome import DEAD, GONE

PNG = b"\x89PNG\r\n\x1a\n"
LATENTS = "latents:"  # how a source begins whose images are gone: no real row, and a picture only where something decodes them


def undone(store: Store, done: set[str]) -> dict[str, str]:
    """Run id -> what became of it, in words, for each finished run of runs.csv that is not among the done any more."""
    parts = RowsByRun(store.folder)
    return {row["run_id"]: _why(row, parts) for row in store.runs() if row["status"] == "done" and row["run_id"] not in done}


def _why(row: dict[str, str], parts: RowsByRun) -> str:
    try:
        gone = lacks(row, parts)
    except TableError:
        gone = ["a file that can be read"]
    return f"lacks {', '.join(gone)}" if gone else "differs from its digest"


def check_parts(folder: Path, parts: RowsByRun | None = None) -> list[str]:
    """One line for every finished run that lacks a part; tables that cannot be read are `check_folder`'s to name."""
    parts, out = parts or RowsByRun(folder), []
    try:
        rows = Store(folder).runs()
    except TableError:
        return []
    for row in rows:
        try:
            words = lacks(row, parts) if row["status"] == "done" else []
        except TableError:
            continue
        if words:
            out.append(f"{Path(folder) / RUNS.path}: run {row['run_id']} lacks {', '.join(words)}; restore it or run it again")
    return out


def lacks(row: dict[str, str], parts: RowsByRun) -> list[str]:
    """What a finished run's row, its curve and its protocol promise and the folder does not hold, in words."""
    p, curve = PROTOCOLS.get(row["protocol"]), parts.frame("curves", row)
    if p is None or str(p.version) != row["protocol_version"] or not len(curve):
        return []  # a curve that is gone is said by its digest
    p = p.at(int(row["depth"]), float(row["lr"]))
    last = curve.iloc[-1]
    whole = math.isfinite(last["loss"]) and math.isfinite(last["grad_norm"])
    last = int(last["step"])
    updates = last if whole else last - 1  # the update of a step that is not finite was withheld
    found = []
    audit = parts.frame("audit", row)
    there = {name: {int(line["step"] or -1) for line in parts.rows(name, row)} for name in ("evals", "quality")}
    there["audit"] = set(audit["step"])
    due = {
        "evals": {*range(p.heldout_every, updates + 1, p.heldout_every), *(step for step in (p.horizon, p.length) if step <= updates)},
        "quality": {updates, *(step for step in p.quality_at if step <= updates)} if p.fid_samples else set(),
        "audit": {1, *range(p.audit_every, last + 1, p.audit_every)} if p.audit_every else set(),
    }
    for name, steps in due.items():
        if gone := steps - there[name]:
            found.append(f"{name} of step{'s' * (len(gone) > 1)} {', '.join(map(str, sorted(gone)[:3]))}{', ...' * (len(gone) > 3)}")
    if p.fid_samples and not row["data"].startswith(LATENTS):
        if any(line["fid"] for line in parts.rows("quality", row)) and REAL not in parts.of_all("quality"):
            found.append("the real row of quality")
        picture = picture_path(parts.folder, row["scheme"], row["depth"], row["run_id"])
        if not is_picture(picture):
            found.append(picture.relative_to(parts.folder).as_posix())
    if p.audit_every and row["outcome"] in DEAD and not row["reason"] and not audit["window"].any():
        found.append("audit around the crash")
    if p.probe and row["outcome"] not in GONE and not parts.rows("probe", row):
        found.append("probe")
    return found


def is_picture(path: Path) -> bool:
    """Whether a file is a whole PNG, by its first and last bytes and its chunks' lengths; nothing is decoded."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    at = len(PNG)
    while data.startswith(PNG) and at + 12 <= len(data):
        kind, length = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4], "big")
        at += length + 12
        if kind == b"IEND":
            return at == len(data)
    return False
