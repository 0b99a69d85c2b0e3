"""The command line: `parser` has its verbs. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import os
import sys

from suite.cli import reading, training
from suite.cli.interrupt import leave
from suite.cli.parser import parser

__all__ = ["leave", "main", "parser"]

VERBS = {
    "list": reading.show, "plan": training.plan, "run": training.run, "encode": training.encode, "status": reading.status,
    "collect": reading.collect, "figures": reading.figures, "verify": reading.verify, "report": reading.report,
    "claims": reading.claims, "detect": reading.detect, "bench": reading.bench, "autopsy": training.autopsy,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one verb; a mistake of the user is one line on standard error and exit status 2."""
    args = parser().parse_args(argv)
    if args.verb in ("list", "plan", "run", "verify", "autopsy"):
        from suite.isolation import forks

        forks.start()  # while it imports torch, this process reads what it is to do
    try:
        return VERBS[args.verb](args)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError) as error:  # the suite's own errors are ValueErrors
        print(f"error: {str(error).splitlines()[0] if str(error) else type(error).__name__}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from suite.sweep.sweep import SweepError

        if not isinstance(error, SweepError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
