"""Do the committed tables still say what they said? All that follows from the tables, worked out again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from suite.evidence.recompute import model_cells, real_row_problems
from suite.isolation.catalogue import Catalogue, read
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.records import byrun
from suite.records.checks import check_folder
from suite.records.completeness import LATENTS, check_parts, is_picture
from suite.records.store import RowsByRun, Store, TableError, format_value, picture_path
from suite.verdict import outcome
from suite.verdict.outcome import DEAD
from suite.verdict.signature import of_audit

if TYPE_CHECKING:
    from pandas import DataFrame

NEEDED = ("window", "horizon", "constant_loss", "width", "batch", "depth", "lr", "max_grad_norm", "last_step")
JUDGED = ("outcome", "crash_step", "confirmed", "late_step", "last_step", "best_loss", "final_loss", "max_grad_norm", "spikes")


def folders(results: Path) -> list[Path]:
    """The folders of protocols that have runs."""
    return sorted(path.parent for path in results.glob("*/runs.csv"))


def is_older(row: dict[str, str]) -> bool:
    """Whether a row was made under a version that its protocol has left behind: no code of today makes its run id."""
    protocol = PROTOCOLS.get(row["protocol"])
    return protocol is not None and row["protocol_version"].isdigit() and int(row["protocol_version"]) < protocol.version


def run_of(row: dict[str, str], catalogue: Catalogue) -> Run:
    """The run of a row of runs.csv, as today's code would make it; ValueError where it no longer can."""
    return byrun.run_of(row, catalogue.code_digest(catalogue.get(row["scheme"], row["arm"]), row["params"]))


def verify(results: Path, catalogue: Catalogue | None = None) -> tuple[int, list[str]]:
    """(rows checked, problems): schema, digests, run ids, verdicts and aggregates of every protocol.

    Of runs of an older protocol version ids and settings cannot be recomputed; all that rests on their rows alone is.
    """
    problems, checked, catalogue = [], 0, catalogue or read()
    for folder in folders(results):
        with Store(folder).still():
            parts = RowsByRun(folder)
            problems += check_folder(folder, parts) + check_parts(folder, parts)
            try:
                rows = Store(folder).runs()
            except TableError:
                continue  # said by check_folder
            pictures_of = {picture_path(folder, row["scheme"], row["depth"], row["run_id"]) for row in rows}
            extra = sorted(set((folder / "samples").glob("*.png")) - pictures_of)
            problems += [f"{path}: belongs to no run; remove it" for path in extra]
            for row in rows:
                checked += 1
                problems += [f"{folder.name}/runs.csv: run {row['run_id']}: {what}" for what in _row_problems(row, parts, catalogue)]
            with suppress(TableError):  # said by check_folder
                problems += real_row_problems(rows, parts)
    return checked, problems


def _row_problems(row: dict[str, str], parts: RowsByRun, catalogue: Catalogue) -> list[str]:
    """What is wrong with a run, in words; also where a cell is so wrong that nothing can be worked out."""
    try:
        return _run_problems(row, parts, catalogue)
    except TableError:
        return []  # said by check_folder
    except ValueError as error:
        return [str(error)]


