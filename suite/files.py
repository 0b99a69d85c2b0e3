"""Files that are whole at any moment: written aside, synced, renamed, and their folder synced.

A reader, a kill or a power cut finds what was there before or what was to be there, and a full disk leaves nothing
behind.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path


def write_whole(path: Path, data: bytes, aside: str = "") -> None:
    """Put bytes in place, in a folder that is made where there is none; also where several machines do so at once.

    aside: what the file is called until it is whole, for whoever tidies up behind a kill; by default
    .NAME.HOST.PROCESS.part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(aside or f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        fill(part, data)
        place(part, path)
    finally:
        part.unlink(missing_ok=True)


def fill(path: Path, data: bytes) -> None:
    """Write a file that nobody looks at yet; it is on the disk when this returns."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def place(aside: Path, path: Path) -> None:
    """Give what is whole and synced its name. A file replaces a file at once; a folder takes the place of what bears its name."""
    if aside.is_dir():
        remove(path)
    os.replace(aside, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk: a rename survives a power cut only then."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Take a file away, or a folder as far as that can be done; nothing where there is neither."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
