"""What the figures have in common before drawing: the runs to show, their labels, and the facts of a caption."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pandas as pd

from paper_figures.style import OUTCOMES, scheme_order
from suite.evidence.words import called
from suite.presets import PROTOCOLS
from suite.records.store import read
from suite.verdict.outcome import DEAD, GONE

VARIANT = ["arm", "params", "writers", "gate_lr", "control", "data", "compiled"]  # what tells the variants of a scheme apart


def load_runs(folder: Path) -> pd.DataFrame:
    """The runs of the newest protocol version, schemes in the project's order.

    Further columns: `result` (the outcome, or the status of an attempt that had none), `crashed` (it is dead), `gone`
    (or untrained), `label` (the scheme, with what tells its variants apart) and `variant` (its number within the
    scheme; 0 is the main one).
    """
    runs = read(folder, "runs")
    newest = runs["protocol_version"].max()
    older = int((runs["protocol_version"] != newest).sum())
    runs = runs[runs["protocol_version"] == newest].copy()
    runs["gate_lr"] = runs["gate_lr"].fillna(1.0)
    known = runs["compiled"].dropna()  # a run that broke has none
    runs["compiled"] = runs["compiled"].fillna(known.mode()[0] if len(known) else True).astype(bool)
    runs["result"] = runs["outcome"].where(runs["status"] == "done", runs["status"])
    runs["crashed"], runs["gone"] = runs["outcome"].isin(DEAD), runs["outcome"].isin(GONE)
    names = {}
    for scheme, group in runs.groupby("scheme"):
        counts = Counter(group[VARIANT].itertuples(index=False, name=None))
        changed = _changed_params(runs["protocol"].iloc[0], scheme)
        variants = sorted(counts, key=lambda variant: (bool(changed & set(variant[1].split(","))), -counts[variant], variant))
        for number, variant in enumerate(variants):
            names[scheme, *variant] = number, _label(scheme, variant, variants)
    keys = [names[key] for key in runs[["scheme", *VARIANT]].itertuples(index=False, name=None)]
    runs["variant"], runs["label"] = [key[0] for key in keys], [key[1] for key in keys]
    runs["order"] = runs["scheme"].map(scheme_order)
    runs = runs.sort_values(["order", "variant", "depth", "lr", "seed", "run_id"]).reset_index(drop=True)
    runs.attrs["older"] = older
    return runs


def _changed_params(protocol: str, scheme: str) -> set[str]:
    """What the protocol's plan sets away from the scheme's defaults: such a variant is a control, never the main."""
    cells = PROTOCOLS[protocol].cells if protocol in PROTOCOLS else ()
    return {item for cell in cells if cell.scheme == scheme and cell.params for item in cell.params.split(",")}


def _label(scheme: str, variant: tuple, variants: list[tuple]) -> str:
    """The scheme as its paper calls it, and what of the variant is not the same in all its variants (of the same arm, for parameters)."""
    arm, params, writers, gate_lr, control, data, compiled = variant
    differ = [len(set(column)) > 1 for column in zip(*variants, strict=True)]
    siblings = [set(other[1].split(",")) for other in variants if other[0] == arm]
    words = [word for word in params.split(",") if not all(word in sibling for sibling in siblings)]
    words += ["native"] * (arm == "native" and differ[0]) + [f"{writers} writers"] * differ[2]
    words += [f"gate_lr={gate_lr:g}"] * differ[3] + [control] * (differ[4] and bool(control)) + [data] * differ[5]
    words += ["eager"] * (differ[6] and not compiled)
    return called(" ".join([scheme, *words]))


def main_lr(runs: pd.DataFrame) -> float:
    """The learning rate with the most runs, the largest of several."""
    return max(Counter(runs["lr"]).items(), key=lambda item: (item[1], item[0]))[0]


def main_setting(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs at the commonest depth and learning rate, the deepest of several: the one setting that is shown."""
    counts = Counter(zip(runs["depth"], runs["lr"]))
    depth, lr = max(counts, key=lambda setting: (counts[setting], setting))
    return runs[(runs["depth"] == depth) & (runs["lr"] == lr)]


def crash_of(row) -> int | None:
    """The crash step of a run, if it crashed."""
    return int(row.crash_step) if row.crashed and pd.notna(row.crash_step) else None


def curves_of(folder: Path, runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The curve of each run that has one; infinities become NaN."""
    curves = read(folder, "curves").replace([float("inf"), -float("inf")], float("nan"))
    return {run_id: curve for run_id, curve in curves[curves["run_id"].isin(runs["run_id"])].groupby("run_id")}


def until_horizon(rows: pd.DataFrame, run) -> pd.DataFrame:
    """A run's rows up to its horizon: what follows confirms events, and counts for none."""
    return rows[~(rows["step"] > run.horizon)]


def caption(runs: pd.DataFrame, *notes: str) -> str:
    """The notes, and on a second line where a figure's numbers come from: protocol, runs, data, learning rates, horizon and commits."""
    failed = Counter(runs.loc[runs["status"] != "done", "status"])
    facts = [
        f"Protocol {runs['protocol'].iloc[0]} v{runs['protocol_version'].iloc[0]}: {_count(len(runs), 'run')}",
        f"{_listed(runs['seed'], 'seed')}",
        f"data {', '.join(sorted(set(runs['data']) - {''})) or 'not stated'}",
        _listed(runs["lr"], "learning rate"),
        _listed(runs["horizon"].dropna(), "horizon") + " steps",
        commits(runs["commit"]),
    ]
    sentences = ["; ".join(facts) + "."]
    name, version = runs["protocol"].iloc[0], runs["protocol_version"].iloc[0]
    if name in PROTOCOLS and version < PROTOCOLS[name].version:
        init = ", ".join(sorted(set(runs["init"])))
        sentences.append(f"Version {version} is older and has other initial weights ({init}): not to be compared with later ones.")
    if failed:
        what = ", ".join(f"{n} {name}" for name, n in sorted(failed.items()))
        sentences.append(f"Attempts without an outcome: {what}.")
    late = runs["late_step"].dropna()
    if len(late):
        sentences.append(f"Behind the horizon, so not counted: an event in {_count(len(late), 'run')}, from step {late.min()} on.")
    if older := runs.attrs.get("older"):
        sentences.append(f"{_count(older, 'run')} of older protocol versions left out.")
    return " ".join(filter(None, notes)) + "\n" + " ".join(sentences)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n != 1 else ''}"


def _listed(values, what: str) -> str:
    """"seeds 0, 1, 2", or the ends and the number of a long list."""
    values = sorted(set(values))
    if not values:
        return f"{what} unknown"
    if len(values) > 5:
        return f"{len(values)} {what}s {values[0]:g} to {values[-1]:g}"
    return f"{what}{'s' if len(values) > 1 else ''} {', '.join(f'{value:g}' for value in values)}"


def commits(column) -> str:
    names = sorted({re.sub(r"^g?([0-9a-f]{9})[0-9a-f]+", r"\1", name) for name in column if name})
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"commit{'s' if len(names) > 1 else ''} {', '.join(names[:3]) or 'unknown'}{more}"


def short_outcome(row) -> str:
    """"collapsed at step 151" for a run: its result in words, with the step where there is one."""
    words = OUTCOMES[row.result][0]
    return words if crash_of(row) is None else f"{words} at step {row.crash_step}"
