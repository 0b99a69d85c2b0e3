"""From a selection to the list of runs: presets, flags, shards; and the refusal of what cannot work."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from importlib import import_module

from suite import environment, registry
from suite.controls import under
from suite.isolation import forks
from suite.isolation.catalogue import Catalogue, read
from suite.numerals import decimal
from suite.presets import PROTOCOLS
from suite.protocol import Cell, Protocol, Run
from suite.records.schema import TABLES
from suite.records.values import cell_fault


class SelectionError(ValueError):
    """A selection that makes no runs; the message is one line for the user."""


def _factor(text: str) -> float:
    """A number of at most six digits, as the tables write it, and not below 0; else ValueError."""
    value = decimal(text)
    if value < 0 or value != float(f"{value:g}"):
        raise ValueError(text)
    return value


BARE = "none"  # of --control: runs with none, of a protocol whose cells have some
FACTORS = {"writers": str, "gate_lr": _factor}  # what --params gives of a run beside its scheme's own parameters


@dataclass(frozen=True)
class Selection:
    """What the selection flags of `plan` and `run` say; None = the protocol's own plan."""

    protocol: str = "laptop"
    schemes: tuple[str, ...] | None = None
    params: tuple[str, ...] | None = None
    arms: tuple[str, ...] | None = None
    depths: tuple[int, ...] | None = None
    lrs: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    data: str | None = None
    control: str | None = None
    plugins: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)


def protocol_named(name: str) -> Protocol:
    """The preset, or SelectionError with the known names."""
    if name not in PROTOCOLS:
        raise SelectionError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def make_plan(selection: Selection, for_costs: bool = False, catalogue: Catalogue | None = None) -> list[Run]:
    """The runs of a selection, in a fixed order; shard i/n takes every n-th from the i-th. Raises one-line errors.

    catalogue: that of the selection's plugins, where it has been read.
    for_costs: where the protocol's own data cannot be read and their shape is known, the runs are planned without
    them; such runs cannot be trained, and their ids mean nothing (suite/scale/price.py).
    """
    protocol = protocol_named(selection.protocol)
    catalogue = catalogue or read(selection.plugins)
    cells = [(cell, _resolve(cell, catalogue)) for cell in _cells(protocol, selection, catalogue)]
    planned = {depth for cell, _ in cells for depth in cell.depths or protocol.depths}

    def depths_of(cell: Cell) -> tuple[int, ...]:
        """The cell's own depths; of --depths those, and those that no cell has."""
        own = cell.depths or protocol.depths
        return tuple(d for d in selection.depths if d in own or d not in planned) if selection.depths else own

    source = protocol.data if selection.data is None else selection.data
    _check_cells("--data", data=source)
    digest = forks.once(_digest, source, protocol, for_costs)
    compiled = protocol.compiled and bool(environment.compiler())
    for cell, (scheme, arm, params, writers, gate_lr, _) in cells:
        _check_cells(f"scheme {scheme}", scheme=scheme, arm=arm, params=params, writers=writers)
        catalogue.call(catalogue.get(scheme, arm), _try_out, scheme, arm, params, max(depths_of(cell), default=1), gate_lr)
    runs = [
        Run(under(protocol, cell.control).at(depth, lr), scheme, arm, params, writers, depth, lr, seed, source, digest, code, compiled,
            gate_lr, cell.control)
        for cell, (scheme, arm, params, writers, gate_lr, code) in cells
        for depth in depths_of(cell)
        for lr in selection.lrs or cell.lrs or protocol.lrs
        for seed in selection.seeds or cell.seeds or protocol.seeds
    ]
    runs = list({run.run_id: run for run in runs}.values())
    i, n = selection.shard
    return runs[i - 1 :: n]


def _cells(protocol: Protocol, selection: Selection, catalogue: Catalogue) -> list[Cell]:
    """The protocol's cells narrowed by --schemes and --arms, or new cells where these name what it has not."""
    cells = list(protocol.cells)
    if selection.schemes:
        planned = {c.scheme for c in cells}
        chosen = [c for c in cells if c.scheme in selection.schemes]
        cells = chosen + [Cell(s) for s in selection.schemes if s not in planned]
        cells.sort(key=lambda c: selection.schemes.index(c.scheme))
    if selection.arms:
        cells = list(dict.fromkeys(replace(c, arm=arm) for c in cells for arm in selection.arms))
        if not selection.schemes:  # not every scheme has a native arm
            cells = [c for c in cells if c.scheme in catalogue.names(c.arm)]
    if selection.params:
        named = {text.rpartition(":")[0] for text in selection.params}
        others = [] if "" in named else [c for c in cells if c.scheme not in named]
        cells = others + [c for text in selection.params for c in _with_params(cells, text)]
    if selection.control is not None:  # in place of the cells' own
        control = "" if selection.control == BARE else selection.control
        try:
            under(protocol, control)
        except ValueError as error:
            raise SelectionError(f"--{error}, {BARE}") from None
        cells = [replace(c, control=control) for c in cells]
    if not cells:
        raise SelectionError(f"--arms {','.join(selection.arms or ())}: no scheme of {protocol.name} has that arm")
    return list(dict.fromkeys(cells))


