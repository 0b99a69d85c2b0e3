"""The MMS signature: are the gradients around a crash those of Mean Mode Screaming (arXiv:2605.06169, section 4)?

A spike of g_mean together with extinction of the Q and K gradients. One definition for our own audits
(`suite.diagnosis.auditor`) and for logs from elsewhere (`suite.detect.judge`); NumPy only.
"""
from __future__ import annotations

import numpy as np

SIGNATURE_SPIKE = 5.0  # times g_mean's median before; the paper prints 61 and 155, our T allows less
SIGNATURE_FALL = 100.0  # times below their median before, for Q and K; the paper says four orders of magnitude
SIGNATURE_EARLY = 10  # steps before the crash step from which the event counts: the loss crosses its threshold late
SIGNATURE_LATE = 30  # steps behind the crash step within which the event is over; the paper's trace takes 10 to 30
MEAN_DOMINATED = 0.9  # TCS above it; the paper's white contour in Fig. 7

COLUMNS = ("g_mean", "g_ctr", "tcs", "q_grad", "k_grad")  # of a foreign log, all optional; with grad_norm beside them
BEFORE_POINTS = 20  # of a foreign log that make its median before: the 20 steps of our own windows
ENOUGH_BEFORE = 3  # points for a median that one outlier cannot be


def _sides(steps, values, crash: int) -> tuple[np.ndarray, np.ndarray]:
    """Measured values (nan is none) before the event and from it on."""
    steps, values = np.asarray(steps), np.asarray(values, float)
    here = ~np.isnan(values)
    early = steps < crash - SIGNATURE_EARLY
    return values[here & early], values[here & ~early]


def _ratio(above: float, below: float) -> float:
    """above / below; inf over 0, and 1 where neither moved from 0."""
    return 1.0 if above == below else float("inf") if below == 0 else float(above / below)


def rise(steps, values, crash: int) -> float | None:
    """The largest value of the event over the median before it; None where a side was not measured."""
    before, event = _sides(steps, values, crash)
    return _ratio(event.max(), np.median(before)) if len(before) and len(event) else None


def fall(steps, values, crash: int) -> float | None:
    """The median before the event over its smallest value; None where a side was not measured."""
    before, event = _sides(steps, values, crash)
    return _ratio(np.median(before), event.min()) if len(before) and len(event) else None


def over(ratio: float | None, limit: float) -> bool | None:
    """Whether a ratio passes a limit; None where it was not measured."""
    return None if ratio is None else bool(ratio > limit)


def both(*parts: bool | None) -> bool | None:
    """And of three-valued parts: one false decides, one None leaves it open."""
    return False if False in parts else None if None in parts else True


def foreign_signature(
    columns: dict[str, np.ndarray], steps: np.ndarray, crash: int | None
) -> tuple[bool | None, list[str]]:
    """The signature of a crash in a log from elsewhere, and why; None = cannot tell.

    columns: those of COLUMNS and grad_norm that the log has, nan where not measured. A log too coarse to show a spike
    of ten steps, or that ends before the Q and K gradients had the time to die, decides nothing by not showing them.
    """
    if crash is None:
        return None, ["MMS signature: no crash to look at"]
    wanted = ("g_mean", "q_grad", "k_grad")
    found = {name: _part(name, steps, columns[name], crash) for name in wanted if name in columns}
    notes = [f"MMS signature: {why}" for _, why in found.values()]
    if missing := [name for name in wanted if name not in columns]:
        notes.append(f"MMS signature: no column {', '.join(missing)}")
    return both(*(found.get(name, (None,))[0] for name in wanted)), notes + _context(columns, steps, crash)


