"""Which schemes there are, as processes say that never train: one for each file of `baselines/` and each plugin, which imports it alone.

So a file that breaks, or changes torch, or uses another's name is found out, and the others are what they are without
it. Nothing here imports torch; what is asked of a scheme's own code is asked in its file's process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from suite import registry
from suite.isolation.forks import Fork, ForkDied
from suite.registry import Entry, RegistryError

PATIENCE = 300.0  # seconds for a scheme's file; ours take 20 on a busy core, compiled blocks included


class SchemeFile:
    """A file of schemes and the process that has imported it, while one is needed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self.called = registry.called(self.path)
        self.entries: list[Entry] = []
        self.broken = ""  # why it could not be imported, in one line
        self.process: Fork | None = None

    def begin(self) -> None:
        """Let a process import the file."""
        self.process = Fork()
        self.process.ask(_load, str(self.path))

    def finish(self) -> None:
        """Wait until that is done."""
        try:
            self.entries = self.process.answer(PATIENCE)
        except ForkDied as error:
            self.broken = f"{self.called}: {error}"
        except RegistryError as error:
            self.broken = str(error)

    def call(self, function: Callable, *args: object) -> object:
        """What a function returns in the file's process. Raises what it raises, and ForkDied."""
        if self.process is None:
            self.begin()
            self.process.answer(PATIENCE)
        try:
            return self.process.call(function, *args, patience=PATIENCE)
        except ForkDied:
            self.rest()
            raise

    def rest(self) -> None:
        """Let the process end; the next call starts another."""
        if self.process is not None:
            self.process.close()
            self.process = None


class Catalogue:
    """The schemes of some files."""

    def __init__(self, files: Sequence[SchemeFile], plugins: Sequence[SchemeFile]) -> None:
        """Raises RegistryError for a plugin that cannot be imported or that uses another's name; of other files only who asks hears."""
        self.files = {str(file.path): file for file in (*files, *plugins)}
        self.entries: dict[tuple[str, str], Entry] = {}
        self.clashes: dict[tuple[str, str], str] = {}
        self.digests: dict[tuple[str, str, str], str] = {}
        for file in (*files, *plugins):
            if file in plugins and file.broken:
                raise RegistryError(file.broken)
            for entry in file.entries:
                key = entry.name, entry.arm
                if key in self.entries:
                    other = self.files[self.entries[key].file]
                    what = (f"scheme {entry.name} ({entry.arm}) in {_short(file.path)} is already registered by {_short(other.path)}; "
                            "choose another name")  # fmt: skip
                    if file in plugins:
                        raise RegistryError(f"{file.called}: {what}")
                    self.clashes[key] = what
                self.entries.setdefault(key, entry)

    @property
    def sound(self) -> list[str]:
        """The files of which every scheme can be trained."""
        bad = {entry.file for key, entry in self.entries.items() if entry.fault or key in self.clashes}
        return [path for path, file in self.files.items() if not file.broken and path not in bad]

    @property
    def warnings(self) -> list[str]:
        """One line for each file whose schemes, or some of them, cannot be trained."""
        faults = {entry.file: entry.fault for entry in self.entries.values() if entry.fault}
        return [f"{file.broken}; its schemes are left out" for file in self.files.values() if file.broken] + [
            *self.clashes.values(), *(f"{self.files[file].called} {fault}; its schemes are refused" for file, fault in faults.items())
        ]

    def names(self, arm: str | None = None) -> list[str]:
        """Scheme names in alphabetical order, of one arm or of any."""
        return sorted({n for n, a in self.entries if arm in (None, a)})

    def get(self, name: str, arm: str = "controlled") -> Entry:
        """A scheme that can be trained; RegistryError with the reason where it cannot, or is not known."""
        if (name, arm) in self.clashes:
            raise RegistryError(self.clashes[name, arm])
        if (name, arm) not in self.entries:
            broken = [file.broken for file in self.files.values() if file.broken]
            raise RegistryError("; and ".join([str(registry.unknown(name, arm, self.entries)), *broken]))
        entry = self.entries[name, arm]
        if entry.fault:
            raise RegistryError(f"scheme {name}: its file {entry.fault}: what all runs share must stay as it is; leave it to the class's "
                                f"own methods to do otherwise ({self.files[entry.file].called})")  # fmt: skip
        return entry

    def call(self, entry: Entry, function: Callable, *args: object) -> object:
        """What a function returns in the process of the scheme's file. Raises what it raises; RegistryError where that ends the process."""
        try:
            return self.files[entry.file].call(function, *args)
        except ForkDied as error:
            raise RegistryError(f"scheme {entry.name} ({entry.arm}): {error}") from None

    def code_digest(self, entry: Entry, params: str) -> str:
        """Digest of the scheme's code at these parameters."""
        key = entry.name, entry.arm, params
        if key not in self.digests:
            self.digests[key] = self.call(entry, _code_digest, *key)
        return self.digests[key]

    def rest(self) -> None:
        """Give back the memory of all files' processes, until something is asked again."""
        for file in self.files.values():
            file.rest()


def read(plugins: Sequence[str | Path] = ()) -> Catalogue:
    """The schemes of `baselines/`, looked at once in a process, and of these plugins. Raises as `Catalogue`."""
    files = _built_in()
    own = {Path(p).resolve(): SchemeFile(p) for p in plugins}
    more = [file for path, file in own.items() if path not in registry.built_in()]
    _look_at(more)
    return Catalogue(files, more)


@cache
def _built_in() -> list[SchemeFile]:
    files = [SchemeFile(path) for path in registry.built_in()]
    _look_at(files)
    return files


def _look_at(files: Sequence[SchemeFile]) -> None:
    """Import all at the same time."""
    for file in files:
        file.begin()
    for file in files:
        file.finish()


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _load(path: str) -> list[Entry]:
    """What a file registers, without its classes; in its own process."""
    from suite.isolation import arithmetic

    entries, fault = [], ""
    try:
        with arithmetic.unchanged():
            entries = registry.load(path)
    except arithmetic.Altered as error:
        fault = str(error)
    return [replace(entry, cls=None, fault=fault) for entry in entries]


def _code_digest(name: str, arm: str, params: str) -> str:
    entry = registry.get(name, arm)
    return entry.code_digest(registry.parse_params(entry, params))
