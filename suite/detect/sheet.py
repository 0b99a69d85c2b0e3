"""What every reader of a file hands on: rows of text under names."""

from __future__ import annotations

from dataclasses import dataclass, field


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