def _run_problems(row: dict[str, str], parts: RowsByRun, catalogue: Catalogue) -> list[str]:
    run = None if is_older(row) else run_of(row, catalogue)
    protocol = run.protocol if run else PROTOCOLS[row["protocol"]]
    if row["status"] != "done" and not row["code_digest"]:
        return []  # a run that broke may have none
    if run is not None and run.code_digest != row["code_digest"]:
        return [f"the code of scheme {row['scheme']} has changed since (digest {row['code_digest'] or 'gone'}, now {run.code_digest})"]
    if row["status"] != "done":
        return []
    if empty := [name for name in NEEDED if not row[name]]:
        return [f"{', '.join(empty)}: empty"]
    found = [] if run is None or run.run_id == row["run_id"] else [f"its settings give the run id {run.run_id}"]
    if run is not None and run.trajectory != row["trajectory"]:
        found.append(f"trajectory is {row['trajectory'] or 'empty'}, its settings give {run.trajectory}")
    curve, evals = parts.frame("curves", row), parts.rows("evals", row)
    if not len(curve):
        return [*found, "has no curve"]
    held = _heldout(row, evals)
    if row["heldout_loss"] != held:
        found.append(f"heldout_loss is {row['heldout_loss'] or 'empty'}, evals.csv says at the horizon {held or 'nothing'}")
    again = judged(row, curve, evals, protocol.warmup)
    differ = [name for name in JUDGED if not _same(row[name], again[name])]
    found += [f"{name} is {row[name] or 'empty'}, its curve gives {again[name]}" for name in differ]
    settings = _settings(run, catalogue) if run else {}
    found += [f"{name} is {row[name] or 'empty'}, its protocol says {cell}" for name, cell in settings.items() if row[name] != cell]
    if (row["outcome"] in DEAD) != bool(row["crash_step"]):
        return found  # said by JUDGED; without its step the audit cannot be asked
    if protocol.audit_every and row["mms_signature"] != (sign := _signature(row, parts.frame("audit", row))):
        found.append(f"mms_signature is {row['mms_signature'] or 'empty'}, its audit gives {sign or 'nothing'}")
    picture = picture_path(parts.folder, row["scheme"], row["depth"], row["run_id"])
    there = picture.is_symlink() or picture.exists()
    may_lack = row["data"].startswith(LATENTS)  # which nothing may decode; one that was lost differs from its digest
    if protocol.fid_samples and (there or not may_lack) and (picture.is_symlink() or not is_picture(picture)):
        found.append(f"{picture.name}: is no picture of its own")
    return found


def _settings(run: Run, catalogue: Catalogue) -> dict[str, str]:
    """The columns that follow from the protocol and the model, as text."""
    p = run.protocol
    values = {"horizon": p.horizon, "window": p.window, "width": p.width, "batch": p.batch, "init": p.init}
    if not run.data.startswith(LATENTS):  # captions that come with latents have a length of their own
        values["caption_tokens"] = p.caption_tokens
    return {name: str(value) for name, value in values.items()} | {"dtype": p.dtype, "lr": f"{run.lr:.6g}"} | model_cells(run, catalogue)


def _signature(row: dict[str, str], audit: DataFrame) -> str:
    """The cell `mms_signature` that the audit around the crash gives."""
    if row["outcome"] not in DEAD or row["reason"]:
        return ""
    columns = ["window", "site", "segment", "layer", "step", "g_mean", "q_grad", "k_grad"]
    rows = audit.loc[audit["window"] & (audit["site"] == "attn") & (audit["segment"] == "all"), columns].to_dict("records")
    found = of_audit(rows, int(row["crash_step"]), deep_from=int(row["depth"]) // 2)
    return format_value(found, "boolean")


def _heldout(row: dict[str, str], evals: list[dict[str, str]]) -> str:
    """The held-out loss at the horizon, or the last before it, as evals.csv has it; "" where it has none."""
    return next((line["heldout_loss"] for line in reversed(evals) if int(line["step"]) <= int(row["horizon"])), "")


def judged(row: dict[str, str], curve: DataFrame, evals: list[dict[str, str]], warmup: int) -> dict[str, object]:
    """The columns of runs.csv that follow from the committed curve and held-out losses (six digits of them)."""
    held = _heldout(row, evals)
    steps, loss, norm = (curve[name].to_numpy() for name in ("step", "loss", "grad_norm"))
    verdict = outcome.judge(
        steps, loss, constant_loss=float(row["constant_loss"]), window=int(row["window"]), horizon=int(row["horizon"]),
        grad_norm=norm, warmup=warmup, heldout_loss=float(held) if held else None,
    )  # fmt: skip
    bad = norm[~np.isfinite(norm)]
    return {
        "outcome": verdict.outcome, "crash_step": verdict.crash_step,
        "confirmed": None if verdict.crash_step is None else verdict.confirmed, "late_step": verdict.late_step,
        "last_step": int(steps[-1]),
        "best_loss": verdict.best_loss, "final_loss": verdict.final_loss, "max_grad_norm": float(bad[0] if len(bad) else norm.max()),
        "spikes": verdict.spikes,
    }  # fmt: skip


def _same(cell: str, value: object) -> bool:
    if value is None or isinstance(value, bool):
        return cell == format_value(value, "boolean")
    if isinstance(value, str):
        return cell == value
    if not cell:
        return False
    a, b = float(cell), float(value)
    return a == b or a != a and b != b or abs(a - b) <= 2e-5 * max(abs(a), abs(b))
