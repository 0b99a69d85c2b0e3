"""Names for schemes: `@register`, discovery of `baselines/` and of files named with `--plugin`.

Importing this module does not import torch; discovering the schemes does.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from suite.numerals import decimal, whole

ARMS = ("controlled", "native")
WRITERS = ("zero", "std")


class RegistryError(ValueError):
    """A scheme name, parameter or plugin that cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Entry:
    name: str
    arm: str
    paper: str
    cls: type
    defaults: dict[str, object]
    code_digest: str


_entries: dict[tuple[str, str], Entry] = {}
_discovered = False


def register(name: str, *, arm: str = "controlled", paper: str = ""):
    """Class decorator that enters a `Residual` under a name; `paper` is its arXiv id, `arm` one of ARMS."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise RegistryError(f"scheme name {name!r}: use at most 40 lower-case letters, digits and '_', starting with a letter")
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
        digest = code_digest(Path(sys.modules[cls.__module__].__file__))
        entry = Entry(name, arm, paper, cls, defaults, digest)
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
    path = Path(sys.modules[cls.__module__].__file__ or cls.__module__)
    return f"{path.parent.name}/{path.name}"


def code_digest(path: Path) -> str:
    """16 hex digits over a Python file's syntax tree without docstrings (comments and layout are not in the tree)."""
    tree = ast.parse(path.read_bytes(), filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
                if isinstance(node.body[0].value.value, str):
                    node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.JoinedStr):  # Python 3.12 ends f"{a:{b}}" with an empty text
            node.values = [value for value in node.values if getattr(value, "value", None) != ""]
    return hashlib.sha256(_canonical(tree).encode()).hexdigest()[:16]


def _canonical(node: object) -> str:
    """A syntax tree as text that every Python version writes alike: `ast.dump` is not, since versions add fields and omit empty ones."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)  # repr would escape by the version's Unicode tables
    fields = ((name, getattr(node, name, None)) for name in sorted(node._fields) if name != "kind")  # kind: u"" or ""
    inner = ",".join(f"{name}={_canonical(value)}" for name, value in fields if value is not None and value != [])
    return f"{type(node).__name__}({inner})"


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
    """Run a user's Python file that registers schemes. A plugin is code: it is executed with your rights."""
    path = Path(path).resolve()
    name = f"screambench_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    if not path.is_file():
        raise RegistryError(f"--plugin {path}: no such file")
    discover()  # so that a clash is reported against the plugin, not against the built-in scheme
    before = set(_entries)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise RegistryError(f"--plugin {path}: not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is written beside a user's file
    try:
        spec.loader.exec_module(module)
        if set(_entries) == before:
            raise RegistryError("registers no scheme; decorate a Residual class with @register(name)")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):  # Ctrl-C
            raise
        del sys.modules[name]
        for key in set(_entries) - before:
            del _entries[key]
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        what = str(error) if isinstance(error, RegistryError) else f"{type(error).__name__}: {error}"
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
            raise RegistryError(f"scheme {entry.name}: {key}={raw!r} is not a {kind.__name__}") from None
        value = values[key]
        if kind is float and value != float(f"{value:g}"):
            raise RegistryError(f"scheme {entry.name}: {key}={raw} is not a finite number of at most six significant digits")
        if kind is str and len(raw) > LONGEST:
            raise RegistryError(f"scheme {entry.name}: {key} is {len(raw)} characters long; {LONGEST} are allowed")
        if kind is str and not raw.isprintable():
            raise RegistryError(f"scheme {entry.name}: {key}={raw!r} holds characters that cannot be printed")
    return values


def format_params(entry: Entry, values: dict[str, object]) -> str:
    """The canonical `params` column: every parameter in signature order, defaults included."""
    given = entry.defaults | values
    words = {k: f"{v:g}" if isinstance(v, float) else str(v).lower() if isinstance(v, bool) else str(v) for k, v in given.items()}
    return ",".join(f"{k}={word}" for k, word in words.items())
