"""Which content files have: SHA-256, of a file that was read before only where size, times or inode say that it may be another.

What was read is noted in a file of its own beside the data. It decides nothing but whether to read again: where it is
lost, copied along or cannot be written, the files are read once more.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

from suite.environment import usable_cores
from suite.files import write_whole

NOTES = ".contents.json"  # by name: [digest of the files' stamps, digest of their contents]
SETTLED_NS = 50_000_000  # beyond any tick of a clock that stamps files: what changes after that gets another stamp
AT_ONCE = 4096  # of many small files


def sha256_of(path: Path) -> str:
    """Hex digits over a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(groups: Mapping[str, Sequence[Path]], notes: Path) -> dict[str, str]:
    """By name: the SHA-256 of a file; of several that over their hex digits, in their order. notes: the file to remember them in.

    Raises OSError, with `filename`, for what cannot be read, is no file, or changes while it is read.
    """
    stamps, noted = {name: _stamp(paths) for name, paths in groups.items()}, _noted(notes)
    todo = [name for name, (now, _) in stamps.items() if noted.get(name, [""])[0] != now]
    if not todo:
        return {name: noted[name][1] for name in groups}
    changed = max(last for _, last in stamps.values())
    time.sleep(max(0, min(SETTLED_NS, changed + SETTLED_NS - time.time_ns())) / 1e9)
    each = _read([path for name in todo for path in groups[name]])
    for name in todo:
        own = list(islice(each, len(groups[name])))
        noted[name] = [stamps[name][0], own[0] if len(own) == 1 else hashlib.sha256("".join(own).encode()).hexdigest()]
        if stamp(groups[name]) != stamps[name][0]:
            raise OSError(errno.EBUSY, "it changes while it is read", str(groups[name][0]))
    with suppress(OSError):
        write_whole(notes, json.dumps(noted).encode())
    return {name: noted[name][1] for name in groups}


def stamp(paths: Sequence[Path]) -> str:
    """Hex digits over size, times and inode of files: where they are the same as before, nobody has written to them. Raises OSError."""
    return _stamp(paths)[0]


def _stamp(paths: Sequence[Path]) -> tuple[str, int]:
    """`stamp`, and the last ctime in ns, which every change moves and no program can set back."""
    sha, last = hashlib.sha256(), 0
    for path in paths:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for
            raise OSError(errno.EINVAL, "it is no file", str(path))
        sha.update(repr((state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)).encode())
        last = max(last, state.st_ctime_ns)
    return sha.hexdigest(), last


def _read(paths: Sequence[Path]) -> Iterator[str]:
    with ThreadPoolExecutor(usable_cores()) as pool:
        for at in range(0, len(paths), AT_ONCE):
            yield from pool.map(sha256_of, paths[at : at + AT_ONCE])


def _noted(notes: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(notes.read_bytes())
        return {name: [str(of), str(content)] for name, (of, content) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
