"""Names for schemes: `@register`, and the schemes of this process: of one file that was loaded, or of all of `baselines/`.

Importing this module does not import torch; loading a scheme's file does. What other processes
know of theirs is in `suite.isolation.catalogue`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

from suite.identity.codedigest import PLUGIN, class_digest
from suite.numerals import decimal, whole
from suite.protocol import NO_PARAMS

ARMS = ("controlled", "native")
WRITERS = ("zero", "std")
READ_OTHERWISE = {  # words that some reader of tables takes for a missing value, a truth or a number
    "na", "nan", "nat", "null", "nil", "none", "missing", "undefined", "true", "false", "t", "f", "yes", "no", "y", "n", "on", "off",
    "inf", "infinity",
}  # fmt: skip
DATE = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*_?\d+"  # Excel makes March 1st of mar1


class RegistryError(ValueError):
    """A scheme name, parameter or plugin that cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Entry:
    """A scheme in one of its arms. cls is None in a process that has not loaded its file.

    module: that registered it; file: that was loaded for it; fault: why nothing of it can be trained, half a line, or
    "".
    """

    name: str
    arm: str
    paper: str
    cls: type | None
    defaults: dict[str, object]
    later: frozenset[str] = frozenset()  # parameters behind `*`: the column `params` has them only where they are not at their default
    zero_writers: str = ""
    module: str = ""
    file: str = ""
    fault: str = ""

    def code_digest(self, values: dict[str, object]) -> str:
        """Digest of what the class is made of at these values; to be asked first when its file has been run to the end.

        A parameter that is not named, or has its default, is a constant of the code: one that is added to the class
        later, with the old behaviour as its default, changes no digest.
        """
        words = _words(self.defaults | values)
        others = {key: words[key] for key, value in values.items() if value != self.defaults[key]}
        try:
            return class_digest(self.cls, {k: v for k, v in self.defaults.items() if k not in others}, others)
        except ValueError as error:
            raise RegistryError(f"scheme {self.name}: {error}") from error


_entries: dict[tuple[str, str], Entry] = {}
_discovered = False


def register(name: str, *, arm: str = "controlled", paper: str = ""):
    """Class decorator that enters a `Residual` under a name; `paper` is its arXiv id, `arm` one of ARMS."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise RegistryError(f"scheme name {name!r}: use at most 40 lower-case letters, digits and '_', starting with a letter")
    if name in READ_OTHERWISE or re.fullmatch(DATE, name):
        raise RegistryError(f"scheme name {name!r}: pandas, R or a spreadsheet reads it as something else than a name; choose another")
    if arm not in ARMS:
        raise RegistryError(f"scheme {name}: arm {arm!r} is not one of {', '.join(ARMS)}")

    module = sys._getframe(1).f_globals.get("__name__", "")

    def enter(cls: type) -> type:
        from suite.residual import Residual

        if not (isinstance(cls, type) and issubclass(cls, Residual)):
            raise RegistryError(f"scheme {name}: {getattr(cls, '__name__', cls)} is not a class derived from suite.residual.Residual")
        if (name, arm) in _entries:
            other = _entries[name, arm].cls
            raise RegistryError(
                f"scheme {name} ({arm}) in {_origin(cls)} is already registered by {_origin(other)}; choose another name"
            )
        parameters = list(inspect.signature(cls.__init__).parameters.values())[2:]  # after self, site
        if bad := [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]:
            raise RegistryError(f"scheme {name}: parameter {bad[0]} needs a default value")
        defaults = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
        if odd := [key for key, value in defaults.items() if not isinstance(value, bool | int | float | str)]:
            raise RegistryError(f"scheme {name}: the default of {odd[0]} is not a number, text, True or False")
        bare = Residual(None)
        if taken := [key for key in defaults if hasattr(bare, key)]:
            raise RegistryError(f"scheme {name}: {taken[0]} is a member of suite.residual.Residual; give the parameter another name")
        later = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        entry = Entry(name, arm, paper, cls, defaults, later, cls.zero_writers, module)
        for key, value in defaults.items():  # runs get their parameters from the column `params`, defaults too
            if _written(entry, key) != value:
                raise RegistryError(f"scheme {name}: the default of {key}, {value!r}, cannot be written into a table as it is: use a"
                                    " number of at most six digits, or text without commas and outer blanks")
        _entries[name, arm] = entry
        return cls

    return enter


def _written(entry: Entry, key: str) -> object:
    """The default of a parameter as it comes back from the column `params`; None where it does not."""
    try:
        alone = replace(entry, defaults={key: entry.defaults[key]}, later=frozenset())
        return parse_params(alone, format_params(alone, {}))[key]
    except (RegistryError, KeyError):
        return None


def _origin(cls: type) -> str:
    path = Path(getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__)
    return f"{path.parent.name}/{path.name}"


def discover() -> None:
    """Import every module of `baselines/`, once; nothing in a process that has loaded a file: that one is all it knows."""
    global _discovered
    if not _discovered:
        _discovered = True
        for path in built_in():
            importlib.import_module(f"baselines.{path.stem}")


def built_in() -> list[Path]:
    """The files of `baselines/`, in alphabetical order."""
    package = importlib.import_module("baselines")
    return [Path(package.__path__[0], f"{module.name}.py").resolve() for module in pkgutil.iter_modules(package.__path__)]


def called(path: Path) -> str:
    """A scheme's file in messages."""
    return f"baselines/{path.name}" if path in built_in() else f"--plugin {path.name}"


