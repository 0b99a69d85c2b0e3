"""From a selection to the list of runs: presets, flags, shards; and the refusal of what cannot work."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from suite import environment, registry
from suite.protocol import PROTOCOLS, Cell, Protocol, Run
from suite.records.csvfile import cell_fault
from suite.records.schema import TABLES


class SelectionError(ValueError):
    """A selection that makes no runs; the message is one line for the user."""


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
    plugins: tuple[str, ...] = ()
    shard: tuple[int, int] = (1, 1)


def protocol_named(name: str) -> Protocol:
    """The preset, or SelectionError with the known names."""
    if name not in PROTOCOLS:
        raise SelectionError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def make_plan(selection: Selection, for_costs: bool = False) -> list[Run]:
    """The runs of a selection, in a fixed order; shard i/n takes every n-th from the i-th. Raises one-line errors.

    for_costs: where the protocol's own data cannot be read and their shape is known, the runs are planned without them; such runs
    cannot be trained, and their ids mean nothing (suite/sweep/cost.py).
    """
    protocol = protocol_named(selection.protocol)
    if selection.plugins:
        import suite.sweep.execute  # noqa: F401  with all that trains, so that a plugin that replaces a part of it is found out
    for plugin in selection.plugins:
        registry.load_plugin(Path(plugin))
    cells = [(cell, _resolve(cell)) for cell in _cells(protocol, selection)]
    planned = {depth for cell, _ in cells for depth in cell.depths or protocol.depths}

    def depths_of(cell: Cell) -> tuple[int, ...]:
        """The cell's own depths; of --depths those, and those that no cell has."""
        own = cell.depths or protocol.depths
        return tuple(d for d in selection.depths if d in own or d not in planned) if selection.depths else own

    source = protocol.data if selection.data is None else selection.data
    _check_cells("--data", data=source)
    digest = _digest(source, protocol, for_costs)
    compiled = protocol.compiled and bool(environment.compiler())
    from suite.sweep.tryout import SchemeError, try_out

    for cell, (scheme, arm, params, writers, _) in cells:
        _check_cells(f"scheme {scheme}", scheme=scheme, arm=arm, params=params, writers=writers)
        try:
            try_out(scheme, arm, params, max(depths_of(cell), default=1))
        except SchemeError as error:
            raise SelectionError(str(error)) from error
    runs = [
        Run(protocol.at(depth, lr), scheme, arm, params, writers, depth, lr, seed, source, digest, code, compiled)
        for cell, (scheme, arm, params, writers, code) in cells
        for depth in depths_of(cell)
        for lr in selection.lrs or cell.lrs or protocol.lrs
        for seed in selection.seeds or cell.seeds or protocol.seeds
    ]
    runs = list({run.run_id: run for run in runs}.values())
    i, n = selection.shard
    return runs[i - 1 :: n]


def _cells(protocol: Protocol, selection: Selection) -> list[Cell]:
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
            cells = [c for c in cells if c.scheme in registry.names(c.arm)]
    if selection.params:
        named = {text.rpartition(":")[0] for text in selection.params}
        others = [] if "" in named else [c for c in cells if c.scheme not in named]
        cells = others + [c for text in selection.params for c in _with_params(cells, text)]
    if not cells:
        raise SelectionError(f"--arms {','.join(selection.arms or ())}: no scheme of {protocol.name} has that arm")
    return list(dict.fromkeys(cells))


def _with_params(cells: list[Cell], text: str) -> list[Cell]:
    """The named scheme's cells (or all) with `[scheme:]name=value,...` in place of their params; `writers` goes with every scheme."""
    scheme, colon, rest = text.rpartition(":")
    items = [item.strip() for item in rest.split(",") if item.strip()]
    writers = [item.partition("=")[2] for item in items if item.startswith("writers=")]
    if not items or len(writers) > 1 or "" in writers:
        what = "names no parameter" if not items else "writers is given twice" if len(writers) > 1 else "writers is empty"
        raise SelectionError(f"--params {text!r}: {what}")
    own = ",".join(item for item in items if not item.startswith("writers="))
    if colon and scheme not in {c.scheme for c in cells}:
        raise SelectionError(f"--params {text}: scheme {scheme!r} is not selected; name it with --schemes")
    out = [replace(c, params=own, writers=writers[-1] if writers else c.writers) for c in cells if c.scheme == scheme or not colon]
    return list(dict.fromkeys(out))


