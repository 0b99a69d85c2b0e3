"""What a scheme's class is made of, as a digest: its file, those of its bases, and those of what they import, transitively.

Files of installed packages and of Python itself do not count (their versions stand in runs.csv), nor does the suite,
the base of every scheme included, which the protocol's version covers. Names and places of files on a disk do not
count. What a scheme reads otherwise (a file of numbers, an environment variable) is not seen.
"""

from __future__ import annotations

import ast
import json
import site
import sys
import sysconfig
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from suite.identity.specialise import specialised
from suite.protocol import short_hash

PLUGIN = "screambench_plugin_"  # how the names of modules begin that `registry.load` makes from a path
PROGRAM = ("__main__", "__mp_main__")  # another in a worker than in its parent
HOUSE = ("baselines",)  # counts, installed or not


def class_digest(cls: type, at_default: dict[str, object], others: dict[str, str]) -> str:
    """d and 15 hex digits over the code that a class is made of. Raises ValueError where a part of it cannot be read.

    at_default: parameters at their default values, which the code then holds (`suite.identity.specialise`); others:
    the rest, as text.
    """
    files = _sources(cls)
    parts = {name: _text(path, name) for name, path in files.items()}
    if files[""].suffix == ".py":
        around = [_tree(path, name) for name, path in files.items() if name and path.suffix == ".py"]
        parts[""] = _without_words(specialised(_tree(files[""], ""), cls.__name__, at_default, around))
    parts["parameters"] = json.dumps(others, sort_keys=True)
    return short_hash("d", "\0".join(f"{name}\0{text}" for name, text in sorted(parts.items())).encode(), 16)


def file_digest(path: Path) -> str:
    """d and 15 hex digits over one Python file."""
    return short_hash("d", _text(path, path.name).encode(), 16)


def _sources(cls: type) -> dict[str, Path]:
    """The files that a class is made of, by what they are called wherever they lie."""
    found: dict[str, Path] = {}
    todo = [base.__module__ for base in cls.__mro__]
    seen = set()
    while todo:
        name = todo.pop()
        if name in seen or name in PROGRAM or name.partition(".")[0] == "suite":
            continue
        seen.add(name)
        path, package = _file(name)
        own = name == cls.__module__
        if path is None or _installed(path) and not (own or name.startswith(PLUGIN) or {name, name.partition(".")[0]} & {*HOUSE}):
            if own:
                raise ValueError(f"the class {cls.__name__} stands in no file")
            continue
        found["" if own else "plugin " + file_digest(path) if name.startswith(PLUGIN) else name] = path
        if path.suffix == ".py":
            todo += _imports(path, package)
        if module := sys.modules.get(name):
            todo += _held(module)
    return found


def _file(name: str) -> tuple[Path | None, str]:
    """(file, package for relative imports) of a module; None for one that is built in, a folder alone, or not there."""
    module = sys.modules.get(name)
    if module is not None and (file := getattr(module, "__file__", None)):
        return Path(file), getattr(module, "__package__", None) or ""
    path, spec = None, None
    parts = name.split(".")
    for i in range(1, len(parts) + 1):  # without importing anything: `find_spec` would run the packages
        spec = PathFinder.find_spec(".".join(parts[:i]), path)
        if spec is None:
            return None, ""
        path = spec.submodule_search_locations
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    return file, name if path is not None else name.rpartition(".")[0]


def _imports(path: Path, package: str) -> list[str]:
    """Names of all modules that a file may import, wherever in it; also of what only may be a module (`from a import b`)."""
    names = []
    for node in ast.walk(_tree(path, path.name)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    parents = {".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 1)}  # their __init__ runs too
    return sorted({*names, *parents} - {""})


def _held(module: ModuleType) -> list[str]:
    """Modules that a module has got hold of without an import statement."""
    held = (value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) for value in vars(module).values())
    return sorted({name for name in held if isinstance(name, str) and name in sys.modules})


@cache
def _installed(path: Path) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    path = path.resolve()
    paths = sysconfig.get_paths()
    if {"site-packages", "dist-packages"} & {*path.parts}:
        return True
    folders = [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], site.getusersitepackages()]
    return any(path.is_relative_to(Path(folder).resolve()) for folder in folders)


def _text(path: Path, name: str) -> str:
    """What counts of a file: of one that is not Python's text, all of it."""
    return _without_words(_tree(path, name)) if path.suffix == ".py" else ascii(_bytes(path, name))


def _tree(path: Path, name: str) -> ast.Module:
    return ast.parse(_bytes(path, name), filename=str(path))


def _bytes(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name}, of which it is made, is no file that can be read") from error


def _without_words(tree: ast.Module) -> str:
    """A syntax tree as text, without docstrings (comments and layout are not in the tree)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
                if isinstance(node.body[0].value.value, str):
                    node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.JoinedStr):  # Python 3.12 ends f"{a:{b}}" with an empty text
            node.values = [value for value in node.values if getattr(value, "value", None) != ""]
    return _canonical(tree)


def _canonical(node: object) -> str:
    """A syntax tree as text that every Python version writes alike: `ast.dump` is not, since versions add fields and omit empty ones."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)  # repr would escape by the version's Unicode tables
    fields = ((name, getattr(node, name, None)) for name in sorted(node._fields) if name != "kind")  # kind: u"" or ""
    inner = ",".join(f"{name}={_canonical(value)}" for name, value in fields if value is not None and value != [])
    return f"{type(node).__name__}({inner})"