def _with_params(cells: list[Cell], text: str) -> list[Cell]:
    """The named scheme's cells (or all) with `[scheme:]name=value,...` in place of their params; FACTORS go with every scheme."""
    scheme, colon, rest = text.rpartition(":")
    items = [item.strip() for item in rest.split(",") if item.strip()]
    if not items:
        raise SelectionError(f"--params {text!r}: names no parameter")
    given = {}
    for name, kind in FACTORS.items():
        found = [value for key, _, value in (item.partition("=") for item in items) if key == name]
        if len(found) > 1 or "" in found:
            raise SelectionError(f"--params {text!r}: {name} is {'empty' if '' in found else 'given twice'}")
        try:
            given.update((name, kind(value)) for value in found)
        except ValueError:
            raise SelectionError(f"--params {text!r}: {name} is not a number of at most six digits, 0 or larger") from None
    own = ",".join(item for item in items if item.partition("=")[0] not in FACTORS)
    if colon and scheme not in {c.scheme for c in cells}:
        raise SelectionError(f"--params {text}: scheme {scheme!r} is not selected; name it with --schemes")
    out = [replace(c, params=own, **given) for c in cells if c.scheme == scheme or not colon]
    return list(dict.fromkeys(out))


def _resolve(cell: Cell, catalogue: Catalogue) -> tuple[str, str, str, str, float, str]:
    """(scheme, arm, canonical params, writers, gate_lr, code digest) of a cell; refuses illegal writers with the reason."""
    entry = catalogue.get(cell.scheme, cell.arm)
    params = registry.format_params(entry, registry.parse_params(entry, cell.params))
    standard = entry.zero_writers or cell.arm == "native"
    writers = cell.writers or ("std" if standard else "zero")
    if writers not in registry.WRITERS:
        raise SelectionError(f"scheme {cell.scheme}: writers={writers} is not one of {', '.join(registry.WRITERS)}")
    if writers == "zero" and entry.zero_writers:
        raise SelectionError(f"scheme {cell.scheme} refuses zero writers: {entry.zero_writers}")
    return cell.scheme, cell.arm, params, writers, cell.gate_lr, catalogue.code_digest(entry, params)


def _try_out(scheme: str, arm: str, params: str, depth: int, gate_lr: float) -> None:
    """`try_out`, in the process of the scheme's file."""
    from suite.sweep.tryout import try_out

    try_out(scheme, arm, params, depth, gate_lr)


def _check_cells(what: str, **cells: str) -> None:
    """Refuse now, by the table writer's own code, what could not be written after the training."""
    for name, text in cells.items():
        if fault := cell_fault(TABLES["runs"], name, text):
            raise SelectionError(f"{what}: {text[:200]!a} cannot be written into the tables ({name} {fault}); rename it")


def say_quality(runs: list[Run], features: str) -> None:
    """Tell the user on standard error what these runs will not be scored by, before the first training.

    Raises QualityError or SelectionError, ValueErrors, where what was asked for cannot be had.
    """
    scored = any(run.protocol.fid_samples for run in runs)
    if (scored or features == "inception") and (note := forks.once(_quality, runs, features)):
        print(note, file=sys.stderr)


def _quality(runs: list[Run], features: str) -> str:
    """`check_quality`, after a look at whether the features are there."""
    if features == "inception":
        from suite.quality.features import extractor

        extractor(features)
    return check_quality(runs, features)


def check_quality(runs: list[Run], features: str) -> str:
    """A line for the user where these runs get no FID, "" where they do. Raises SelectionError if FID was asked for by --features."""
    from suite.data.dataset import NAMED

    if not runs or not (n := max(run.protocol.fid_samples for run in runs)):
        return ""
    if features == "digits" and runs[0].data_digest in NAMED.values():
        return ""
    from suite.data.load import cached

    fault = cached(runs[0].data).quality_fault(features, n)
    if fault and features != "digits":
        more = "" if runs[0].data.startswith("latents:") else f"FID of {n} samples needs more images, or "
        raise SelectionError(f"--data {runs[0].data}: {fault}; {more}leave out --features {features}")
    return f"no FID, KID or score on these data: {fault}" if fault else ""


def _digest(source: str, protocol: Protocol, for_costs: bool) -> str:
    from suite.data.dataset import DataError

    try:
        return _read_digest(source, protocol)
    except DataError:
        if for_costs and source == protocol.data and (unread := import_module("suite.scale.price").unread(protocol)):
            return unread
        raise


def _read_digest(source: str, protocol: Protocol) -> str:
    from suite.data.load import cached, named_digest

    if digest := named_digest(source):
        return digest
    data = cached(source)
    if (size := data.shape[-1]) % (patch := protocol.patch):
        what, remedy = "images", f"add ,size={max(1, size // patch) * patch}"
        if source.startswith("latents:"):
            what, remedy = "latents", "take a protocol of patch 1"
        raise SelectionError(f"--data {source}: {what} of {size} x {size} do not divide into patches of {patch}; {remedy}")
    return data.digest
