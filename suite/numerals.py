"""What people write on a command line, numbers above all, read strictly: it is what is meant, or it is refused. Standard library only."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")


def whole(text: str) -> int:
    """An integer in ASCII digits; ValueError for what only Python takes for one (`1_0`, other scripts' digits) or is endless."""
    if not WHOLE.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def decimal(text: str) -> float:
    """A finite number in ASCII; ValueError also for one that a float would turn into 0 or infinity. -0 is 0."""
    if not (len(text) < 60 and DECIMAL.fullmatch(text)):
        raise ValueError(f"{text[:40]!r} is not a number")
    value = float(text)
    mantissa = re.split("[eE]", text)[0]
    if not math.isfinite(value) or (value == 0 and re.search("[1-9]", mantissa)):
        raise ValueError(f"{text!r} is outside of what a number here can hold")
    return value + 0.0  # of -0.0 too


# ---- flags

def list_of(kind, what: str, legal=None):
    """An argparse type for comma-separated values, each once; refuses empty items and what is not legal."""

    def parse(text: str) -> tuple:
        values = []
        for item in map(str.strip, text.split(",")):
            try:
                value = kind(item)
            except ValueError:
                value = ""
            if value == "":
                raise argparse.ArgumentTypeError(f"{item!r} is not {what}")
            if legal is not None and not legal(value):
                raise argparse.ArgumentTypeError(f"{item} is not {what}")
            values.append(value)
        return tuple(dict.fromkeys(values))

    return parse


def shard(text: str) -> tuple[int, int]:
    """An argparse type for i/n."""
    try:
        i, n = map(whole, text.split("/"))
        if 1 <= i <= n:
            return i, n
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not i/n with 1 <= i <= n")


def positive(text: str) -> int:
    """An argparse type for a count."""
    try:
        if (value := whole(text)) > 0:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")


def up_to(most: int, what: str):
    """An argparse type for a count of so many at most. what: begins the message where it is more, and says why."""

    def parse(text: str) -> int:
        if (value := positive(text)) > most:
            raise argparse.ArgumentTypeError(f"{what}, not {value}")
        return value

    return parse


def share(text: str) -> float:
    """An argparse type for the precision of a search: finer than .03 its posterior does not say (suite/verdict/posterior.py)."""
    try:
        if 0.03 <= (value := decimal(text)) <= 0.5:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0.03 to 0.5")


def rate(value: float) -> bool:
    """Whether a learning rate can be written into the tables as it is."""
    return value > 0 and value == float(f"{value:g}")  # the tables hold six digits


def filled(word: str) -> str:
    """An argparse type: anything but nothing."""
    if not word.strip():
        raise argparse.ArgumentTypeError("an empty value")
    return word


def directory(word: str) -> Path:
    """An argparse type: a folder, there or not yet."""
    path = Path(filled(word))
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{word} is a file, not a folder")
    return path
