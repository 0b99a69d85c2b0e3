"""The bytes of a table's file, packed where its name says so."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

from suite import files
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
    """Put bytes in place, whole at any moment; a file that holds them already stays, also one that another zlib packed."""
    try:
        if path.exists() and content(path) == data:
            return
    except DamagedFile:
        pass
    # One fixed name: what a kill leaves behind is overwritten by the next write (writers hold Store.lock).
    files.write_whole(path, packed(data) if path.suffix == ".gz" else data, aside=f".{path.name}.tmp")


def packed(data: bytes) -> bytes:
    """Data as a gzip file that names neither a file nor a time: the same bytes from the same data and zlib."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=PACKING, fileobj=buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def remove(path: Path) -> None:
    """Take a file away, for good."""
    path.unlink()
    files.sync(path.parent)
