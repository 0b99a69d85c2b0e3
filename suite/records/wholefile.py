"""Files that are whole at any moment, packed where their name says so."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path

from suite.records.tableerror import RESTORE, DamagedFile

PACKING = 9  # zlib's level: a file is packed once and read often


def content(path) -> bytes:
    """The bytes of a table file, a compressed one unpacked."""
    path = Path(path)
    return unpacked(path, path.read_bytes())


def unpacked(path: Path, data: bytes) -> bytes:
    """What the bytes of a file hold; its name says whether they are compressed."""
    try:
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedFile(path, f"not a whole gzip file ({error})", RESTORE) from None


def replace(path: Path, data: bytes) -> None:
    """Put bytes in place so that a reader, or a kill at any moment, sees the old file or the new one; what is there already stays."""
    if path.exists() and _holds(path, data):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name: what a kill leaves behind is overwritten by the next write (writers hold Store.lock).
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(packed(data) if path.suffix == ".gz" else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync(path.parent)


def packed(data: bytes) -> bytes:
    """Data as a gzip file that names neither a file nor a time: the same bytes from the same data and zlib."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=PACKING, fileobj=buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file holds these bytes; what cannot be unpacked is written anew. (Another zlib packs the same bytes otherwise.)"""
    try:
        return content(path) == data
    except DamagedFile:
        return False


def remove(path: Path) -> None:
    """Take a file away, for good."""
    path.unlink()
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """The rename itself survives a power cut only once its folder is synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
