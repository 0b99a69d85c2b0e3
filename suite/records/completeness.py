"""What a finished run must have left in the tables, by its protocol: a run that lacks a part of it is not done.

Not judged: `spikes.csv`, since a run may have had none, and `throughput.csv`, which says nothing of the run itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

from suite.protocol import PROTOCOLS, Protocol
from suite.records.tables import REAL, TABLES, Store, TableError, picture_path, rows_of, table_path

PNG = b"\x89PNG\r\n\x1a\n"
LATENTS = "latents:"  # how a source begins whose images are gone: no real row, and a picture only where something decodes them
REPLAYED = ("collapsed", "degraded", "nonfinite")  # outcomes whose crash an audited run goes over at every step


def done_ids(store: Store) -> set[str]:
    """Runs that ended as planned and of which every part is there; the others are to be trained."""
    return store.done_ids() - set(lacking(store))


def lacking(store: Store) -> dict[str, str]:
    """Run id -> what its row, its curve and its protocol promise and the folder does not hold, in words."""
    parts = Parts(store.folder)
    found = {row["run_id"]: _lacks(row, parts) for row in store.runs() if row["status"] == "done"}
    return {run_id: ", ".join(words) for run_id, words in found.items() if words}


def check_parts(folder: Path) -> list[str]:
    """One line for every finished run that lacks a part; tables that cannot be read are `check_folder`'s to name."""
    path = Path(folder) / TABLES["runs"].path
    try:
        return [f"{path}: run {run_id} lacks {words}; restore it or run it again" for run_id, words in lacking(Store(folder)).items()]
    except TableError:
        return []


class Parts:
    """Rows by run of the tables of a folder, each file read once and only when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, {}

    def rows(self, name: str, row: dict[str, str]) -> list[dict[str, str]]:
        """The rows of a run in a table."""
        return self.of_all(name, row)[row["run_id"]]

    def of_all(self, name: str, row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
        path = table_path(self.folder, TABLES[name], row["scheme"], row["depth"])
        if path not in self.files:
            self.files[path] = defaultdict(list)
            for line in rows_of(self.folder, TABLES[name], row["scheme"], row["depth"]):
                self.files[path][line["run_id"]].append(line)
        return self.files[path]


def _lacks(row: dict[str, str], parts: Parts) -> list[str]:
    p, curve = PROTOCOLS.get(row["protocol"]), parts.rows("curves", row)
    if p is None or str(p.version) != row["protocol_version"] or not curve:
        return []  # a curve that is gone is said by its digest
    p = p.at(int(row["depth"]), float(row["lr"]))
    last = int(curve[-1]["step"])
    whole = all(math.isfinite(float(curve[-1][name] or "nan")) for name in ("loss", "grad_norm"))
    updates = last if whole else last - 1  # the update of a step that is not finite was withheld
    lacks = []
    for name, steps in (("evals", _evals(p, updates)), ("quality", _scored(p, updates)), ("audit", _audited(p, last))):
        if steps and (gone := steps - {int(line["step"] or -1) for line in parts.rows(name, row)}):
            lacks.append(f"{name} of step{'s' * (len(gone) > 1)} {', '.join(map(str, sorted(gone)[:3]))}{', ...' * (len(gone) > 3)}")
    if p.fid_samples and not row["data"].startswith(LATENTS):
        if any(line["fid"] for line in parts.rows("quality", row)) and not parts.of_all("quality", row)[REAL]:
            lacks.append("the real row of quality")
        picture = picture_path(parts.folder, row["scheme"], row["depth"], row["run_id"])
        if not is_picture(picture):
            lacks.append(picture.relative_to(parts.folder).as_posix())
    if p.audit_every and row["outcome"] in REPLAYED and not row["reason"]:
        if not any(line["window"] == "true" for line in parts.rows("audit", row)):
            lacks.append("audit around the crash")
    if p.probe and not row["crash_step"] and not parts.rows("probe", row):
        lacks.append("probe")
    return lacks


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


def _evals(p: Protocol, updates: int) -> set[int]:
    return set(range(p.heldout_every, updates + 1, p.heldout_every)) | {step for step in (p.horizon, p.length) if step <= updates}


def _scored(p: Protocol, updates: int) -> set[int]:
    return {updates} | {step for step in p.quality_at if step <= updates} if p.fid_samples else set()


def _audited(p: Protocol, last: int) -> set[int]:
    return {1, *range(p.audit_every, last + 1, p.audit_every)} if p.audit_every else set()
