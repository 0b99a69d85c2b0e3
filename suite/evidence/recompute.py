"""What stands in a run's row and follows from its model or its data, and the floor of the scores: worked out once more.

torch, the data and the feature network are imported where they are asked for: the figures share this folder and need
none of them.
"""

from __future__ import annotations

from functools import cache

from suite.isolation.catalogue import Catalogue
from suite.protocol import Protocol, Run
from suite.records.schema import TABLES
from suite.records.store import REAL, RowsByRun, format_value

DIGITS = "digits"  # the data set and the features that come with the suite; what lies elsewhere is not looked for
SIZES = ("width", "heads", "ffn", "patch", "caption_tokens", "gated")  # of a protocol, on which a model's parameters depend
KINDS = {column.name: column.type for column in TABLES["quality"].columns}
FLOOR_RTOL, FLOOR_ATOL = 1e-3, 1e-5  # of the real row's scores: another processor's matrix square root differs by 1e-5


def model_cells(run: Run, catalogue: Catalogue) -> dict[str, str]:
    """The columns that follow from the model and the data, as text; none where the data are not the suite's own."""
    if run.data != DIGITS:
        return {}
    data, p = _digits(), run.protocol
    network = Protocol("", 0, "", **{name: getattr(p, name) for name in SIZES})  # protocols share theirs, and a deep one takes a second
    sizes = _sizes(catalogue, network, run.scheme, run.arm, run.params, run.depth, data.shape)
    constant = format_value(_constant(p.patch), "number")
    return {name: str(size) for name, size in sizes.items()} | {"data_digest": data.digest, "constant_loss": constant}


def real_row_problems(rows: list[dict[str, str]], parts: RowsByRun) -> list[str]:
    """The row of real against real samples in quality.csv, which belongs to no run: measured again where all runs are
    of the digits."""
    done = [row for row in rows if row["status"] == "done"]
    real = parts.of_all("quality").get(REAL) if done else None
    if not real:
        return []
    where, cells = f"{parts.folder.name}/quality.csv: the real row", real[0]
    used = {line["features_digest"] for row in done for line in parts.rows("quality", row) if line["fid"]}
    if used and cells["features_digest"] not in used:
        return [f"{where}: features_digest is {cells['features_digest'] or 'empty'}, no score of a run has that"]
    if {row["data"] for row in done} != {DIGITS} or not cells["fid_n"]:
        return [] if cells["fid_n"] else [f"{where}: fid_n is empty"]
    right = _floor(int(cells["fid_n"]), cells["features_digest"])
    return [f"{where}: {name} is {cells[name] or 'empty'}, the data give {text or 'none'}"
            for name, text in right.items() if not _near(cells[name], text, name)]


@cache
def _constant(patch: int) -> float:
    return _digits().constant_loss(patch)


@cache
def _digits():
    from suite.data.load import load

    return load(DIGITS)


@cache
def _sizes(
    catalogue: Catalogue, p: Protocol, scheme: str, arm: str, params: str, depth: int, shape: tuple[int, int, int]
) -> dict[str, int]:
    return catalogue.call(catalogue.get(scheme, arm), _model, p, scheme, arm, params, depth, shape)


def _model(p: Protocol, scheme: str, arm: str, params: str, depth: int, shape: tuple[int, int, int]) -> dict[str, int]:
    import torch

    from suite.training.state import build_model

    run = Run(p, scheme, arm, params, "", depth, 0.0, 0, "", "", "", False)  # of these settings alone
    with torch.device("meta"):
        dit = build_model(run, shape)
    return {"image_tokens": dit.segments[0], "n_params": sum(parameter.numel() for parameter in dit.parameters())}


@cache
def _floor(n: int, features_digest: str) -> dict[str, str]:
    """The cells of the real row; none where the features are not those that come with the suite."""
    floor = _digits().floor(DIGITS, n)
    if floor["features_digest"] != features_digest:
        return {}
    return {name: format_value(floor.get(name), kind) for name, kind in KINDS.items() if name != "run_id"}


def _near(cell: str, right: str, name: str) -> bool:
    if KINDS[name] != "number" or not cell or not right:
        return cell == right
    a, b = float(cell), float(right)
    return abs(a - b) <= FLOOR_ATOL + FLOOR_RTOL * abs(b)
