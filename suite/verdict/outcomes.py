"""The outcomes of a run, and which of them count for what. No imports: tables read this too."""

OUTCOMES = ("survived", "stuck", "collapsed", "degraded", "untrained", "nonfinite", "too_short")
DEAD = ("collapsed", "degraded", "nonfinite")  # a run that trained, and died; what LR50 counts
UNUSABLE = (*DEAD, "stuck", "untrained")  # what LR50u counts
GONE = (*DEAD, "untrained")  # at no loss that training gives: their state is looked at, and they get neither scores nor a probe


def fate(outcome: str) -> str:
    """"dead", "unusable" or "live": what of an outcome may be expected to repeat on another machine; "" for what is none of these."""
    return "dead" if outcome in DEAD else "unusable" if outcome in UNUSABLE else "live" if outcome == "survived" else ""
