"""Whatever goes wrong beside a training is said once, and the training goes on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class Guard:
    """`with guard("the csv"): ...` lets no exception through. Ctrl-C is no `Exception` and passes."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.once(what, f"{what} failed, and the training goes on without it ({in_a_line(error)})")

    def once(self, key: str, sentence: str) -> None:
        """Warn, unless something was said under this key before."""
        if key not in self._said:
            self._said.add(key)
            say(f"Monitor: {sentence}", UserWarning)


def say(text: str, kind: type[Warning]) -> None:
    """A warning at the caller's line outside this room; printed where a filter would make an exception of it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("suite.diagnosis", "contextlib")):
        frame, level = frame.f_back, level + 1
    try:
        warnings.warn(text, kind, stacklevel=level)
    except Warning:
        print(text, file=sys.stderr)


def in_a_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
