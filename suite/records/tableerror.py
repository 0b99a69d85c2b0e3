"""The one error of the tables."""

from pathlib import Path

RESTORE = "restore the file (git checkout, or delete it and run again)"


class TableError(ValueError):
    """A table that breaks its contract, in one line: file, line, what is wrong, what to do."""

    def __init__(self, path, what, remedy, line=None):
        super().__init__(path, what, remedy, line)  # all four, so that the error survives pickling between processes
        self.path, self.what, self.remedy, self.line = Path(path), what, remedy, line

    def __str__(self):
        return f"{self.path}{f':{self.line}' if self.line else ''}: {self.what}; {self.remedy}"


class DamagedFile(TableError):
    """One that cannot be unpacked: what a run's file held is lost, and the run is to be trained again."""
