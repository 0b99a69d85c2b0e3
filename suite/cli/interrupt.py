"""Ctrl-C: at once while nothing was begun, in order where there is something to stop."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager


def leave(*_: object) -> None:
    """Ctrl-C before anything was begun: libraries that are being imported turn a KeyboardInterrupt into errors of their own."""
    os.write(2, b"\nstopped\n")
    os._exit(130)


@contextmanager
def interruptible():
    """Where there is something to stop in order, Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is not leave:  # not started by __main__, or ignored (`nohup`)
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, leave)
