"""Processes forked from this one: they start at once, where an interpreter of their own would import torch again."""

import os
import traceback
from collections.abc import Callable


def forked(function: Callable[[], object]) -> int:
    """The id of a process that runs a function and ends, with what it says to `sys.exit` as its status."""
    if pid := os.fork():
        return pid
    status = 70
    try:
        function()
        status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
