"""Who trains a run, where several sweeps or launchers share a results folder."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import IO

from suite.sweep.work_folder import work_folder


class Claim:
    """An exclusive hold on one run across sweeps; the system drops it when its owner dies."""

    def __init__(self, results: Path, run_id: str) -> None:
        self.path = work_folder(results, run_id) / ".lock"
        self.file: IO[str] | None = None

    def take(self) -> bool:
        """Whether the hold is ours now; False if another process, or another Claim of this one, has it."""
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = open(self.path, "w")
            except FileNotFoundError:  # a former owner has just cleared the folder away
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_ino == os.stat(self.path).st_ino:
                    self.file = file
                    return True
            except BlockingIOError:
                file.close()
                return False
            except FileNotFoundError:
                pass
            file.close()  # a hold on a file that is no longer there holds nothing: try again

    def drop(self, clear: bool = False) -> None:
        """Let go; `clear` removes the run's working folder first."""
        if clear:
            shutil.rmtree(self.path.parent, ignore_errors=True)
        if self.file is not None:
            self.file.close()