def _resolve(cell: Cell) -> tuple[str, str, str, str, str]:
    """(scheme, arm, canonical params, writers, code digest) of a cell; refuses illegal writers with the reason."""
    entry = registry.get(cell.scheme, cell.arm)
    params = registry.format_params(entry, registry.parse_params(entry, cell.params))
    standard = entry.cls.zero_writers or cell.arm == "native"
    writers = cell.writers or ("std" if standard else "zero")
    if writers not in registry.WRITERS:
        raise SelectionError(f"scheme {cell.scheme}: writers={writers} is not one of {', '.join(registry.WRITERS)}")
    if writers == "zero" and entry.cls.zero_writers:
        raise SelectionError(f"scheme {cell.scheme} refuses zero writers: {entry.cls.zero_writers}")
    return cell.scheme, cell.arm, params, writers, entry.code_digest


def _check_cells(what: str, **cells: str) -> None:
    """Refuse now, by the table writer's own code, what could not be written after the training."""
    for name, text in cells.items():
        if fault := cell_fault(TABLES["runs"], name, text):
            raise SelectionError(f"{what}: {text[:200]!a} cannot be written into the tables ({name} {fault}); rename it")


def say_quality(runs: list[Run], features: str) -> None:
    """Tell the user on standard error what these runs will not be scored by, before the first training.

    Raises QualityError or SelectionError, ValueErrors, where what was asked for cannot be had.
    """
    if features == "inception":
        from suite.quality.features import extractor

        extractor(features)
    if note := check_quality(runs, features):
        print(note, file=sys.stderr)


def check_quality(runs: list[Run], features: str) -> str:
    """A line for the user where these runs get no FID, "" where they do. Raises SelectionError if FID was asked for by --features."""
    from suite.training.data import NAMED

    if not runs or not (n := max(run.protocol.fid_samples for run in runs)):
        return ""
    if features == "digits" and runs[0].data_digest in NAMED.values():
        return ""
    from suite.sweep.execute import load_data
    from suite.sweep.scoring import quality_fault

    fault = quality_fault(load_data(runs[0].data), features, n)
    if fault and features != "digits":
        more = "" if runs[0].data.startswith("latents:") else f"FID of {n} samples needs more images, or "
        raise SelectionError(f"--data {runs[0].data}: {fault}; {more}leave out --features {features}")
    return f"no FID, KID or score on these data: {fault}" if fault else ""


def _digest(source: str, protocol: Protocol, for_costs: bool) -> str:
    from suite.sweep import cost
    from suite.training.data import DataError

    try:
        return _read_digest(source, protocol)
    except DataError:
        if for_costs and source == protocol.data and protocol.name in cost.SHAPES:
            return cost.UNREAD
        raise


def _read_digest(source: str, protocol: Protocol) -> str:
    from suite.training.data import named_digest

    if digest := named_digest(source):
        return digest
    from suite.sweep.execute import load_data

    data = load_data(source)
    if (size := data.shape[-1]) % protocol.patch:
        if source.startswith("latents:"):
            raise SelectionError(
                f"--data {source}: latents of {size} x {size} do not divide into patches of {protocol.patch}; take a protocol of patch 1"
            )
        raise SelectionError(
            f"--data {source}: images of {size} x {size} do not divide into patches of {protocol.patch}; add ,size="
            f"{max(1, size // protocol.patch) * protocol.patch}"
        )
    return data.digest
