"""Names for schemes: `@register`, discovery of `baselines/` and of files named with `--plugin`.

Importing this module does not import torch; discovering the schemes does.
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
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from suite.codedigest import PLUGIN, class_digest
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
    name: str
    arm: str
    paper: str
    cls: type
    defaults: dict[str, object]

    @cached_property
    def code_digest(self) -> str:
        """Digest of what the class is made of; to be asked first when its file has been run to the end."""
        try:
            return class_digest(self.cls)
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
        entry = Entry(name, arm, paper, cls, defaults)
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
        alone = replace(entry, defaults={key: entry.defaults[key]})
        return parse_params(alone, format_params(alone, {}))[key]
    except (RegistryError, KeyError):
        return None


def _origin(cls: type) -> str:
    path = Path(getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__)
    return f"{path.parent.name}/{path.name}"


def discover() -> None:
    """Import every module of `baselines/`, once."""
    global _discovered
    if _discovered:
        return
    _discovered = True
    package = importlib.import_module("baselines")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"baselines.{module.name}")


def load_plugin(path: str | Path) -> None:
    """Run a user's Python file that registers schemes. A plugin is code: it is executed with your rights.

    What it sets for the whole process (the default dtype, seeds, threads, environment, `sys.path`, ...) is put back, so that other
    schemes train as without it; a plugin that replaces a part of the suite or of torch is refused.
    """
    from suite.globalstate import GlobalStateError, import_all, kept, unpatched

    path = Path(path).resolve()
    name = f"{PLUGIN}{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    if not path.is_file():
        raise RegistryError(f"--plugin {path}: no such file")
    discover()  # so that a clash is reported against the plugin, not against the built-in scheme
    import_all()
    before = dict(_entries)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise RegistryError(f"--plugin {path}: not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is written beside a user's file
    try:
        with unpatched(), kept():
            spec.loader.exec_module(module)
            new = [entry for key, entry in _entries.items() if key not in before]
            for entry in new:
                entry.code_digest  # noqa: B018  while modules are found where the plugin looks for them
        if gone := [key[0] for key, entry in before.items() if _entries.get(key) is not entry]:
            raise RegistryError(f"replaces scheme {gone[0]}; register another name")
        if not new:
            raise RegistryError("registers no scheme; decorate a Residual class with @register(name)")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # Ctrl-C
            raise
        sys.modules.pop(name, None)
        _entries.clear()
        _entries.update(before)
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        what = str(error) if isinstance(error, RegistryError | GlobalStateError) else f"{type(error).__name__}: {error}"
        raise RegistryError(f"--plugin {path.name}{where}: {what}") from error
    finally:
        sys.dont_write_bytecode = writes


def names(arm: str | None = None) -> list[str]:
    """Registered scheme names in alphabetical order, of one arm or of any."""
    discover()
    return sorted({n for n, a in _entries if arm in (None, a)})


def get(name: str, arm: str = "controlled") -> Entry:
    """The entry of a scheme; an unknown name raises RegistryError with near matches."""
    discover()
    if (name, arm) in _entries:
        return _entries[name, arm]
    if name in names():
        raise RegistryError(f"scheme {name} has no {arm} arm; it has {', '.join(a for n, a in _entries if n == name)}")
    near = difflib.get_close_matches(name, names(), n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names())}"
    raise RegistryError(f"unknown scheme {name!r}; {hint}")


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
    """The canonical `params` column: every parameter in signature order, defaults included; NO_PARAMS for none."""
    given = entry.defaults | values
    words = {k: f"{v:g}" if isinstance(v, float) else str(v).lower() if isinstance(v, bool) else str(v) for k, v in given.items()}
    return ",".join(f"{k}={word}" for k, word in words.items()) or NO_PARAMS
