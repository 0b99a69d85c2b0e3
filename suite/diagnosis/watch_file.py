"""The csv of a `Monitor`: a file that is there is only gone on with where it is one, and of this run."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from suite.diagnosis.recording import AuditError

FLUSH = 20  # steps after which rows are on the disk at the latest: what a killed run loses
TAIL = 4096  # bytes at the end in which the last row is looked for; a row has some 150


class WatchFile:
    """Rows of `columns` at the end of a file, a row a step. Raises AuditError, when it is made, where that would spoil the file.

    start: steps done before. again: the file was begun by this process for the same training, which starts anew.
    """

    def __init__(self, path: str | Path, columns: Sequence[str], start: int, again: bool = False) -> None:
        self.path, self.columns, self._file, self._rows = path, columns, None, 0
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return  # the first process writes, as trainers do
        try:
            new = not os.path.isfile(path) or not os.path.getsize(path)  # a device or a pipe holds nothing to be spoilt
            if not new:
                self._go_on(start, again)
            self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed by close)
            if new:
                self._file.write(",".join(columns) + "\n")
        except (OSError, TypeError, ValueError) as error:
            if isinstance(error, AuditError):
                raise
            raise AuditError(f"csv {path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None

    def _go_on(self, start: int, again: bool) -> None:
        """Whether rows may follow what is there; a last row that was cut off in the midst is taken away."""
        with open(self.path, "r+b") as file:
            first = file.readline(TAIL).decode("utf-8", "replace").rstrip("\r\n")
            if first != ",".join(self.columns):
                raise AuditError(f"csv {self.path}: is there, and no Monitor of this version wrote it (it begins with {first[:40]!r}); "
                                 "give another name")  # fmt: skip
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            body, newline, torn = file.read().rpartition(b"\n")
            last = body.rpartition(b"\n")[2].partition(b",")[0].decode("utf-8", "replace")
            if last.isdecimal() and start == 0 and not again:
                raise AuditError(f"csv {self.path}: holds a run up to step {last}, and this one begins at 0; give another name, or "
                                 "start=N to go on from the checkpoint of step N")  # fmt: skip
            if not newline:
                file.write(b"\n")
            elif torn:
                file.truncate(size - len(torn))

    def write(self, row: Mapping[str, float], now: bool) -> None:
        """A row; cells that it lacks stay empty. now: put it on the disk. Raises OSError once, and is closed then."""
        if self._file is None:
            return
        try:
            csv.writer(self._file, lineterminator="\n").writerow([_text(row.get(name)) for name in self.columns])
            self._rows += 1
            if now or self._rows % FLUSH == 0:
                self._file.flush()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; rows that follow are dropped."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
