"""Which images are encoded, in which order, and the caption or the class of each."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from suite.data import contents, sources
from suite.data.sources import PICTURES, Source, first_line

TABLES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Listing:
    """source: begins messages. names: relative to the folder, in order. captions or labels is None; labels are ranks of classes."""

    source: Source
    files: list[Path]
    names: list[str]
    captions: list[str] | None
    labels: list[int] | None

    def digest(self, notes: Path) -> str:
        """Hex digits over names, captions or classes, and contents. notes: as `contents.digests` has it. Raises DataError."""
        try:
            sha = hashlib.sha256(contents.digests({"images": self.files}, notes)["images"].encode())
        except OSError as error:
            raise self.source.error(f"image {error.filename} cannot be read: {error.strerror}") from error
        for name, word in zip(self.names, self.captions or self.labels):
            sha.update(repr((name, word)).encode("utf-8", "surrogateescape"))
        return sha.hexdigest()


def listing(images: Path, captions: Path | None) -> Listing:
    """All pictures below a folder, with the captions of a table (file_name, caption), or with class folders. Raises DataError."""
    source = Source(str(images), "imagefolder", str(images), {}, "encode")
    if not images.is_dir():
        raise source.error(f"no folder {images}")
    if captions is None:
        found = sources.read(source)
        rank = {label: n for n, label in enumerate(sorted(set(found.labels)))}
        files = [Path(file) for file in found.files]
        return Listing(source, files, _names(images, files), None, [rank[label] for label in found.labels])
    rows = sorted(_rows(source, captions), key=lambda row: row["file_name"])
    files = [Path(os.path.normpath(images / row["file_name"])) for row in rows]
    if twice := next((file for file, count in Counter(files).items() if count > 1), None):
        raise source.error(f"{captions} lists {twice} twice")
    if lost := next((file for file in files if not file.is_file()), None):
        raise source.error(f"{captions} lists {lost}, which is no file")
    walked = ((folder, name) for folder, _, names in os.walk(images) for name in names if not name.startswith("."))
    below = {Path(os.path.normpath(Path(folder) / name)) for folder, name in walked}
    if bare := sorted(file for file in below - set(files) if file.suffix.lower() in PICTURES):
        raise source.error(f"{len(bare)} images have no caption in {captions} ({bare[0]})")
    return Listing(source, files, _names(images, files), [row["caption"] for row in rows], None)


def _names(images: Path, files: list[Path]) -> list[str]:
    return [os.path.relpath(file, images) for file in files]


def _rows(source: Source, table: Path) -> list[dict]:
    if table.suffix not in TABLES:
        raise source.error(f"captions {table}: is none of {', '.join(TABLES)}")
    try:
        rows = sources.table_rows(table)
    except Exception as error:  # decoding, JSON, CSV, Parquet: each has errors of its own
        raise source.error(f"captions {table} cannot be read: {first_line(error)}") from error
    for n, row in enumerate(rows, 1):
        for column in ("file_name", "caption"):
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise source.error(f"captions {table}: row {n} has no {column} (columns: {', '.join(map(str, row))})")
        if half := re.search("[\ud800-\udfff]", row["caption"]):
            shown = ascii(half[0])[1:-1]
            raise source.error(f"captions {table}: row {n}: the caption holds half a character ({shown}); write it whole, or take it out")
    if not rows:
        raise source.error(f"captions {table}: has no rows")
    return rows
