"""TensorBoard's event files to columns of text. TensorBoard reads them; what it would pass over in silence, damage, is looked for here."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from suite.detect.numbers import LogError
from suite.detect.sheet import Sheet, unpacked

EVENTS = "tfevents"  # in the names of TensorBoard's files
HEAD, TAIL = 12, 4  # bytes of a record before its data (length, and its checksum) and behind (checksum of the data)
LONGEST = 1 << 28  # bytes of a record: what claims to be longer is no length


def is_events(path: Path) -> bool:
    """Whether a path is that of an event file, by its name."""
    return EVENTS in path.name and not path.is_dir()


def read_events(path: Path) -> list[Sheet]:
    """The scalars of an event file, packed or not, or of all below a folder, one sheet a folder. Raises LogError.

    A record that is damaged is left out, and said; where it cannot be told which comes next, they are searched for.
    """
    folders = {path.parent: [path]} if not path.is_dir() else {}
    for file in sorted(path.rglob(f"*{EVENTS}*")) if path.is_dir() else ():
        if file.is_file():
            folders.setdefault(file.parent, []).append(file)
    if not folders:
        inside = next((f", such as {file}" for file in sorted(path.rglob("*")) if file.is_file()), "")
        raise LogError(f"{path}: cannot be read (a folder without event files); give the path of a log with a step and a loss{inside}")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise LogError(f"{path}: event files need tensorboard, which is not installed; pip install tensorboard, or export a CSV") from None
    sheets = []
    for folder, files in folders.items():
        with tempfile.TemporaryDirectory() as clean:
            notes = [note for i, file in enumerate(files) if (note := _cleaned(file, Path(clean) / f"{i:06}.{EVENTS}"))]
            events = EventAccumulator(clean, size_guidance={"scalars": 0})
            events.Reload()
        tags = events.Tags()["scalars"]
        points: dict[int, dict[str, str]] = {}
        for tag in tags:
            for event in events.Scalars(tag):
                points.setdefault(event.step, {})[tag] = repr(event.value)
        if points:
            steps = sorted(points)
            rows = [[str(step), *(points[step].get(tag) for tag in tags)] for step in steps]
            run = str(folder.relative_to(path)) if path.is_dir() and folder != path else ""
            sheets.append(Sheet(str(path), ["step", *tags], rows, list(range(1, len(rows) + 1)), run=run, notes=notes))
        elif notes:
            raise LogError(f"{path}: {notes[0]}; nothing else is in it: copy it anew")
    if not sheets:
        raise LogError(f"{path}: no scalars in any event file; give a CSV or JSON with a step and a loss")
    return sheets


@dataclass
class _Damage:
    """What is wrong with a file: how many places, the first, and whether its end is missing."""

    places: list[int] = field(default_factory=list)
    cut: bool = False

    def said(self, file: Path) -> str:
        said = []
        if self.places:
            said.append(f"{file.name} is damaged in {len(self.places)} places, the first at byte {self.places[0]}: the records there are "
                        "left out")  # fmt: skip
        if self.cut:
            said.append(f"{file.name} ends within a record")
        return "; ".join(said)


def _cleaned(file: Path, into: Path) -> str:
    """Write the whole records of a file; what was wrong with it, or ""."""
    data = unpacked(file.read_bytes, file, "copy it anew")
    damage = _Damage()
    with open(into, "wb") as out:
        for record in _records(data, damage):
            out.write(record)
    return damage.said(file)


def _records(data: bytes, damage: _Damage) -> Iterator[bytes]:
    """The records of an event file (TFRecord) whose checksums hold."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    def length_at(at: int) -> int | None:
        if at + HEAD > len(data):
            return None
        length, check = struct.unpack_from("<QI", data, at)
        return length if length < LONGEST and masked_crc32c(data[at:at + 8]) == check else None

    at = 0
    while at < len(data):
        length = length_at(at)
        end = at + HEAD + (length or 0) + TAIL
        if length is None and at + HEAD <= len(data) or length is not None and end <= len(data) and (
            masked_crc32c(data[at + HEAD:end - TAIL]) != struct.unpack_from("<I", data, end - TAIL)[0]):  # fmt: skip
            damage.places.append(at)
            at = end if length is not None else next((k for k in range(at + 1, len(data)) if length_at(k) is not None), len(data))
        elif length is None or end > len(data):
            damage.cut = True
            return
        else:
            yield data[at:end]
            at = end
