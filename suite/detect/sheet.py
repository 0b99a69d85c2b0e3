"""What every reader of a file begins with, its bytes, and hands on: rows of text under names."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from suite.detect.numbers import LogError

GZIP = b"\x1f\x8b"


def unpacked(read: Callable[[], bytes], where: object, remedy: str) -> bytes:
    """The bytes that are read, without gzip around them. Raises LogError where they cannot be had."""
    try:
        data = read()
        return gzip.decompress(data) if data.startswith(GZIP) else data
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or f"not a whole gzip file: {error}"
        raise LogError(f"{where}: cannot be read ({why}); {remedy}") from None


@dataclass(frozen=True)
class Sheet:
    """The rows of a file: cells as text, "" where nothing is written, None where the row has no such name at all (JSON, printed logs).

    lines: where each row stands, to be named in messages. delimiter: between cells, where commas inside them must be
    told from it; "" where numbers are written as programs write them. whole: False where the last line may have been
    cut off. run: of event files, the folder below the one that was named. notes: what was read, and how.
    """

    where: str
    names: list[str]
    rows: list[list[str | None]]
    lines: list[int]
    delimiter: str = ""
    whole: bool = True
    run: str = ""
    notes: list[str] = field(default_factory=list)


def quoted(line: str, most: int = 120) -> str:
    """A line of a file as a message shows it."""
    line = " ".join(line.split())
    return repr(line if len(line) <= most else line[: most - 3] + "...")
