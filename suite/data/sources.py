"""What `--data` names: its options, and the picture files and class labels behind it, exactly those and all of them.

A folder is listed here rather than by `datasets`, which takes [ * ? in a path for a pattern and words such as train or
val in a name for a split. `datasets` reads Parquet files' features and everything on the hub.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from suite.data.dataset import NAMED, DataError

OPTIONS = ("size", "colour", "label", "image", "split")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # as `datasets` has them
# What may lie beside pictures and is none. Everything else in a class folder must be one: a .heic that is passed over is a lost image.
TEXTS = {".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".yaml", ".yml", ".toml", ".ini", ".db", ".py"}
PICTURES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
            ".avif", ".heic", ".heif", ".jp2", ".tga"}  # fmt: skip
ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"}


@dataclass(frozen=True)
class Source:
    """text: as the user wrote it; kind: imagefolder, latents, parquet or hub; name: the path, or the hub's name.

    said: how a message begins, before the text.
    """

    text: str
    kind: str
    name: str
    options: dict[str, str]
    said: str = "--data"

    def error(self, what: str) -> DataError:
        return DataError(one_line(f"{self.said} {self.text}: {what}"))


@dataclass(frozen=True)
class Pictures:
    """N encoded images: where they are, for messages; a path or the file's bytes (None: missing); the class of each."""

    where: list[str]
    files: list[Path | bytes | None]
    labels: list[str | int]


def one_line(text) -> str:
    """Text for a message; what is not printable (a file name may hold a newline) is escaped."""
    text = str(text)
    return text if text.isprintable() else ascii(text)[1:-1]


def first_line(error: Exception) -> str:
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[0])


# ---- the text

def parse(text: str) -> Source:
    """`imagefolder:DIR`, `latents:DIR`, `parquet:FILE` or a hub name, with `,option=value` at the end. Raises DataError.

    Commas in a path are the path's: an option is a known word, and what exists wins; a / ends the path.
    """
    found = re.match(r"(imagefolder|latents|parquet):", text)
    kind, rest = (found[1], text[found.end() :]) if found else ("hub", text)
    parts = rest.split(",")
    ways = [(",".join(parts[:n]), parts[n:]) for n in range(1, len(parts) + 1) if all(map(_known, parts[n:]))]
    exists = {"imagefolder": os.path.isdir, "latents": os.path.isdir, "parquet": os.path.isfile, "hub": lambda name: False}[kind]
    real = [way for way in ways if way[0] and exists(way[0])]
    name, words = (real or ways)[0]
    if len(real) > 1:
        mend = "rename one" if kind == "parquet" else f"write {real[0][0]}/,... or {real[-1][0]}/"
        raise Source(text, kind, "", {}).error(f"both {real[0][0]} and {real[-1][0]} exist; {mend}")
    source = Source(text, kind, name, _options(text, words))
    if not name:
        raise DataError(f"--data {text!r} names no source; try digits, mnist or imagefolder:DIR")
    if kind != "hub" and not real:
        missing = f"no {'file' if kind == 'parquet' else 'folder'} {name}"
        raise source.error(_stray(name) + missing if "," in name else missing)
    if kind == "hub":
        _check_hub_name(source)
    if kind == "latents" and words:
        raise source.error("latents take no options; size and colour were chosen as they were encoded")
    return source


def _known(part: str) -> bool:
    return part.partition("=")[0] in OPTIONS and not part.endswith("/")


def _stray(name: str) -> str:
    """What a comma in a name that does not exist was probably meant to begin."""
    word = next((part for part in name.split(",")[1:] if not _known(part)), "").partition("=")[0]
    return f"unknown option {word!r}; known: {', '.join(OPTIONS)}; or " if word else ""


def _options(text: str, words: list[str]) -> dict[str, str]:
    error = Source(text, "", "", {}).error
    options: dict[str, str] = {}
    for key, _, value in (word.partition("=") for word in words):
        if key in options:
            raise error(f"{key}= is given twice")
        if not value:
            raise error(f"{key}= has no value")
        options[key] = value
    if not re.fullmatch("[1-9][0-9]{0,5}", options.get("size", "1")):
        raise error(f"size={options['size']} is not a positive whole number of at most six digits")
    if options.get("colour", "grey") not in ("grey", "rgb"):
        raise error(f"colour={options['colour']} is not grey or rgb")
    return options


def _check_hub_name(source: Source) -> None:
    """Refuse what `datasets` would take for something else than a name on the hub: files here, patterns, its own readers."""
    name = source.name
    if "," in name:
        raise source.error(f"{_stray(name)}a hub name has no comma")
    if name in NAMED:
        raise source.error(f"{name} takes no options; try {name} or imagefolder:DIR")
    if os.path.lexists(name):
        kind = "imagefolder" if os.path.isdir(name) else "parquet"
        raise source.error(f"{name} lies here; write {kind}:{name}, or call from another folder to take the hub's")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII):
        raise source.error("not a hub name (OWNER/NAME); local data are imagefolder:DIR, latents:DIR or parquet:FILE")


