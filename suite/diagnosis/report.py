"""What a `Monitor` saw, and what to try next, in words.

No number stands here but those of the run itself. What the advice rests on: rates and branch, the edges of every scheme in
results/critical_rates.csv (docs/findings.md, docs/branch_scale.md); clipping, REPRODUCTION.md; that a collapse stays, the
500 steps behind each death of results/anatomy; going back to a checkpoint before the event, PaLM (arXiv:2204.02311, 5.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from suite.diagnosis.alarms import Alarm, Alarms
from suite.diagnosis.watch import RECENT

BACK = "Resume from a checkpoint {before}: going on as it is has brought back none of our runs."
COOLER = "Lower the learning rate: each depth has a rate above which networks die, and it falls as networks get deeper."
SMALLER = ("Make the branches smaller beside the trunk (a fixed gain below one, LayerScale, ReZero, DeepNorm): all of these bear higher "
           "rates than x + f(x) does. Find the best rate anew: a smaller branch also shrinks the optimiser's step.")  # fmt: skip
CLIPPING = "Do not count on clipping the gradient: the plain networks here that died were clipped as they died."
PRECISION = "Look for an overflow: run the step again in float32, or with a lower loss scale, from a checkpoint before it."
NAMED = "Name the writers (Monitor's argument writers), so that a jump of the loss can be told from a collapse of the tokens."
NO_PROMISE = "That is no promise: none of the signals that were tried here warns before a death without false alarms (docs/detect.md)."


def report(at: int, first: int, row: Mapping[str, float], alarms: Alarms, unmeasured: Mapping[str, str]) -> str:
    """Sentences, one a line: what was seen, then what to try next.

    at: the step; first: steps done before the Monitor came. row: the last that was measured, with the number of `writers`
    in it. unmeasured: writer -> why.
    """
    return "\n".join([*_seen(at, first, row, alarms, unmeasured), *_next(alarms)])


def _seen(at: int, first: int, row: Mapping[str, float], alarms: Alarms, unmeasured: Mapping[str, str]) -> list[str]:
    levels, lines = alarms.levels, [f"Seen: steps {first + 1} to {at}." if at > first else "Seen: no step yet."]
    if math.isfinite(levels.lowest):
        lines.append(f"The loss is {levels.now:.4g} (median of the last steps); the lowest was {levels.lowest:.4g}, at step "
                     f"{levels.lowest_at}.")  # fmt: skip
    elif at > first:
        lines.append("No finite loss was seen, or too few.")
    if "tcs" in row:
        equal = "one vector" if alarms.equal else "different"
        lines.append(f"Tokens, by what {row['writers']} writers write: {equal} at step {row['step']} (mean cosine {row['tcs']:.3f}).")
    else:
        lines.append("No writer was measured: whether the tokens are different is not known.")
    if unmeasured:
        whys = sorted(set(unmeasured.values()))
        lines.append(f"Not measured: {len(unmeasured)} of the writers ({'; '.join(whys)}).")
    for alarm in alarms.told:
        end = f" Withdrawn at step {alarm.withdrawn_at}: {alarm.withdrawn}." if alarm.withdrawn_at is not None else ""
        lines.append(f"Alarm at step {alarm.step}: {alarm.kind}: {alarm.sentence}.{end}")
    return lines


def _next(alarms: Alarms) -> list[str]:
    stands = {alarm.kind: alarm for alarm in alarms.told if alarm.withdrawn_at is None}
    if not stands:
        return [f"{'No alarm stands' if alarms.told else 'No alarm'}: nothing is to be done. {NO_PROMISE}"]
    back = BACK.format(before=_before(min(stands.values(), key=lambda alarm: alarm.step), alarms))
    if "tokens equal" in stands:
        what = "All tokens have become one vector, and nothing that differs between them is learned."
        advice = [back, COOLER, SMALLER, CLIPPING]
    elif "loss jumped" in stands:
        seen = alarms.apart_at is not None
        known = "its tokens still differ: another death than the collapse of all tokens" if seen else "its tokens were not seen"
        what = f"The run has lost what it had learned; {known}."
        advice = [back, COOLER, SMALLER, CLIPPING, *([] if seen else [NAMED])]
    else:
        what, advice = "The loss or the gradient has not been finite.", [back, PRECISION, COOLER]
    return [what, "Try next:", *(f"- {line}" for line in advice)]


def _before(alarm: Alarm, alarms: Alarms) -> str:
    """Where the event lies before its alarm: between two measurements, or as long before as a jump must have stayed."""
    if alarm.kind == "tokens equal" and (known := alarms.apart_at or alarms.levels.lowest_at):
        return f"of step {known} or before"
    return f"before step {max(1, alarm.step - RECENT) if alarm.kind == 'loss jumped' else alarm.step}"
