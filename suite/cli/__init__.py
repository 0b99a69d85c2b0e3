"""The command line: `parser` has its verbs. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from suite.cli.interrupt import leave
from suite.cli.parser import parser

__all__ = ["leave", "main", "parser"]

VERBS = {  # by the module here that has them
    "training": ("plan", "run", "encode", "autopsy"),
    "entering": ("enter",),
    "reading": ("list", "status", "collect", "figures", "verify", "report", "claims", "detect", "bench"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; a mistake of the user is one line on standard error and exit status 2."""
    args = parser().parse_args(argv)
    if args.verb in ("list", "plan", "run", "enter", "verify", "autopsy"):
        from suite.isolation import forks

        forks.start()  # while it imports torch, this process reads what it is to do
    try:
        module = next(name for name, verbs in VERBS.items() if args.verb in verbs)
        return getattr(import_module(f"suite.cli.{module}"), {"list": "show"}.get(args.verb, args.verb))(args)
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