# ---- the files

def read(source: Source) -> Pictures:
    """All pictures that the source names, in a fixed order, and their classes. Raises DataError."""
    try:
        return _folder(source) if source.kind == "imagefolder" else _table(source)
    except DataError:
        raise
    except Exception as error:  # the libraries raise many kinds; each becomes one line
        raise source.error(f"cannot be loaded: {first_line(error)}") from error


def _folder(source: Source) -> Pictures:
    root = Path(source.name)
    if split := source.options.get("split"):
        if split in (".", "..") or "/" in split or not (root / split).is_dir():
            raise source.error(f"split={split}: no folder of that name in {root}")
        root /= split
    tables = [root / name for name in METADATA if (root / name).is_file()]
    if len(tables) > 1:
        raise source.error(f"{tables[0]} and {tables[1]} both list the images; keep one")
    if tables:
        return _listed(source, root, tables[0])
    for option, standard in (("label", "label"), ("image", "image")):
        if source.options.get(option, standard) != standard:
            raise source.error(f"no {option} column {source.options[option]!r} (columns: image, label); a metadata.csv in {root} adds some")
    return _by_class(source, root)


def _by_class(source: Source, root: Path) -> Pictures:
    """ROOT/CLASS/FILE, whatever the names; hidden files and texts are no pictures, and a picture anywhere else is refused."""
    folders = [entry for entry in _entries(root) if entry.is_dir()]
    loose = [entry for entry in _entries(root) if not entry.is_dir() and entry.suffix.lower() in PICTURES]
    if packed := next((entry for entry in _entries(root) if entry.suffix.lower() in ARCHIVES), None):
        raise source.error(f"{packed} would stay unopened; unpack it or move it away")
    if loose and folders:
        raise source.error(f"{len(loose)} images lie beside the class folders ({loose[0]}); move them into one")
    if loose:
        raise source.error(f"no label column: the {len(loose)} images lie in {root} itself; put each class into a folder, "
                           "or name the classes in a metadata.csv (file_name, COLUMN) and add ,label=COLUMN")  # fmt: skip
    found = []
    for folder in folders:
        entries = _entries(folder)
        if below := next((entry for entry in entries if entry.is_dir()), None):
            raise source.error(f"{below} is a folder in a class folder; classes are the folders right below the one named: "
                               f"name {folder} if they are in there (or add ,split={folder.name})")  # fmt: skip
        for table in (entry for entry in entries if entry.name in METADATA):
            _no_classes(source, table)
        files = [entry for entry in entries if entry.suffix.lower() not in TEXTS and entry.name not in METADATA]
        if not files:
            raise source.error(f"class folder {folder} holds no images; fill it or move it away")
        found += [(f"{folder.name}/{file.name}", file, folder.name) for file in files]
    if not found:
        raise source.error(f"no images found in {root}")
    found.sort()  # as `datasets` sorts them
    return Pictures([str(file) for _, file, _ in found], [file for _, file, _ in found], [label for *_, label in found])


def _no_classes(source: Source, table: Path) -> None:
    """Refuse a metadata table within a class folder that names classes too: the folder's name is one."""
    if named := [name for name in _columns_of(_rows_of(source, table)) if name == source.options.get("label", "label")]:
        raise source.error(f"{table} has a column {named[0]!r}, and lies in a class folder; move it away, or up to the folder named, with "
                           "file names from there")  # fmt: skip


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, without what systems leave there unseen."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name not in ("__MACOSX", "__pycache__"))


def _listed(source: Source, root: Path, table: Path) -> Pictures:
    """The pictures that a metadata table lists by file_name, with a class column; all below ROOT must be in it."""
    rows = _rows_of(source, table)
    columns = _columns_of(rows)
    if not rows or any(not isinstance(row.get("file_name"), str) or not row["file_name"] for row in rows):
        raise source.error(f"{table}: every row needs a file_name; columns: {', '.join(map(str, columns))}")
    names = [os.path.normpath(root / row["file_name"]) for row in rows]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise source.error(f"{table} lists {twice} twice")
    below = [os.path.normpath(Path(folder) / file) for folder, _, files in os.walk(root) for file in files if not file.startswith(".")]
    if lost := sorted(name for name in set(below) - set(names) if Path(name).suffix.lower() in PICTURES):
        raise source.error(f"{len(lost)} images are not listed in {table} ({lost[0]})")
    files = [Path(name) for name in names]
    if "label" not in (*source.options, *columns) and all(file.parent.parent == Path(os.path.normpath(root)) for file in files):
        return Pictures(names, files, [file.parent.name for file in files])  # class folders, and a table of something else
    label = _label_column(source, columns, [])
    return Pictures([str(file) for file in files], files, _labels(source, label, [row.get(label) for row in rows]))