def _near(steps: np.ndarray, values: np.ndarray, crash: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Measured points from the last BEFORE_POINTS before the event on, and how many of them lie before it."""
    measured = ~np.isnan(values)
    steps, values = steps[measured], values[measured]
    first = int(np.searchsorted(steps, crash - SIGNATURE_EARLY))
    start = max(0, first - BEFORE_POINTS)
    return steps[start:], values[start:], first - start


def _part(name: str, steps: np.ndarray, values: np.ndarray, crash: int) -> tuple[bool | None, str]:
    """Whether g_mean rose, or the gradient of Q or K fell, as the signature wants it; None = cannot tell; and why."""
    steps, values, before = _near(steps, values, crash)
    if before < ENOUGH_BEFORE:
        return None, f"{name} was measured at {before} points before the crash, {ENOUGH_BEFORE} are needed"
    if name != "g_mean":
        size = fall(steps, values, crash)
        if over(size, SIGNATURE_FALL):
            return True, f"{name} falls to 1/{size:.3g} of its median before (beyond 1/{SIGNATURE_FALL:g})"
        if (end := steps[-1] - crash) < SIGNATURE_LATE:
            return None, f"{name} ends {end} steps from the crash; {SIGNATURE_LATE} behind it are needed to see it die"
        return False, f"{name} falls to 1/{size:.3g} of its median before only (1/{SIGNATURE_FALL:g} needed)"
    near = steps <= crash + SIGNATURE_LATE
    size = rise(steps[near], values[near], crash)
    if over(size, SIGNATURE_SPIKE):
        return True, f"g_mean rises to {size:.3g} times its median before (beyond {SIGNATURE_SPIKE:g})"
    around = steps[before - 1 : int(np.searchsorted(steps, crash + SIGNATURE_EARLY)) + 1]
    if around[-1] < crash:
        return None, "g_mean ends before the crash"
    if (gap := np.diff(around).max()) > SIGNATURE_EARLY:  # the paper's spike lasts about ten steps
        coarse = f"g_mean is measured {gap} steps apart around the crash"
        return None, f"{coarse}: a spike of {SIGNATURE_EARLY} steps may be missed"
    return False, f"g_mean rises to {size:.3g} times its median before only ({SIGNATURE_SPIKE:g} needed)"


def _context(columns: dict[str, np.ndarray], steps: np.ndarray, crash: int) -> list[str]:
    """What the other columns say: no part of the signature, but a reader will ask."""
    notes = []
    for name in ("g_ctr", "grad_norm"):
        if name in columns:
            at, values, before = _near(steps, columns[name], crash)
            size = rise(at[at <= crash + SIGNATURE_LATE], values[at <= crash + SIGNATURE_LATE], crash)
            if before >= ENOUGH_BEFORE and size is not None:
                notes.append(f"{name} rises to {size:.3g} times its median before")
    if "tcs" in columns and len(after := columns["tcs"][(steps >= crash) & ~np.isnan(columns["tcs"])]):
        tcs = float(np.median(after))
        state = "the mean-dominated state" if tcs > MEAN_DOMINATED else "not the mean-dominated state"
        notes.append(f"tcs is {tcs:.3g} after the crash: {state}")
    return notes


def of_audit(rows: list[dict], crash: int | None, deep_from: int) -> bool | None:
    """Whether the crash carries the MMS signature in the deep layers: spike of g_mean, then Q and K extinction.

    None where the window around the crash was not audited. Medians over attention sites from layer `deep_from` on.
    """
    dense = [r for r in rows if r["window"] and r["site"] == "attn" and r["segment"] == "all"]
    deep = [r for r in dense if r["layer"] >= deep_from]
    if crash is None or not deep:
        return None
    steps = sorted({r["step"] for r in deep})

    def middle(metric: str) -> list[float]:
        return [float(np.median([r[metric] for r in deep if r["step"] == s])) for s in steps]

    spiked = over(rise(steps, middle("g_mean"), crash), SIGNATURE_SPIKE)
    return both(spiked, *(over(fall(steps, middle(metric), crash), SIGNATURE_FALL) for metric in ("q_grad", "k_grad")))