def load(path: str | Path) -> list[Entry]:
    """Import one scheme's file into this process, with your rights, and say what it registers itself.

    What another file of `baselines/` registers that it imports is not its own. Raises RegistryError, and then nothing
    of it stays.
    """
    global _discovered
    path, known, _discovered = Path(path).resolve(), dict(_entries), True
    built = path in built_in()
    name = f"baselines.{path.stem}" if built else f"{PLUGIN}{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    try:
        if name not in sys.modules:
            _run(name, path)
        own = [entry for key, entry in _entries.items() if entry.module == name
               or key not in known and entry.module.partition(".")[0] != "baselines"]  # fmt: skip
        for entry in own:
            entry.code_digest({})  # while modules are found where the file looks for them
        if not (own or built):
            raise RegistryError("registers no scheme; decorate a Residual class with @register(name)")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # Ctrl-C
            raise
        sys.modules.pop(name, None)
        _entries.clear()
        _entries.update(known)
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        what = str(error) if isinstance(error, RegistryError) else f"{type(error).__name__}: {error}"
        raise RegistryError(f"{called(path)}{where}: {what}") from error
    return [replace(entry, file=str(path)) for entry in own]


class _FromText(SourceFileLoader):
    """Runs what stands in the file, which is what its digest is of: Python's own bytecode is believed by time and size."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _run(name: str, path: Path) -> None:
    """Import a scheme's file under a name of ours; nothing is written beside it."""
    if not path.is_file():
        raise RegistryError("no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise RegistryError("not a Python file (its name must end in .py)")
    if isinstance(spec.loader, SourceFileLoader):
        spec.loader = _FromText(name, str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes


def names(arm: str | None = None) -> list[str]:
    """Registered scheme names in alphabetical order, of one arm or of any."""
    discover()
    return sorted({n for n, a in _entries if arm in (None, a)})


def get(name: str, arm: str = "controlled") -> Entry:
    """The entry of a scheme; an unknown name raises RegistryError with near matches."""
    discover()
    if (name, arm) not in _entries:
        raise unknown(name, arm, _entries)
    return _entries[name, arm]


def unknown(name: str, arm: str, known: Iterable[tuple[str, str]]) -> RegistryError:
    """What to raise for a scheme that is not among these (name, arm), with near matches."""
    if arms := [a for n, a in known if n == name]:
        return RegistryError(f"scheme {name} has no {arm} arm; it has {', '.join(arms)}")
    all_names = sorted({n for n, _ in known})
    near = difflib.get_close_matches(name, all_names, n=3)
    return RegistryError(f"unknown scheme {name!r}; " + (f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(all_names)}"))


NUMBERS = {int: whole, float: decimal}  # read strictly
LONGEST = 200  # characters of a text parameter; a whole row of a table must stay below what CSV readers take


def parse_params(entry: Entry, text: str) -> dict[str, object]:
    """'init=0.01,beta=1' -> typed values in the type of each default; unknown names and bad values are refused."""
    values: dict[str, object] = {}
    if text.strip() == NO_PARAMS and not entry.defaults:
        return values
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, raw = item.partition("=")
        if not equals or key not in entry.defaults:
            allowed = ", ".join(entry.defaults) or "none"
            raise RegistryError(f"scheme {entry.name} ({entry.arm}): parameter {item!r} is not known; it takes: {allowed}")
        if key in values:
            raise RegistryError(f"scheme {entry.name}: parameter {key} is given twice")
        kind = type(entry.defaults[key])
        try:
            values[key] = {"true": True, "false": False}[raw.lower()] if kind is bool else NUMBERS.get(kind, kind)(raw)
        except (ValueError, KeyError):
            what = {float: "finite number of at most six significant digits", int: "whole number"}.get(kind, kind.__name__)
            raise RegistryError(f"scheme {entry.name}: {key}={raw[:40]!r} is not a {what}") from None
        value = values[key]
        if kind is float and value != float(f"{value:g}"):
            raise RegistryError(f"scheme {entry.name}: {key}={raw} is not a finite number of at most six significant digits")
        if kind is str and len(raw) > LONGEST:
            raise RegistryError(f"scheme {entry.name}: {key} is {len(raw)} characters long; {LONGEST} are allowed")
        if kind is str and not raw.isprintable():
            raise RegistryError(f"scheme {entry.name}: {key}={raw!r} holds characters that cannot be printed")
    return values


def format_params(entry: Entry, values: dict[str, object]) -> str:
    """The canonical `params` column: every parameter in signature order, defaults included but for `Entry.later`; NO_PARAMS for none."""
    given = entry.defaults | values
    shown = {k: v for k, v in given.items() if k not in entry.later or v != entry.defaults[k]}
    return ",".join(f"{k}={word}" for k, word in _words(shown).items()) or NO_PARAMS


def _words(values: dict[str, object]) -> dict[str, str]:
    """Values of parameters as the tables write them."""
    return {k: f"{v:g}" if isinstance(v, float) else str(v).lower() if isinstance(v, bool) else str(v) for k, v in values.items()}