def _rows_of(source: Source, table: Path) -> list[dict]:
    try:
        return table_rows(table)
    except Exception as error:  # decoding, JSON, CSV, Parquet: each has errors of its own
        raise source.error(f"{table} cannot be read: {first_line(error)}") from error


def _columns_of(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def table_rows(table: Path) -> list[dict]:
    """The rows of a CSV, JSON lines or Parquet file. Raises what its reader raises."""
    if table.suffix == ".parquet":
        import pyarrow.parquet

        with open(table, "rb") as file:
            return pyarrow.parquet.ParquetFile(file).read().to_pylist()
    with open(table, encoding="utf-8-sig", newline="") as file:
        if table.suffix == ".csv":
            return _csv_rows(file)
        rows = [json.loads(line) for line in file if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every line must be an object")
    return rows


def _csv_rows(file) -> list[dict]:
    """The rows of a CSV file. Raises ValueError where one has more cells than the header: what a comma without quotes does to a text."""
    reader = csv.DictReader(file, strict=True)
    rows = []
    for row in reader:
        if None in row:
            cells = len(row) - 1 + len(row[None])
            raise ValueError(f"line {reader.line_num} has {cells} cells where the header has {len(row) - 1}: put quotes around a text that "
                             "has a comma")  # fmt: skip
        rows.append(row)
    return rows


def _table(source: Source) -> Pictures:
    try:
        import datasets
    except ImportError:
        raise source.error("needs the `datasets` package: pip install datasets") from None
    datasets.disable_progress_bars()
    if source.kind == "parquet":
        import pyarrow.parquet

        if "split" in source.options:
            raise source.error("split= goes with hub names and with folders of a folder; a file is used whole")
        with open(source.name, "rb") as file:  # a path would be taken for a pattern, and x=1/ in it for a column
            table = datasets.Dataset(datasets.table.InMemoryTable(pyarrow.parquet.ParquetFile(file).read()))
    else:
        if source.name in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:  # would read whatever lies in this folder
            raise source.error(f"{source.name} is a file format; try imagefolder:DIR, parquet:FILE or OWNER/NAME")
        table = datasets.load_dataset(source.name, split=source.options.get("split", "train"))
    kinds = table.features
    images = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)] or [
        name for name, kind in kinds.items() if _holds_bytes(kind)]  # fmt: skip
    if not images or not len(table):
        raise source.error(f"no images found (a column of encoded files: bytes, or bytes and path); columns: {', '.join(kinds)}")
    image = source.options.get("image") or (images[0] if len(images) == 1 else None)
    if image not in images:
        raise source.error(f"{len(images)} image columns; name one with ,image=COLUMN (image columns: {', '.join(images)})")
    label = _label_column(source, list(kinds), [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)])
    labels = _labels(source, label, list(table.select_columns(label)[label]))
    if isinstance(kinds[label], datasets.ClassLabel) and -1 in labels:  # the hub's way to keep a test set's classes secret
        raise source.error(f"{labels.count(-1)} images have no class in column {label!r} (-1)")
    raw = list(table.select_columns(image).cast_column(image, datasets.Image(decode=False))[image])
    items = [item or {"bytes": None, "path": None} for item in raw]
    where = [item["path"] or f"in row {row}" for row, item in enumerate(items)]
    return Pictures(where, [item["bytes"] or (Path(item["path"]) if item["path"] else None) for item in items], labels)


def _holds_bytes(kind) -> bool:
    """Whether a column that nobody calls one of images holds files, as pandas writes them: bytes, or bytes and their path."""
    if isinstance(kind, dict):
        return set(kind) in ({"bytes"}, {"bytes", "path"}) and _holds_bytes(kind["bytes"])
    return getattr(kind, "dtype", "") in ("binary", "large_binary")


def _label_column(source: Source, columns: list[str], classes: list[str]) -> str:
    """The column that `label=` names, else `label`, else the only column of classes."""
    label = source.options.get("label") or ("label" if "label" in columns else classes[0] if len(classes) == 1 else None)
    if label not in columns:
        raise source.error(f"{'several class columns' if len(classes) > 1 else 'no label column'}; name one with ,label=COLUMN "
                           f"(columns: {', '.join(map(str, columns))})")  # fmt: skip
    return label


def _labels(source: Source, column: str, labels: list) -> list[str | int]:
    if kind := next((type(label).__name__ for label in labels if not isinstance(label, int | str)), ""):
        raise source.error(f"label column {column!r} holds {kind}, not numbers or names of classes")
    if len({type(label) for label in labels}) > 1:  # is 1 the class "1"?
        raise source.error(f"label column {column!r} holds numbers and names; write all as names")
    return labels
