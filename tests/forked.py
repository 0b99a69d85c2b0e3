"""Processes forked from this one: they start at once, where an interpreter of their own would import torch again."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing import forkserver

from suite.__main__ import program
from suite.isolation import catalogue, forks

STREAMS = {0: "stdin", 1: "stdout", 2: "stderr"}


def forked(function: Callable[[], object]) -> int:
    """The id of a process that runs a function and ends, with what it says to `sys.exit` as its status."""
    if pid := os.fork():
        return pid
    status = 70
    try:
        catalogue._built_in.cache_clear()  # its processes answer the one that this was forked from
        if forks._begun:
            forkserver._forkserver.ensure_running = lambda: None  # it does, though it is no child of this process
        function()
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def suite(*words, streams: dict[int, int | None]) -> int:
    """The id of `python -m suite ...`, forked. streams: descriptors in place of 0, 1 and 2 (or others), None for one that is closed."""

    def run():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
        for number, of in streams.items():
            if of is None:
                os.close(number)
            else:
                os.dup2(of, number)
            if name := STREAMS.get(number):  # as Python does when it starts
                setattr(sys, name, None if of is None else open(number, "r" if number == 0 else "w", buffering=1, closefd=False))
        sys.argv = ["suite", *map(str, words)]
        program()

    return forked(run)


def status_of(pid: int) -> int:
    """The exit status of a process that has ended or will."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
