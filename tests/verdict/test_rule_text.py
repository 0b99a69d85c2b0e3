"""The text of the crash rule in docs/rules.md says all: written anew here from the text alone, it gives every committed verdict."""

from pathlib import Path
from statistics import mean, median

import pandas as pd

RESULTS = Path(__file__).parents[2] / "results"


def short_medians(losses):
    """Median of the loss and its two neighbours on each side, of those that are there at the ends."""
    return [median(losses[max(0, i - 2) : i + 3]) for i in range(len(losses))]


def verdict(steps, losses, norms, c, horizon, window, heldout, warmup=50):
    """(outcome, crash step) as "How a crash is defined" in docs/rules.md has it."""
    bad = next((i for i in range(len(steps)) if not (abs(losses[i]) < 1e300 and abs(norms[i]) < 1e300)), None)
    broken = bad is not None and steps[bad] <= horizon
    usable = losses[:bad]
    s = short_medians(usable)
    lowest, learnt, m, ready = [], [], float("inf"), False
    for k in range(len(s)):
        m = min(m, s[max(0, k - 1)])
        ready = ready or (k >= 10 and mean(s[k - 10 : k]) < 0.8 * c)
        lowest.append(m)
        learnt.append(ready)
    up = [learnt[k] and s[k] > lowest[k] + (c - lowest[k]) / 2 for k in range(len(s))]
    crash = confirmed = None
    k = 0
    while k < len(s):
        if not up[k]:
            k += 1
            continue
        end = k
        while end < len(s) and up[end]:
            end += 1
        lasted = end - k >= 48 and k + window <= len(s)
        if steps[k] <= horizon and (lasted or (end == len(s) and end - k >= 5)):
            crash, confirmed = k, lasted
            break
        k = end
    if broken and not confirmed:
        return "nonfinite", steps[bad]
    if len(losses) < max(200, 2 * warmup) and not confirmed:
        return "too_short", None
    if crash is not None:
        level, m = median(usable[crash : crash + window]), lowest[crash]
        return ("collapsed" if abs(level - c) <= 0.1 * (c - m) else "degraded"), steps[crash]
    counted = sum(step <= horizon for step in steps[: len(s)])
    if not any(learnt[:counted]):
        return "untrained", None
    final = median(usable[:counted][-window:])
    return ("stuck" if steps[len(s) - 1] >= horizon and min(final, heldout) > 0.6 * c else "survived"), None


def test_every_committed_verdict_follows_from_the_text():
    seen, wrong = 0, []
    for path in sorted(RESULTS.glob("*/runs.csv")):
        runs = pd.read_csv(path)
        for run in runs[runs["status"] == "done"].itertuples():
            curve = pd.read_csv(path.parent / "curves" / f"{run.scheme}-L{run.depth}" / f"{run.run_id}.csv.gz")
            columns = (curve[name].tolist() for name in ("step", "loss", "grad_norm"))
            found = verdict(*columns, run.constant_loss, run.horizon, run.window, run.heldout_loss)
            told = run.outcome, None if pd.isna(run.crash_step) else int(run.crash_step)
            seen += 1
            if found != told:
                wrong.append((path.parent.name, run.run_id, told, found))
    assert seen > 1200
    assert not wrong
